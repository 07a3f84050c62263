"""Whether methods come in the order that papers report."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments import statistics
from experiments.tables import text
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

  @property
  def undecidable(self) -> str:
    """Why there is no verdict; empty if there is one."""
    return self.low.barred or self.high.barred or self.gain.undecidable

  @property
  def verdict(self) -> str:
    """One of VERDICTS, or why there is none."""
    return self.undecidable or self.gain.verdict

  @property
  def sentence(self) -> str:
    """The verdict, for people."""
    return self.undecidable or self.gain.sentence


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
      found = [[by_label[name] for name in pair]]
    else:
      found = [
        [by_setting.get((m, s), by_setting.get((m, None))) for m in pair]
        for s in settings
        if any((m, s) in by_setting for m in pair)
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
  points = f"{order.high.label} - {order.low.label}: {gain.mean:+.2f} points"
  if gain.n > 1:
    points += f", 95 % interval {statistics.shown(*gain.interval, '+.2f')}"
  return f"{points}: {order.sentence}."


def counts(orders: Sequence[Order]) -> dict[str, int]:
  """Counts the orders of each verdict, and of each reason for having none."""
  verdicts = [order.verdict for order in orders]
  return {v: verdicts.count(v) for v in dict.fromkeys((*VERDICTS, *verdicts))}


def table(orders: Sequence[Order]) -> list[tuple[str, ...]]:
  """Makes the header and cells of a table of orders by sparsity."""
  return text.cells(_COLUMNS, orders)


_COLUMNS = {
  "lower": lambda o: o.low.method,
  "higher": lambda o: o.high.method,
  "zeros": lambda o: (o.high if o.low.setting is None else o.low).zeros,
  "points": lambda o: f"{o.gain.mean:+.2f}",
  "95 % interval": lambda o: statistics.shown(*o.gain.interval, "+.2f"),
  "p": lambda o: "-" if np.isnan(o.gain.p) else f"{o.gain.p:.2g}",
  "runs": lambda o: str(o.gain.n),
  "the published order": lambda o: o.verdict,
}
