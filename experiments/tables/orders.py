"""Whether methods come in the order that papers report."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments import statistics
from experiments.config.entry import percent
from experiments.tables.rows import Row

VERDICTS = ("holds", "undecided", "reversed")


class Order(NamedTuple):
  """Two rows of which papers report the first to do worse.

  Attributes:
    low: The first.
    high: The second.
    gain: How much better the second is, paired by seed, in the measure's unit.
  """

  low: Row
  high: Row
  gain: statistics.Difference


def compare(
  rows: Sequence[Row],
  expected: Iterable[tuple[str, str]],
  *,
  lower_is_better: bool = False,
) -> list[Order]:
  """Compares the pairs of methods that papers compare.

  Args:
    rows: The rows.
    expected: Pairs, the worse one first: of methods, which are compared at each
      setting of either, with the only row of a method that has no setting; or
      of labels of rows. What no row has is left out.
    lower_is_better: Whether less of the measure is better.

  Returns:
    An order for each pair of rows that share a seed.
  """
  by_label = {row.label: row for row in rows}
  by_setting = {(row.method, row.setting): row for row in rows}
  settings = list(dict.fromkeys(row.setting for row in rows))
  orders = []
  for pair in expected:
    if all(name in by_label for name in pair):
      found = [tuple(by_label[name] for name in pair)]
    else:
      found = [
        tuple(
          by_setting.get((name, setting)) or by_setting.get((name, None))
          for name in pair
        )
        for setting in settings
        if any((name, setting) in by_setting for name in pair)
      ]
    for low, high in found:
      if low is None or high is None:
        continue
      values = (high, low) if lower_is_better else (low, high)
      gain = statistics.paired(*(row.values for row in values))
      if gain is not None:
        orders.append(Order(low, high, gain))
  return orders


def by_pair(
  orders: Iterable[Order],
) -> list[tuple[str, str, list[Order]]]:
  """Groups consecutive orders by their two methods."""
  groups = itertools.groupby(orders, lambda o: (o.low.method, o.high.method))
  return [(*pair, list(group)) for pair, group in groups]


def sentence(order: Order) -> str:
  """Says in points of accuracy whether an order shows."""
  gain = order.gain
  text = f"{order.high.label} - {order.low.label}: {gain.mean:+.2f} points"
  if gain.n > 1:
    text += f", 95 % interval {statistics.shown(*gain.interval, '+.2f')}"
  return f"{text}: {gain.sentence}."


def counts(orders: Sequence[Order]) -> dict[str, int]:
  """Counts the orders of each verdict."""
  verdicts = [order.gain.verdict for order in orders]
  return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def table(orders: Sequence[Order]) -> list[tuple[str, ...]]:
  """Makes the header and cells of a table of orders by sparsity."""
  header = ("lower", "higher", "zeros", "points", "95 % interval", "p", "runs")
  made = [(*header, "the published order")]
  for low, high, gain in orders:
    sparsity = high.setting if low.setting is None else low.setting
    made.append(
      (
        low.method,
        high.method,
        "-" if sparsity is None else percent(sparsity),
        f"{gain.mean:+.2f}",
        statistics.shown(*gain.interval, "+.2f"),
        "-" if np.isnan(gain.p) else f"{gain.p:.2g}",
        str(gain.n),
        gain.verdict,
      )
    )
  return made
