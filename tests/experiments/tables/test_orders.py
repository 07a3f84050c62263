"""The order that papers report: which rows are compared, and what is said."""

import pytest
from scipy import stats

from experiments.tables import orders
from experiments.tables.rows import Row


def row(method, *values, at=None):
  return Row(method, at, dict(enumerate(values)))


def labels(found):
  return [(order.low.label, order.high.label) for order in found]


def test_orders_are_paired_by_the_seeds_that_both_have():
  a = Row("a", 0.9, {0: 1.0, 1: 2.0, 2: 4.0})
  b = Row("b", 0.9, {2: 7.0, 1: 4.0, 0: 3.5, 9: 50.0})
  (order,) = orders.compare([a, b], [("a", "b"), ("a", "none")])
  assert order.gain.mean == pytest.approx(2.5)
  assert order.gain.n == 3
  test = stats.ttest_rel([3.5, 4.0, 7.0], [1.0, 2.0, 4.0])
  assert order.gain.p == pytest.approx(test.pvalue)
  assert order.gain.interval == pytest.approx(tuple(test.confidence_interval()))
  assert order.gain.verdict == "holds"
  (order,) = orders.compare([a, b], [("b", "a")])
  assert order.gain.verdict == "reversed"
  (order,) = orders.compare([a, b], [("b", "a")], lower_is_better=True)
  assert order.gain.verdict == "holds"
  assert (order.low, order.high) == (b, a)


def test_methods_are_compared_at_each_setting_of_either():
  rows = [
    row("dense", 9.0),
    row("a", 1.0, at=0.5),
    row("b", 1.0, at=0.5),
    row("a", 1.0, at=0.9),
    row("c", 1.0, at=3),
  ]
  expected = [("a", "b"), ("dense", "a"), ("c", "a"), ("x", "a")]
  assert labels(orders.compare(rows, expected)) == [
    ("a, 50 %", "b, 50 %"),
    ("dense", "a, 50 %"),
    ("dense", "a, 90 %"),
  ]


def test_labels_name_single_rows():
  rows = [row("a", 1.0, at="2:4"), row("a", 1.0, at="50 %")]
  found = orders.compare(rows, [("a, 2:4", "a, 50 %")])
  assert labels(found) == [("a, 2:4", "a, 50 %")]


def test_rows_without_a_seed_in_common_are_not_compared():
  rows = [Row("a", None, {0: 1.0}), Row("b", None, {1: 1.0})]
  assert orders.compare(rows, [("a", "b")]) == []


def test_sentences_say_what_the_seeds_say():
  a, b = row("a", 1.0, 2.0, 3.0), row("b", 2.1, 3.0, 4.2)
  (order,) = orders.compare([a, b], [("a", "b")])
  # Differences 1.1, 1.0, 1.2: mean 1.1, t(0.975, 2) s / sqrt(3) = 0.248.
  assert orders.sentence(order) == (
    "b - a: +1.10 points, 95 % interval +0.85 to +1.35: as papers report."
  )
  (order,) = orders.compare([a, b], [("b", "a")])
  assert "NOT what papers report" in orders.sentence(order)
  a, b = row("a", 1.0, 2.0, 3.0), row("b", 0.0, 3.0, 4.0)
  (order,) = orders.compare([a, b], [("a", "b")])
  end = "as papers report, but 3 seeds cannot tell."
  assert orders.sentence(order).endswith(end)


@pytest.mark.parametrize(
  ("values", "why"),
  [
    ([1.0], "one seed"),
    ([1.0, 2.0], "two seeds"),
    ([1.0, 2.0, float("nan")], "1 of 3 seeds diverged"),
  ],
)
def test_there_is_no_verdict_where_seeds_allow_none(values, why):
  a, b = row("a", *values), row("b", *(value + 9 for value in values))
  (order,) = orders.compare([a, b], [("a", "b")])
  assert order.verdict == order.sentence == f"{why}: no verdict"
  assert orders.sentence(order).endswith(f": {why}: no verdict.")


def test_rows_that_are_barred_have_no_verdict():
  a, b = row("a", 1.0, 2.0, 3.0), row("b", 2.1, 3.0, 4.2)
  for pair in ([a._replace(barred="why"), b], [a, b._replace(barred="why")]):
    (order,) = orders.compare(pair, [("a", "b")])
    assert order.verdict == order.sentence == "why"


def test_tables_and_counts_of_orders():
  rows = [
    row("a", 1.0, 2.0, 3.0, at=0.9),
    row("b", 2.0, 1.5, 3.25, at=0.9),
    row("c", 4.0, 5.1, 6.2, at=0.9),
    row("dense", 9.0, 10.0, 11.1),
    row("few", 9.0, 10.0, at=0.9),
  ]
  pairs = [("a", "b"), ("a", "c"), ("few", "a"), ("b", "dense"), ("dense", "c")]
  found = orders.compare(rows, pairs)
  verdicts = {"holds": 2, "undecided": 1, "reversed": 1}
  verdicts["two seeds: no verdict"] = 1
  assert orders.counts(found) == verdicts
  header, first, *_, last = orders.table(found)
  assert header[-1] == "the published order"
  assert first[:4] == ("a", "b", "90 %", "+0.25")
  assert first[-2:] == ("3", "undecided")
  assert last[:3] == ("dense", "c", "90 %")
  assert [(a, b, len(group)) for a, b, group in orders.by_pair(found)] == [
    (*pair, 1) for pair in pairs
  ]
