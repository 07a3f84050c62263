"""Means over seeds: their intervals, and their differences, by Student's t."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Difference(NamedTuple):
  """By how much one thing is better than another, over the seeds of both.

  Attributes:
    mean: The mean difference; positive if the order that papers report shows.
    interval: Its 95 % interval, paired by seed; infinite if it has none.
    p: Of the paired t-test; NaN if there is none.
    n: How many seeds both have.
  """

  mean: float
  interval: tuple[float, float]
  p: float
  n: int

  @property
  def verdict(self) -> str:
    """What that says of the order that papers report, in a word."""
    low, high = self.interval
    if low > 0:
      return "holds"
    return "reversed" if high < 0 else "undecided"

  @property
  def said(self) -> str:
    """The same in a sentence's end."""
    order = "as papers report" if self.mean > 0 else "NOT what papers report"
    if self.n > 1 and self.verdict == "undecided":
      return f"{order}, but {self.n} seeds cannot tell"
    return order


def difference(gaps: Sequence[float]) -> Difference:
  """Sums up the differences of runs that share seeds.

  Args:
    gaps: One number per seed, at least one.

  Returns:
    Their mean, and what can be said of it.

  Example:
    >>> difference([1.1, 1.0, 1.2]).verdict
    'holds'
  """
  ends = interval(gaps)
  p = float("nan")
  if np.isfinite(ends).all():
    p = float(stats.ttest_1samp(gaps, 0.0).pvalue)
  return Difference(float(np.mean(gaps)), ends, p, len(gaps))


def shown(low: float, high: float, number: str = ".2f") -> str:
  """An interval for people, `-` if it is infinite."""
  if not np.isfinite([low, high]).all():
    return "-"
  return f"{low:{number}} to {high:{number}}"
