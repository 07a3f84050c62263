"""Intervals of means over seeds and paired differences, by Student's t.

One interval for any number of seeds: for the three to ten that experiments have
t covers the mean in 95 % of cases where a bootstrap covers it in fewer, and for
many seeds the two agree.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
LEAST = 3  # seeds that a verdict needs
_FEW = ("no seed", "one seed", "two seeds")


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Computes the 95 % interval of a mean, mean ± t(0.975, n - 1) s / sqrt(n).

  Args:
    values: [n], one number per seed; differences, for a paired comparison.

  Returns:
    Its lower and upper end; infinite where there is none: for a single value,
    if all are equal up to rounding, or if one is not finite.

  Example:
    >>> low, high = interval([1.1, 1.0, 1.2])
    >>> print(round(low, 3), round(high, 3))
    0.852 1.348
  """
  return _t_test(values)[:2]


def half_width(count: int) -> float:
  """Returns half the width of the 95 % interval, for a deviation of 1."""
  from scipy import special

  return float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) / count**0.5


def _t_test(values: Sequence[float]) -> tuple[float, float, float]:
  """The 95 % interval of a mean, and the two-sided p of its being zero."""
  values = np.asarray(values, float)
  if (
    len(values) < 2
    or not np.isfinite(values).all()
    or np.allclose(values, values[0], rtol=1e-9, atol=1e-9)
  ):
    return -np.inf, np.inf, np.nan
  # Imported here: what trains imports this module, and scipy is slow to import.
  from scipy import special

  freedom, mean = len(values) - 1, float(np.mean(values))
  error = float(np.std(values, ddof=1)) / len(values) ** 0.5
  half = error * float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
  p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
  return mean - half, mean + half, p


def undecidable(values: Sequence[float]) -> str:
  """Says why seeds allow no verdict.

  Args:
    values: [n], one number per seed; not finite for one that diverged.

  Returns:
    The reason; empty if there are seeds enough, and none diverged.

  Example:
    >>> undecidable([1.0, 2.0])
    'two seeds: no verdict'
    >>> undecidable([1.0, 2.0, float("nan")])
    '1 of 3 seeds diverged: no verdict'
  """
  diverged = np.size(values) - np.count_nonzero(np.isfinite(values))
  if diverged:
    return f"{diverged} of {len(values)} seeds diverged: no verdict"
  return f"{_FEW[len(values)]}: no verdict" if len(values) < LEAST else ""


class Difference(NamedTuple):
  """The mean of better - worse over seeds, where papers report better > worse.

  Attributes:
    mean: The mean difference; positive in the published order.
    interval: Its 95 % interval, paired by seed; infinite if it has none.
    p: Of the paired t-test; NaN if there is none.
    n: The number of seeds that both have.
    undecidable: Why there can be no verdict; empty if there can.
  """

  mean: float
  interval: tuple[float, float]
  p: float
  n: int
  undecidable: str = ""

  @property
  def verdict(self) -> str:
    """`holds`, `reversed` or `undecided`: where 0 lies to the interval.

    Or why there is none, such as `one seed: no verdict`.
    """
    low, high = self.interval
    if self.undecidable:
      return self.undecidable
    if low > 0:
      return "holds"
    return "reversed" if high < 0 else "undecided"

  @property
  def sentence(self) -> str:
    """The verdict, for people."""
    if self.undecidable:
      return self.undecidable
    order = "as papers report" if self.mean > 0 else "NOT what papers report"
    if self.verdict == "undecided":
      return f"{order}, but {self.n} seeds cannot tell"
    return order


def difference(gaps: Sequence[float]) -> Difference:
  """Sums up the differences of runs that share seeds.

  Args:
    gaps: [n], better - worse of each seed; at least one.

  Returns:
    Their mean with its interval and p.

  Example:
    >>> difference([1.1, 1.0, 1.2]).verdict
    'holds'
  """
  low, high, p = _t_test(gaps)
  mean, n = float(np.mean(gaps)), len(gaps)
  return Difference(mean, (low, high), p, n, undecidable(gaps))


def paired(
  worse: Mapping[int | None, float], better: Mapping[int | None, float]
) -> Difference | None:
  """Compares two methods on the seeds that both have.

  Args:
    worse: By seed, the values of what papers report to be lower; by None, one
      value that no seed changes, which is compared with each of the other's.
    better: Those of what papers report to be higher.

  Returns:
    The difference better - worse; None if they share no seed.

  Example:
    >>> paired({0: 1.0, 1: 2.0}, {1: 2.5, 2: 9.0}).mean
    0.5
  """
  if None in worse and None not in better:
    worse = dict.fromkeys(better, worse[None])
  elif None in better and None not in worse:
    better = dict.fromkeys(worse, better[None])
  shared = [seed for seed in worse if seed in better]
  if not shared:
    return None
  return difference([better[seed] - worse[seed] for seed in shared])


def shown(low: float, high: float, number: str = ".2f") -> str:
  """Formats an interval for people, `-` if it is infinite."""
  if not np.isfinite([low, high]).all():
    return "-"
  return f"{low:{number}} to {high:{number}}"
