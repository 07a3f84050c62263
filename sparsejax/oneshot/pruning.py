"""The mask of the best scores, with an exact budget."""

import jax
import jax.numpy as jnp

from sparsejax import distributions, patterns
from sparsejax.oneshot import calibration
from sparsejax.patterns import Pattern


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
    however many scores are equal: ties go to the lower linear index.

  Raises:
    ValueError: If the scores are no matrix, the sparsity is out of range or
      leaves no weight, or the pattern has another.
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
  calibration.check_kernel(scores)
  pattern = pattern or patterns.unstructured()
  return pattern.top_k(scores, budget(scores.shape, sparsity, pattern))


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
