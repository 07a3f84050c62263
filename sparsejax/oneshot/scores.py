"""Scores of weights, from their own values and from their inputs.

Every score takes `(w, statistics)` and returns one number per weight. Weights
with high scores are kept. So you can replace one score by another. Weights and
statistics that are not finite, and statistics of nothing, raise an error.
Inside `jax.jit` and `jax.vmap`, where no error is possible, such a weight has a
score that is not finite, and such statistics make all scores NaN; `prune` then
prunes nothing.
"""

import jax
import jax.numpy as jnp

from sparsejax.oneshot import calibration
from sparsejax.oneshot.calibration import Statistics
from sparsejax.scores import wide


def magnitude(w: jax.Array, statistics: Statistics | None = None) -> jax.Array:
  """Scores weights by |w|.

  Args:
    w: Kernel [inputs, outputs].
    statistics: Ignored.

  Returns:
    Scores [inputs, outputs], float32 or wider.

  Raises:
    ValueError: If w is no matrix, or not finite.

  Example:
    >>> print(magnitude(jnp.array([[1.0, -2.0]])))
    [[1. 2.]]
  """
  del statistics
  calibration.check_kernel(w)
  return jnp.abs(wide(w))


def wanda(w: jax.Array, statistics: Statistics) -> jax.Array:
  """Scores weights by |w| ||x||_2, the norm of their input over all positions.

  Wanda compares the weights of each output, so prune with `patterns.fan_in()`
  or N:M.

  Args:
    w: Kernel [inputs, outputs].
    statistics: The statistics of its inputs.

  Returns:
    Scores [inputs, outputs], float32 or wider.

  Raises:
    ValueError: If w is no matrix, the statistics are of other inputs or of no
      position, or something is not finite.

  References:
    Sun et al., A Simple and Effective Pruning Approach for Large Language
    Models, arXiv:2306.11695, 2024, equation 1.

  Example:
    >>> from sparsejax import oneshot
    >>> seen = oneshot.observe(oneshot.statistics(1), jnp.array([[3.0], [4.0]]))
    >>> print(wanda(jnp.array([[1.0, -2.0]]), seen))
    [[ 5. 10.]]
  """
  known = calibration.check_kernel(w, statistics)
  return jnp.abs(wide(w)) * _norms(statistics, known)


def ria(
  w: jax.Array, statistics: Statistics, *, power: float = 0.5
) -> jax.Array:
  """Scores weights by relative importance and activations.

  The score is
  (|w| / sum of its input's |w| + |w| / sum of its output's |w|) ||x||_2^power.
  So no input or output loses all its weights only because they are all small.
  RIA compares the weights of the whole matrix.

  Args:
    w: Kernel [inputs, outputs].
    statistics: The statistics of its inputs.
    power: Exponent of the norms of the inputs; with 0 only the relative
      importance counts.

  Returns:
    Scores [inputs, outputs], float32 or wider.

  Raises:
    ValueError: If w is no matrix, the statistics are of other inputs or of no
      position, or something is not finite.

  References:
    Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for
    Large Language Models, ICLR 2024.

  Example:
    >>> from sparsejax import oneshot
    >>> seen = oneshot.observe(oneshot.statistics(2), jnp.ones((1, 2)))
    >>> print(ria(jnp.array([[1.0, 3.0], [0.0, 1.0]]), seen))
    [[1.25 1.5 ]
     [0.   1.25]]
  """
  known = calibration.check_kernel(w, statistics)
  size = jnp.abs(wide(w))
  relative = _share(size, axis=0) + _share(size, axis=1)
  return relative * _norms(statistics, known) ** power


def _norms(statistics, known):
  """Computes ||x||_2 of each input over all positions, [inputs, 1].

  NaN unless `known`.
  """
  square = statistics.variance + statistics.mean**2
  return jnp.sqrt(jnp.where(known, statistics.count * square, jnp.nan))[:, None]


def _share(size, axis):
  """Divides numbers by their sum along an axis; 0 where all are 0."""
  total = jnp.sum(size, axis, keepdims=True)
  return size / jnp.where(total == 0, 1, total)
