"""Intervals of means over seeds, by Student's t."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of a mean.

  Args:
    values: One number per seed; differences, for a paired comparison.

  Returns:
    Its lower and upper end: infinite for a single value, the mean itself if
    all are equal.

  Example:
    >>> low, high = interval([1.1, 1.0, 1.2])
    >>> print(round(low, 3), round(high, 3))
    0.852 1.348
  """
  values = np.asarray(values, float)
  if len(values) < 2:
    return -np.inf, np.inf
  if np.all(values == values[0]):
    return float(values[0]), float(values[0])
  low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  return float(low), float(high)
