"""When masks change, and how far a gradual change has come.

A schedule maps a step, counted from 0, to a value. The step may be a Python int
or traced. Values that anneal, such as RigL's fraction, use optax schedules.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["When", "always", "at", "cubic", "every", "never"]

When = Callable[[int | jax.Array], bool | jax.Array]


def every(period: int, *, start: int, stop: int | None = None) -> When:
  """Makes a schedule that is True at steps `range(start, stop, period)`.

  RigL updates at t mod dT == 0 and 0 < t < T_end: `every(dT, start=dT,
  stop=T_end)`. Gradual pruning includes its last step: `stop=end + 1`.

  Args:
    period: Steps from one update to the next, at least 1.
    start: The first step, at least 0.
    stop: The end of the range, itself excluded; None for no end.

  Returns:
    A function `step -> bool`. It returns a Python bool for a Python int.

  Raises:
    ValueError: If the period is below 1, the start below 0, or the end
      before the start.

  Example:
    >>> when = every(100, start=100, stop=300)
    >>> [t for t in range(1000) if when(t)]
    [100, 200]
  """
  if period < 1 or start < 0:
    raise ValueError(
      f"got period={period} and start={start}, wanted a period of at least 1 "
      "step and a start of at least 0"
    )
  if stop is not None and stop < start:
    raise ValueError(
      f"got stop={stop} before start={start}: masks would never move. Train "
      "longer, or update more often"
    )

  def when(step):
    in_time = (step >= start) & ((step - start) % period == 0)
    return in_time if stop is None else in_time & (step < stop)

  return when


def never(step: int | jax.Array) -> bool:
  """Returns False at every step, known at trace time."""
  del step
  return False


def always(step: int | jax.Array) -> bool:
  """Returns True at every step, known at trace time."""
  del step
  return True


def at(*steps: int) -> When:
  """Makes a schedule that is True at the given steps.

  Args:
    *steps: The steps.

  Returns:
    A function `step -> bool`. It returns a Python bool for a Python int.

  Example:
    >>> [t for t in range(10) if at(3, 8)(t)]
    [3, 8]
  """
  listed = frozenset(steps)

  def when(step):
    if isinstance(step, jax.core.Tracer | jax.Array):
      return jnp.any(step == jnp.array(steps, jnp.int32))
    return int(step) in listed

  return when


def cubic(begin: int, end: int) -> Callable[[jax.Array], jax.Array]:
  """Makes the cubic 1 - (1 - (t - t_0) / (n dt))^3: the share of pruning done.

  Args:
    begin: The step t_0, at which pruning starts from its initial sparsity.
    end: The step t_0 + n dt, at which it reaches the final sparsity.

  Returns:
    A function of the step that returns a float32 in [0, 1].

  Raises:
    ValueError: If the end is not after the beginning.

  References:
    Zhu and Gupta, To prune, or not to prune: exploring the efficacy of
    pruning for model compression, arXiv:1710.01878, 2017, equation 1.

  Example:
    >>> print(cubic(100, 300)(200))
    0.875
  """
  if end <= begin:
    raise ValueError(f"got end={end}, wanted a step after begin={begin}")

  def progress(step):
    x = jnp.clip((jnp.asarray(step, jnp.float32) - begin) / (end - begin), 0, 1)
    return 1 - (1 - x) ** 3

  return progress
