"""Units of which nothing is left but zeros, or constants."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsejax.masks import is_hole
from sparsejax.shrink.analysis import Analysis

# The slices of a unit: leaf, axis, indices.
Slices = list[tuple[int, int, np.ndarray]]
Slots = frozenset[tuple[int, int]]


def vanishing(
  groups: Sequence[Sequence[int]],
  units: Sequence[Slices],
  leaves: Sequence[Any],
  analyse: Callable[..., Analysis],
) -> tuple[list[int], dict[int, str]]:
  """Finds the units that do nothing while some of their slices are zero.

  Args:
    groups: The numbers of units of the same axes.
    units: Their slices.
    leaves: Masks, or params that hold zeros.
    analyse: `zero -> Analysis` of the same graph as the units are of.

  Returns:
    Their numbers; and of the others that have slices of zeros, why not.
  """
  axes = {}
  patterns = [_patterns(group, units, leaves, axes) for group in groups]
  found, others = [], {}
  for turn in range(max(map(len, patterns), default=0)):
    now = [each[turn] for each in patterns if turn < len(each)]
    # One analysis serves all groups. Where two of them share an axis, it counts
    # as masked only if it is for both.
    unmasked = {
      (leaf, axis)
      for slots, members in now
      for leaf, axis, _ in units[members[0]]
      if (leaf, axis) not in slots
    }
    analysis = analyse(lambda *slot, unmasked=unmasked: slot not in unmasked)
    free = _whole_classes(analysis)
    for _, members in now:
      for unit in members:
        if free(units[unit]):
          found.append(unit)
        else:
          others[unit] = _why(analysis, units[unit])
  return sorted(found), others


def _patterns(
  group: Sequence[int], units, leaves, axes
) -> list[tuple[Slots, list[int]]]:
  """Sorts units by which of their slices are zero; some have to be."""
  members = defaultdict(list)
  for unit in group:
    slots: dict[tuple[int, int], bool] = {}
    for leaf, axis, indices in units[unit]:
      nonzero = _nonzero(leaves[leaf], leaf, axis, axes)
      zero = nonzero is not None and not nonzero[indices].any()
      slots[leaf, axis] = slots.get((leaf, axis), True) and zero
    zeros = frozenset(slot for slot, zero in slots.items() if zero)
    if zeros:
      members[zeros].append(unit)
  return list(members.items())


def _nonzero(x, leaf, axis, axes) -> np.ndarray | None:
  """Of each index of an axis, whether anything there is not zero."""
  if is_hole(x) or np.ndim(x) == 0:
    return None
  if (leaf, axis) not in axes:
    others = tuple(other for other in range(np.ndim(x)) if other != axis)
    axes[leaf, axis] = (np.asarray(x) != 0).any(others)
  return axes[leaf, axis]


def _whole_classes(analysis: Analysis) -> Callable[[Slices], bool]:
  """Makes a test of whether a unit's slices leave together, and can."""
  labels = np.arange(analysis.of_leaves)
  roots = analysis.labels.find(labels)
  frozen = analysis.labels.reason(labels) > 0
  sizes = np.bincount(roots, minlength=analysis.labels.count)

  def test(unit: Slices) -> bool:
    own = _labels(analysis, unit)
    same = (roots[own] == roots[own[0]]).all() and not frozen[own].any()
    return bool(same and sizes[roots[own[0]]] == len(own))

  return test


def _labels(analysis: Analysis, unit: Slices) -> np.ndarray:
  axes, ins = analysis.axes, analysis.graph.ins
  parts = [axes[ins[leaf]][axis][indices] for leaf, axis, indices in unit]
  return np.concatenate(parts)


def _why(analysis: Analysis, unit: Slices) -> str:
  reasons = analysis.labels.reason(_labels(analysis, unit))
  number = reasons.max()
  if not number:
    return "it would have to leave with others"
  reason = analysis.reasons[number]
  return f"{reason.why} ({reason.primitive} at {reason.line})"
