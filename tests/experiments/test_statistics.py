"""Intervals of means, by hand."""

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import difference, interval, shown


def test_students_t_by_hand():
  """The t(0.975) are 12.706 with 1 degree of freedom, 4.303 with 2."""
  assert interval([1.0, 3.0]) == pytest.approx(
    (2 - 12.7062, 2 + 12.7062), abs=1e-3
  )
  half = 4.30265 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
  assert interval([1, 2, 6]) == pytest.approx((3 - half, 3 + half), abs=1e-4)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [0.1 + 0.2, 0.3]])
def test_without_a_spread_there_is_no_interval(values):
  assert interval(values) == (-np.inf, np.inf)
  assert shown(*interval(values)) == "-"


def test_an_interval_for_people():
  assert shown(0.123, 4.0) == "0.12 to 4.00"
  assert shown(-1, 4.0, "+.1f") == "-1.0 to +4.0"


@pytest.mark.parametrize(
  ("gaps", "verdict", "said"),
  [
    ([1.0, 1.1, 1.2], "holds", "as papers report"),
    ([-1.0, -1.1, -1.2], "reversed", "NOT what papers report"),
    ([2.0, -1.0], "undecided", "as papers report, but 2 seeds cannot tell"),
    ([-2.0], "undecided", "NOT what papers report"),
  ],
)
def test_what_differences_say_of_an_order(gaps, verdict, said):
  found = difference(gaps)
  assert (found.verdict, found.said) == (verdict, said)
  assert found.mean == pytest.approx(np.mean(gaps))
  assert found.n == len(gaps)
  if len(gaps) > 1:
    wanted = stats.ttest_rel(gaps, np.zeros(len(gaps)))
    assert found.p == pytest.approx(wanted.pvalue)
