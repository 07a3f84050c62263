"""The mask of the best scores, with an exact budget."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import distributions, patterns, select
from sparsejax.oneshot import calibration
from sparsejax.patterns import Pattern
from sparsejax.patterns.layouts import FanIn


def prune(
  scores: jax.Array, sparsity: float, *, pattern: Pattern | None = None
) -> jax.Array:
  """Makes the mask of the highest scores.

  Args:
    scores: Floating array [inputs, outputs], such as `wanda` gives.
    sparsity: The share of zeros, in [0, 1).
    pattern: Which weights are compared with each other: all by default, as
      for magnitude and RIA; those of each output with `patterns.fan_in()`, as
      for Wanda; those of each group of inputs with `patterns.n_of_m(n, m)`.

  Returns:
    A bool mask [inputs, outputs] of exactly size x (1 - sparsity) weights,
    rounded half up, or of the number nearest to that which the pattern knows,
    however many scores are equal. Ties favour no input: in N:M they go round,
    see `patterns.n_of_m`, and a hash of the place decides among all weights
    or those of an output. Inside `jax.jit` and `jax.vmap` all of it is True if
    a score is not finite.

  Raises:
    ValueError: If the scores are no matrix, one is not finite, the sparsity is
      out of range or leaves no weight, or the pattern has another.
    TypeError: If the scores are not floating.

  Example:
    >>> from sparsejax import patterns
    >>> scores = jnp.array([[4.0, 1.0], [3.0, 2.0]])
    >>> print(prune(scores, 0.5))
    [[ True False]
     [ True False]]
    >>> print(prune(scores, 0.5, pattern=patterns.fan_in()))
    [[ True False]
     [False  True]]
  """
  scores = jnp.asarray(scores)
  calibration.check_matrix(scores)
  hint = "see the weights, and the statistics of their inputs"
  finite = calibration.check_finite(scores, "the scores", hint)
  pattern = pattern or patterns.unstructured()
  kept = budget(scores.shape, sparsity, pattern)
  return _choose(scores, kept, pattern.top_k, pattern.layout) | ~finite


@functools.partial(jax.jit, static_argnames=("top_k", "layout"))
def _choose(scores, kept, top_k, layout):
  mask = top_k(scores, kept)
  if layout == FanIn():
    again, axis = functools.partial(select.top_k_of_each, axis=-1), 0
  elif top_k is select.top_k_mask:
    again, axis = select.top_k_mask, None
  else:
    return mask
  # `select` gives ties to the lower index, which of weights of few values, as
  # 4-bit ones, are those of the first inputs for every output.
  tied = scores == jnp.min(
    jnp.where(mask, scores, jnp.inf), axis, keepdims=True
  )
  number = lax.broadcasted_iota(jnp.uint32, (1, scores.size), 1)
  order = _hash(number).reshape(scores.shape).astype(jnp.float32)
  left = jnp.sum(mask & tied, axis, dtype=jnp.int32)
  return (mask & ~tied) | again(order, left, where=tied)


def _hash(x):
  """Mixes the bits of uint32 numbers; no two of them become the same.

  References:
    Wellons, Prospecting for Hash Functions, 2018: lowbias32.
  """
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)


def budget(shape: tuple[int, int], sparsity: float, pattern: Pattern) -> int:
  """Counts the weights of a kernel [inputs, outputs] that are kept."""
  shared = patterns.distribution(distributions.uniform, pattern)
  return shared({"kernel": shape}, sparsity)["kernel"]


def group(shape: tuple[int, int], pattern: Pattern | None) -> int | None:
  """Counts the neighbouring inputs that a pattern is chosen for at a time.

  The fewest that keep exactly its density: m of N:M. None if the pattern leaves
  the density open.
  """
  if pattern is None or pattern.density is None:
    return None
  inputs, outputs = shape
  for rows in range(1, inputs):
    if pattern.budget((rows, outputs), 0) == pattern.density * rows * outputs:
      return rows
  return inputs
