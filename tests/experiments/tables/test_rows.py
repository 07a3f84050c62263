"""The row of all tables, and what pictures show of it."""

import numpy as np
import pytest

from experiments.config.entry import Entry
from experiments.tables.rows import Row, at_middle, series


@pytest.mark.parametrize(
  ("setting", "label"),
  [(None, "a"), (0.9, "a, 90 %"), ("2:4", "a, 2:4"), (3, "a, level 3")],
)
def test_labels_say_method_and_setting(setting, label):
  assert Row("a", setting, {}).label == label


def test_mean_spread_and_interval_are_those_of_the_seeds():
  row = Row("a", None, {0: 1.0, 5: 2.0, 7: 6.0})
  assert (row.mean, row.spread) == (3.0, "3.00 ± 2.65")
  half = 4.30265 * (7 / 3) ** 0.5  # t(0.975, 2) s / sqrt(3)
  assert row.interval == pytest.approx((3 - half, 3 + half), abs=1e-4)
  single = Row("a", None, {0: 1.0}, published=1.0)
  assert (single.spread, single.interval) == ("1.00", (-np.inf, np.inf))
  assert single.within is None


def test_the_middle_sparsity_and_methods_without_one_are_shown():
  groups = {Entry("dense"): 0, Entry("x", 0.5): 1, Entry("x", 0.9): 2}
  assert at_middle(groups) == ({"dense": 0, "x": 2}, 0.9)
  assert at_middle({Entry("dense"): 0}) == ({"dense": 0}, None)
  groups[Entry("y", 0.98)] = 3
  assert at_middle(groups) == ({"dense": 0, "x": 2}, 0.9)


def test_lines_of_a_picture_are_those_of_methods_with_a_style():
  rows = [
    Row("dense", None, {0: 0.5}),
    Row("b", 0.5, {0: 0.1, 1: 0.3}),
    Row("b", 0.9, {0: 0.1}),
  ]
  (line,) = series(rows, {"b": {"color": "r"}, "c": {}}, unit=100)
  assert (line.name, line.x) == ("b", [0.5, 0.9])
  assert line.labels == ["b, 50 %", "b, 90 %"]
  np.testing.assert_allclose(line.mean, [20.0, 10.0])
  low, high = rows[1].interval
  np.testing.assert_allclose(line.low, [100 * low, -np.inf])
  np.testing.assert_allclose(line.high, [100 * high, np.inf])
