"""Choosing units by their scores, to a budget."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sparsejax import names
from sparsejax.shrink.removal import Group, Removal

Cost = Callable[[Removal], float]
_SCOPES = ("global", "group")


def look_up_budget(name: str, params: Cost, flops: Cost) -> Cost | None:
  """Returns the cost function of a budget's name; None for units."""
  known = {"units": None, "params": params, "flops": flops}
  return names.look_up("budget", name, known)


def lowest(
  groups: Sequence[Group],
  scores: np.ndarray,
  share: float,
  cost: Cost | None,
  removal: Callable[[Iterable[int]], Removal],
  round_to: int,
  scope: str,
) -> list[int]:
  """Chooses the units of the lowest scores; see `Plan.lowest`.

  Args:
    groups: The groups to choose from.
    scores: Of each unit, by its number.
    share: How much to remove, in [0, 1).
    cost: What it is a share of; None for units.
    removal: Of units.
    round_to: What kept lengths divide by.
    scope: "group" or "global".

  Returns:
    The units' numbers.

  Raises:
    ValueError: If an argument is out of range, or the budget cannot be met.
  """
  names.look_up("scope", scope, dict.fromkeys(_SCOPES))
  if not 0 <= share < 1:
    raise ValueError(f"got share={share}, wanted one in [0, 1)")
  if round_to < 1:
    raise ValueError(f"got round_to={round_to}, wanted at least 1")
  order = {g.cuts: sorted(g.units, key=lambda u: scores[u]) for g in groups}
  pool = sorted((u for g in groups for u in g.units), key=lambda u: scores[u])

  def chosen(part: float) -> tuple[int, ...]:
    """The units to remove if that part of all is to leave."""
    gone = set(pool[: math.floor(len(pool) * part + 1e-9)])
    units = []
    for group in groups:
      wanted = math.floor(len(group) * part + 1e-9)
      if scope == "global":
        wanted = sum(u in gone for u in group.units)
      units += order[group.cuts][: _rounded(group, wanted, round_to)]
    return tuple(units)

  if cost is None:
    return list(chosen(share))
  return list(_bisected(chosen, cost, removal, share))


def _bisected(chosen, cost, removal, share) -> tuple[int, ...]:
  """Finds the least removal whose cost is within the budget."""
  costs: dict[tuple[int, ...], float] = {}

  def cost_of(units):
    if units not in costs:
      costs[units] = float(cost(removal(units)))
    return costs[units]

  limit = (1 - share) * cost_of(())
  low, high = 0.0, 1.0
  least = cost_of(chosen(high))
  if least > limit:
    raise ValueError(
      f"the smallest model that is left costs {least:.4g}, more than the "
      f"{limit:.4g} that share={share} asks for: ask for less, or round to less"
    )
  while chosen(low) != chosen(high) and high - low > 1e-4:
    middle = (low + high) / 2
    if cost_of(chosen(middle)) <= limit:
      high = middle
    else:
      low = middle
  return chosen(low) if cost_of(chosen(low)) <= limit else chosen(high)


def _rounded(group: Group, wanted: int, round_to: int) -> int:
  """How many units to remove so that lengths divide by `round_to`.

  It is at most what is wanted, and leaves one step of units at least.
  """
  width = math.gcd(*group.widths)
  step = round_to // math.gcd(round_to, width)
  left = max(math.ceil((len(group) - wanted) / step) * step, step)
  return max(len(group) - left, 0)
