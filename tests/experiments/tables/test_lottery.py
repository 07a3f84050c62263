"""The report of lottery tickets, from levels made by hand."""

import numpy as np
import pytest

from experiments.tables import lottery
from experiments.tables.lottery import Level
from experiments.tables.rows import Row


def rows(*values):
  return [
    Row("dense", None, dict(enumerate(values[0])), density=1.0),
    Row("a", 0, dict(enumerate(values[0])), density=1.0, barriers={0: 1.0}),
    Row("a", 1, dict(enumerate(values[1])), density=0.8),
    Row("b", 1, dict(enumerate(values[2])), density=0.8),
  ]


def test_leads_are_paired_by_seed():
  table = rows((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (2.1, 3.0, 4.2))
  ((low, high, found),) = lottery.compare(table, [("a", "b")])
  (order,) = found
  assert (low, high, order.high.setting) == ("a", "b", 1)
  # Differences 1.1, 1.0, 1.2: t(0.975, 2) s / sqrt(3) = 0.248.
  ends = (0.852, 1.348)
  assert order.gain.mean == pytest.approx(1.1)
  assert order.gain.interval == pytest.approx(ends, abs=1e-3)
  ((_, _, found),) = lottery.compare(table, [("dense", "b")])
  assert found[0].gain.mean == pytest.approx(1.1)
  assert lottery._verdict("a", "b", found) == (
    "b above a: at 1 of 1 levels, at 1 of them with 95 % confidence."
  )
  for count, why in ((1, "one seed"), (2, "two seeds")):
    few = [
      row._replace(values={s: row.values[s] for s in range(count)})
      for row in table
    ]
    ((_, _, found),) = lottery.compare(few, [("a", "b")])
    assert lottery._verdict("a", "b", found) == (
      f"b above a: at 1 of 1 levels; {why}: no verdict."
    )
  # Level 0 of a branch is the dense run: nothing to compare.
  ((_, _, found),) = lottery.compare(table, [("dense", "a")])
  assert [order.high.setting for order in found] == [1]


def test_levels_become_rows_with_the_dense_run_once():
  def level(branch, number, seed, line=None):
    metrics = {"accuracy": 0.5 + 0.1 * seed, "density": 0.8**number, "loss": 1}
    return Level(seed, branch, number, metrics, [], line)

  line = np.array([0.1, 0.4, 0.2])
  found = lottery.summarize(
    [
      level(
        branch, number, seed, line if (branch, number) == ("a", 0) else None
      )
      for seed in (0, 1)
      for branch in "ab"
      for number in (0, 1)
    ]
  )
  # A seed that diverged is counted wherever it has no level.
  less = lottery.summarize(
    [level("a", 0, 0), level("a", 0, 1), level("a", 1, 0)], diverged=[1]
  )
  assert [row.diverged for row in less] == ["", " (1 of 2 diverged)"]
  assert [(row.method, row.setting) for row in found] == [
    *(("dense", None), ("a", 0), ("a", 1), ("b", 1))
  ]
  assert found[0].values == pytest.approx({0: 50.0, 1: 60.0})
  assert found[2].density == pytest.approx(0.8)
  # The highest error less the mean of the ends: 0.4 - 0.15.
  assert found[1].barriers == pytest.approx({0: 25.0, 1: 25.0})
