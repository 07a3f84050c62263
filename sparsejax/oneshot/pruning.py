"""The mask of the best scores, with an exact budget."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import distributions, patterns, select
from sparsejax.oneshot import calibration
from sparsejax.patterns import Pattern, Patterns
from sparsejax.patterns.layouts import FanIn


def prune(
  scores: jax.Array, sparsity: float, *, pattern: Patterns | None = None
) -> jax.Array:
  """Makes the mask of the highest scores.

  Args:
    scores: Floating array [inputs, outputs], such as `wanda` gives.
    sparsity: The share of zeros, in [0, 1).
    pattern: Which weights compete with each other: all by default, as in
      magnitude pruning and RIA; those of each output with `patterns.fan_in()`,
      as in Wanda; those of each group of inputs with `patterns.n_of_m(n, m)`.

  Returns:
    A bool mask [inputs, outputs] that keeps exactly size x (1 - sparsity)
    weights, rounded half up, or the nearest number that the pattern allows,
    even if many scores are equal. Ties favour no input: in N:M the preferred
    input changes from group to group (see `patterns.n_of_m`); otherwise a hash
    of the position decides. Inside `jax.jit` and `jax.vmap` the whole mask is
    True if a score is not finite.

  Raises:
    ValueError: If the scores are no matrix, one is not finite, the sparsity is
      out of range or leaves no weight, or the pattern has another sparsity.
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
  pattern = single(pattern) or patterns.unstructured()
  mask = pattern.top_k(scores, budget(scores.shape, sparsity, pattern))
  if pattern.layout == FanIn():
    mask = _spread_ties(scores, mask, of_each=True)
  elif pattern.top_k is select.top_k_mask:
    mask = _spread_ties(scores, mask, of_each=False)
  return mask | ~finite


@functools.partial(jax.jit, static_argnames="of_each")
def _spread_ties(scores, mask, *, of_each):
  """Chooses anew among the weights that equal the least one kept.

  `select` gives ties to the lower index, which of weights of few values, as
  4-bit ones, are those of the first inputs for every output.
  """
  axis = 0 if of_each else None
  lowest = jnp.min(jnp.where(mask, scores, jnp.inf), axis, keepdims=True)
  tied = scores == lowest
  number = lax.broadcasted_iota(jnp.uint32, (1, scores.size), 1)
  order = _hash(number).reshape(scores.shape).astype(jnp.float32)
  left = jnp.sum(mask & tied, axis, dtype=jnp.int32)
  if of_each:
    chosen = select.top_k_of_each(order, left, -1, tied)
  else:
    chosen = select.top_k_mask(order, left, tied)
  return (mask & ~tied) | chosen


def _hash(x):
  """Mixes the bits of uint32 numbers; no two of them become the same.

  References:
    Wellons, Prospecting for Hash Functions, 2018: lowbias32.
  """
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)


def single(pattern: Patterns | None) -> Pattern | None:
  """Makes a kernel's pattern of one by name; None stays None."""
  if pattern is None:
    return None
  return patterns.resolve(pattern, ("kernel",))["kernel"]


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
