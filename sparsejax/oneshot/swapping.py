"""DSnoT: weights change places until the outputs are right on average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.oneshot import calibration, pruning
from sparsejax.oneshot.calibration import Statistics
from sparsejax.oneshot.scores import wanda
from sparsejax.patterns import Patterns
from sparsejax.scores import wide


def dsnot(
  w: jax.Array,
  mask: jax.Array,
  statistics: Statistics,
  *,
  pattern: Patterns | None = None,
  cycles: int = 50,
  threshold: float = 0.1 / 2048,
  power: float = 1.0,
  stop_at_flip: bool | None = None,
) -> jax.Array:
  """Swaps active and pruned weights of each output; no weight is trained.

  The error of an output is the mean contribution that its pruned weights would
  have made, the sum of w mean(x). Each cycle swaps one pair of weights in each
  output. It grows the pruned weight that reduces the error most, relative to
  the variance of its input: by w mean(x) / variance^power. As in the authors'
  code, the variance is the mean of the sequences' own variances. And it prunes
  the active weight with the smallest |w| ||x||_2 among those whose removal also
  reduces the error. In N:M it prunes the smallest one in the group of the grown
  weight, whatever its sign. No weight moves twice. An output that has no such
  pair left, for example because few weights are active, no longer changes.

  Args:
    w: Kernel [inputs, outputs], as it was before pruning.
    mask: Bool array of its shape.
    statistics: The statistics of its inputs.
    pattern: `patterns.n_of_m(n, m)` to keep an N:M mask N:M, by swaps within
      groups; otherwise each output keeps its number of weights.
    cycles: The largest number of swaps per output.
    threshold: An output whose error is not larger than this no longer changes.
      The authors' 0.1 is for sums over sequences of 2048 positions, which are
      2048 times as large as the means here.
    power: Exponent of the variance.
    stop_at_flip: Whether an output stops before a swap that would flip the sign
      of its error. If not, the last cycle may leave it a larger error. None
      does what the authors' code does: stops in N:M only.

  Returns:
    A bool mask with as many weights in each output, or group, as before. Inside
    `jax.jit` and `jax.vmap` the mask stays the same where a value would
    otherwise raise an error.

  Raises:
    ValueError: If w is no matrix, the statistics are of other inputs or of no
      position, something is not finite, the mask is no bool array of w's shape,
      the number of cycles or the threshold is negative, or the power is not
      finite.

  References:
    Zhang et al., Dynamic Sparse No Training: Training-Free Fine-tuning for
    Sparse LLMs, arXiv:2310.08915, 2024; its released code.

  Example:
    >>> from sparsejax import oneshot
    >>> x = jnp.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    >>> seen = oneshot.observe(oneshot.statistics(3), x)
    >>> w = jnp.array([[4.0], [-1.0], [3.0]])
    >>> mask = jnp.array([[True], [True], [False]])
    >>> print(dsnot(w, mask, seen).ravel())
    [ True False  True]
  """
  w = jnp.asarray(w)
  usable = calibration.check_kernel(w, statistics)
  calibration.check_mask(mask, w)
  if cycles < 0:
    raise ValueError(f"got {cycles} cycles, wanted at least 0")
  if not threshold >= 0 or not np.isfinite(power):
    raise ValueError(
      f"got threshold={threshold} and power={power}, wanted numbers, the "
      "threshold at least 0"
    )
  group = pruning.group(w.shape, pruning.single(pattern))
  if stop_at_flip is None:
    stop_at_flip = group is not None
  moved = _dsnot(
    w, mask, statistics, cycles, threshold, power, group, stop_at_flip
  )
  return jnp.where(usable, moved, mask)


@functools.partial(jax.jit, static_argnames=("group", "stop_at_flip"))
def _dsnot(w, mask, statistics, cycles, threshold, power, group, stop_at_flip):
  gives = wide(w) * statistics.mean[:, None]
  variance = statistics.sequence_variance
  variance = statistics.variance if variance is None else variance
  sureness = variance[:, None] ** -power
  importance = wanda(w, statistics)
  index = jnp.arange(len(w))[:, None]

  def at(places, x):
    return jnp.sum(jnp.where(places, x, 0), 0)

  def cycle(_, carry):
    mask, growable, prunable, error, going = carry
    lessens = jnp.where(error > 0, gives, -gives)
    candidates = growable & (lessens > 0)
    rated = jnp.where(candidates, lessens * sureness, -jnp.inf)
    first = jnp.argmax(rated, 0)
    grown = candidates & (index == first)
    if group is None:
      candidates = prunable & (lessens < 0)
    else:
      candidates = prunable & (index // group == first // group)
    rated = jnp.where(candidates, importance, jnp.inf)
    pruned = candidates & (index == jnp.argmin(rated, 0))

    found = jnp.any(grown, 0) & jnp.any(pruned, 0)
    after = error + at(pruned, gives) - at(grown, gives)
    going = going & (jnp.abs(error) > threshold)
    if stop_at_flip:
      going = going & ~(found & (after * error < 0))
    swap = going & found
    return (
      jnp.where(swap, (mask | grown) & ~pruned, mask),
      growable & ~grown,
      prunable & ~(pruned & swap),
      jnp.where(swap, after, error),
      going,
    )

  error = at(~mask, gives)
  going = jnp.ones(error.shape, bool)
  carry = mask, ~mask, mask, error, going
  return lax.fori_loop(0, cycles, cycle, carry)[0]
