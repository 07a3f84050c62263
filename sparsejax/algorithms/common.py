"""What algorithms share: keywords that they hand on, and checks of steps."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.nn.initializers import Initializer

from sparsejax import schedules, updates
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.schedules import When

Moments = Callable[[jax.Array, jax.Array], jax.Array]


def leaf_options(
  distribution: Distribution,
  prunable: Prunable,
  pattern: Patterns | None,
  masks: PyTree | None = None,
) -> dict[str, Any]:
  """Collects the keywords of mask updates: how many weights, and which."""
  options = {
    "distribution": distribution,
    "prunable": prunable,
    "pattern": pattern,
  }
  return options if masks is None else options | {"masks": masks}


def move_options(
  step_on_update: bool,
  grown_values: Initializer,
  grown_moments: Moments | None,
  restart: When,
) -> dict[str, Any]:
  """Collects the keywords of `sparsify`: what happens to changed weights."""
  return {
    "step_on_update": step_on_update,
    "grown_values": grown_values,
    "grown_moments": grown_moments,
    "restart": restart,
  }


def until(t_end: int, delta_t: int) -> When:
  """Schedules mask updates every `delta_t` steps before `t_end`."""
  return schedules.every(delta_t, start=delta_t, stop=max(t_end, delta_t))


def annealed(fraction: optax.ScalarOrSchedule, t_end: int) -> optax.Schedule:
  """Anneals a share of active weights to 0 by a cosine, if it is a number."""
  if callable(fraction):
    return fraction
  updates.check_fraction(fraction)
  if t_end < 1:
    raise ValueError(
      f"got t_end={t_end}, wanted the step from which masks stay, at least 1"
    )
  return optax.cosine_decay_schedule(fraction, t_end)


def check_span(begin: int, end: int, delta_t: int) -> None:
  """Checks that the last update of a span of pruning falls on its end."""
  if delta_t < 1 or end <= begin or (end - begin) % delta_t:
    raise ValueError(
      f"got begin={begin}, end={end}, delta_t={delta_t}: wanted an end after "
      "the beginning by a multiple of delta_t, so that the last update meets "
      "the budget"
    )
