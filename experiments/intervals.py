"""Intervals of means over seeds, by Student's t."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of a mean.

  Args:
    values: One number per seed; differences, for a paired comparison.

  Returns:
    Its lower and upper end; infinite where no spread can be told: for a single
    value, or if all are equal, as those of runs that are the same may be.

  Example:
    >>> low, high = interval([1.1, 1.0, 1.2])
    >>> print(round(low, 3), round(high, 3))
    0.852 1.348
  """
  values = np.asarray(values, float)
  if len(values) < 2 or np.allclose(values, values[0], rtol=1e-9, atol=1e-9):
    return -np.inf, np.inf
  low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  return float(low), float(high)


def shown(low: float, high: float, number: str = ".2f") -> str:
  """An interval for people, `-` if it is infinite."""
  if not np.isfinite([low, high]).all():
    return "-"
  return f"{low:{number}} to {high:{number}}"
