"""Intervals and paired differences, by hand and by scipy.stats."""

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import difference, interval, paired, shown


def test_students_t_by_hand():
  """The t(0.975) are 12.706 with 1 degree of freedom, 4.303 with 2."""
  assert interval([1.0, 3.0]) == pytest.approx(
    (2 - 12.7062, 2 + 12.7062), abs=1e-3
  )
  half = 4.30265 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
  assert interval([1, 2, 6]) == pytest.approx((3 - half, 3 + half), abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 30])
def test_intervals_and_p_are_those_of_scipy(n):
  values = np.random.default_rng(n).normal(0.3, 1.0, n)
  wanted = stats.ttest_1samp(values, 0.0)
  found = difference(values)
  ends = wanted.confidence_interval(0.95)
  np.testing.assert_allclose(found.interval, ends, rtol=1e-12)
  assert found.p == pytest.approx(wanted.pvalue, rel=1e-10)


def test_pairs_are_the_seeds_that_both_have():
  worse = {0: 1.0, 1: 2.0, 2: 4.0}
  found = paired(worse, {2: 7.0, 9: 50.0, 1: 4.0, 0: 3.5})
  wanted = stats.ttest_rel([3.5, 4.0, 7.0], [1.0, 2.0, 4.0])
  assert (found.n, found.mean) == (3, pytest.approx(2.5))
  assert found.p == pytest.approx(wanted.pvalue)
  assert paired(worse, {7: 1.0}) is None


def test_a_value_without_a_seed_is_compared_with_every_seed():
  seeds = {0: 1.0, 1: 2.0}
  assert paired({None: 3.0}, seeds) == difference([-2.0, -1.0])
  assert paired(seeds, {None: 3.0}) == difference([2.0, 1.0])
  assert paired({None: 3.0}, {None: 4.0})[:2] == difference([1.0])[:2]


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [0.1 + 0.2, 0.3]])
def test_without_a_spread_there_is_no_interval(values):
  assert interval(values) == (-np.inf, np.inf)
  assert shown(*interval(values)) == "-"


def test_an_interval_for_people():
  assert shown(0.123, 4.0) == "0.12 to 4.00"
  assert shown(-1, 4.0, "+.1f") == "-1.0 to +4.0"


@pytest.mark.parametrize(
  ("gaps", "verdict", "sentence"),
  [
    ([1.0, 1.1, 1.2], "holds", "as papers report"),
    ([-1.0, -1.1, -1.2], "reversed", "NOT what papers report"),
    (
      [2.0, -1.0, 1.0],
      "undecided",
      "as papers report, but 3 seeds cannot tell",
    ),
    ([1.0] * 3, "undecided", "as papers report, but 3 seeds cannot tell"),
    ([2.0, -1.0], *["two seeds: no verdict"] * 2),
    ([-2.0], *["one seed: no verdict"] * 2),
  ],
)
def test_what_differences_say_of_an_order(gaps, verdict, sentence):
  found = difference(gaps)
  assert (found.verdict, found.sentence) == (verdict, sentence)
  assert found.mean == pytest.approx(np.mean(gaps))
  assert found.n == len(gaps)
  if np.std(gaps):
    wanted = stats.ttest_rel(gaps, np.zeros(len(gaps)))
    assert found.p == pytest.approx(wanted.pvalue)


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_a_seed_that_is_not_finite_forbids_a_verdict(lost):
  found = difference([1.0, 1.1, lost, 1.2])
  assert found.interval == (-np.inf, np.inf)
  assert found.verdict == "1 of 4 seeds diverged: no verdict"
