"""How a weight is rated by itself and by the inputs that it meets.

Every score takes `(w, statistics)` and returns one number per weight, the
higher, the better it is kept; so one may stand for another. What cannot be
rated is refused. Inside `jax.jit` and `jax.vmap`, where it cannot be refused, a
weight that is not finite has a score that is not, and statistics of nothing or
of what is not finite make all scores NaN; `prune` prunes nothing then.
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
    statistics: Not used.

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
  """Scores weights by |w| ||x||_2, of their input over all positions.

  Wanda compares the weights of each output: prune by it with
  `patterns.fan_in()`, or N:M.

  Args:
    w: Kernel [inputs, outputs].
    statistics: Of its inputs.

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

  (|w| / sum of its input's |w| + |w| / sum of its output's |w|) ||x||_2^power,
  so that no input or output is pruned whole because all its weights are small.
  RIA compares the weights of the whole matrix.

  Args:
    w: Kernel [inputs, outputs].
    statistics: Of its inputs.
    power: Of the inputs' norms; 0 leaves the relative importance.

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
