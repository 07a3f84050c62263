"""How algorithms hand their keywords on."""

from typing import Any

import optax

from sparsejax import updates

_SPARSIFY = ("grown_values", "grown_moments", "step_on_update", "restart")


def for_sparsify(options: dict[str, Any]) -> dict[str, Any]:
  """Those that `sparsify` takes."""
  return {k: v for k, v in options.items() if k in _SPARSIFY}


def for_update(options: dict[str, Any]) -> dict[str, Any]:
  """The others, for the mask update."""
  return {k: v for k, v in options.items() if k not in _SPARSIFY}


def annealed(fraction: optax.ScalarOrSchedule, t_end: int) -> optax.Schedule:
  """A cosine from a share of active weights to 0; a schedule as it is."""
  if callable(fraction):
    return fraction
  updates.check_fraction(fraction)
  check_end(t_end)
  return optax.cosine_decay_schedule(fraction, t_end)


def check_end(t_end: int) -> None:
  """Refuses an end before the first step."""
  if t_end < 1:
    raise ValueError(
      f"got t_end={t_end}, wanted the step from which masks stay, at least 1"
    )


def check_span(begin: int, end: int, delta_t: int) -> None:
  """Refuses a span of pruning whose last update would miss the budget."""
  if delta_t < 1 or end <= begin or (end - begin) % delta_t:
    raise ValueError(
      f"got begin={begin}, end={end}, delta_t={delta_t}: wanted an end after "
      "the beginning by a multiple of delta_t, so that the last update meets "
      "the budget"
    )
