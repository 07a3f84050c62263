"""What finished runs amount to: a table, report.md, and its pictures.

Every number comes from the runs' own records, masks and models.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ml_collections
import numpy as np
import rich.console
import rich.table

from experiments import statistics as intervals
from experiments.config.entry import Entry, percent
from experiments.plots import runs as plots
from experiments.runs.workdir import storage
from experiments.tables import costs
from experiments.tables import text as csv_tables
from sparsejax import report as library_report

if TYPE_CHECKING:
  from experiments.runs.train import Result


class Run(NamedTuple):
  """A finished run: its config and what it left."""

  config: ml_collections.ConfigDict
  result: "Result"


class Row(NamedTuple):
  """A line in the table.

  Attributes:
    entry: Method and sparsity.
    accuracy: Final test accuracies, in percent, one per seed.
    nnz: Active weights, all leaves counted: the mean of the runs, rounded.
    size: All weights.
    training: FLOPs of a training step relative to dense.
    inference: FLOPs of a forward pass relative to dense.
  """

  entry: Entry
  accuracy: tuple[float, ...]
  nnz: int
  size: int
  training: float
  inference: float

  @property
  def mean(self) -> float:
    """The mean accuracy, in percent."""
    return statistics.fmean(self.accuracy)

  @property
  def spread(self) -> str:
    """The accuracy with its standard deviation over seeds, for people."""
    if len(self.accuracy) < 2:
      return f"{self.mean:.2f}"
    return f"{self.mean:.2f} ± {statistics.stdev(self.accuracy):.2f}"

  @property
  def interval(self) -> str:
    """The 95 % interval of the mean accuracy (t), for people."""
    if len(self.accuracy) < 2:
      return "-"
    return intervals.shown(*intervals.interval(np.array(self.accuracy)), ".2f")


_COLUMNS = (
  "method",
  "test accuracy [%]",
  "95 % interval",
  "runs",
  "active weights",
  "training FLOPs",
  "inference FLOPs",
)


def rows(runs: Mapping[Entry, Sequence[Run]]) -> list[Row]:
  """Sums up the runs of each entry.

  Args:
    runs: Runs by entry; those of one entry differ in their seed.

  Returns:
    One row per entry. FLOPs are those of its first run.
  """
  return [_row(entry, group) for entry, group in runs.items()]


def _row(entry: Entry, group: Sequence[Run]) -> Row:
  first = group[0]
  training, inference = costs.of(first.config, first.result.history).relative
  return Row(
    entry=entry,
    accuracy=tuple(100 * r.result.metrics["accuracy"] for r in group),
    nnz=round(statistics.fmean(r.result.metrics["nnz"] for r in group)),
    size=first.result.metrics["size"],
    training=training,
    inference=inference,
  )


def order(
  table: Sequence[Row], expected: Sequence[tuple[str, str]]
) -> list[str]:
  """Says whether methods come in the order that papers report.

  Args:
    table: The rows.
    expected: Pairs of methods, the lower one first.

  Returns:
    A sentence per pair, with the mean difference over the seeds that both
    share and its 95 % interval (paired t).
  """
  accuracy = {row.entry: row.accuracy for row in table}
  sparsities = dict.fromkeys(row.entry.sparsity for row in table)
  lines = []
  for low, high in expected:
    for sparsity in sparsities:
      pair = [_nearest(accuracy, name, sparsity) for name in (low, high)]
      if None in pair or all(e.sparsity != sparsity for e in pair):
        continue
      lines.append(_compared(*pair, *(np.array(accuracy[e]) for e in pair)))
  return lines


def _nearest(entries, name, sparsity):
  """The method's entry of that sparsity, or its only one."""
  for entry in (Entry(name, sparsity), Entry(name)):
    if entry in entries:
      return entry
  return None


def _compared(low, high, a, b) -> str:
  gain = intervals.difference(b - a)
  text = f"{high} - {low}: {gain.mean:+.2f} points"
  if gain.n > 1:
    text += f", 95 % interval {intervals.shown(*gain.interval, '+.2f')}"
  return f"{text}: {gain.sentence}."


def _cells(row: Row) -> tuple[str, ...]:
  return (
    str(row.entry),
    row.spread,
    row.interval,
    str(len(row.accuracy)),
    f"{row.nnz:,} of {row.size:,}",
    f"{row.training:.3f}x",
    f"{row.inference:.3f}x",
  )


def show(table: Sequence[Row], title: str) -> None:
  """Prints the table on the terminal."""
  printed = rich.table.Table(title=title)
  left_out = _COLUMNS.index("95 % interval")  # for room
  for i, column in enumerate(_COLUMNS):
    if i != left_out:
      printed.add_column(column, justify="right" if i else "left")
  for row in table:
    cells = _cells(row)
    printed.add_row(*cells[:left_out], *cells[left_out + 1 :])
  rich.console.Console().print(printed)


def write(
  workdir: Path,
  config: ml_collections.ConfigDict,
  runs: Mapping[Entry, Sequence[Run]],
  expected: Sequence[tuple[str, str]] = (),
) -> list[Row]:
  """Writes report.md and its pictures.

  Args:
    workdir: Where they go.
    config: The config that was launched.
    runs: Finished runs by entry.
    expected: Pairs of methods, as for `order`.

  Returns:
    The rows of its table.
  """
  table = rows(runs)
  shown = _shown(runs)
  histories = {
    entry.method: [r.result.history for r in group]
    for entry, group in shown.items()
  }
  group = next(
    (g for e, g in shown.items() if e.method == "rigl"), None
  ) or next(reversed(shown.values()))
  last = group[0]
  several = [e.sparsity for e in runs if e.sparsity is not None]
  text = _TEXT.format(
    name=config.name,
    table=csv_tables.table([_COLUMNS, *map(_cells, table)]),
    order=_order_text(order(table, expected)),
    sparsities=_sparsities_text(table, shown) if several else "",
    method=last.config.algorithm.name,
    seed=last.config.seed,
    layers=library_report.table(
      library_report.layers(
        last.result.params, last.result.masks, costs.by_leaf(last.config)
      )
    ),
  )
  with storage(workdir):
    (workdir / "report.md").write_text(text)
    csv_tables.write(workdir / "table.csv", [_COLUMNS, *map(_cells, table)])
    plots.accuracy(histories, workdir / "accuracy.png")
    plots.layers(histories, workdir / "layers.png")
    plots.churn(histories, workdir / "churn.png")
    if several:
      csv_tables.write(workdir / "sparsities.csv", _wide(table))
      plots.sparsities(table, _families(runs), workdir / "sparsities.png")
  return table


def _shown(runs):
  """The entries of one sparsity, the middle one, and those that have none."""
  sparsities = sorted({e.sparsity for e in runs if e.sparsity is not None})
  middle = sparsities[len(sparsities) // 2] if sparsities else None
  return {e: g for e, g in runs.items() if e.sparsity in (None, middle)}


def _families(runs) -> dict[str, tuple[int, int]]:
  """The colour and the kind of line that a picture gives each method.

  Those that begin alike, with the same pattern, share a colour, those of one
  algorithm a kind of line. Where that does not tell methods apart, each has a
  colour of its own, or, where these run out, another kind of line.
  """
  starts, algorithms = {}, {}
  for entry, group in runs.items():
    if entry.sparsity is not None:
      config = group[0].config
      starts[entry.method] = f"{config.initial} {_pattern(config)}"
      algorithms[entry.method] = config.algorithm.name
  pairs = {(starts[m], algorithms[m]) for m in starts}
  if len(pairs) < len(starts) or len(set(starts.values())) < len(
    set(algorithms.values())
  ):
    colours = len(plots.COLOURS)
    return {m: (i % colours, i // colours) for i, m in enumerate(starts)}
  first = list(dict.fromkeys(starts.values()))
  second = list(dict.fromkeys(algorithms.values()))
  return {
    method: (first.index(starts[method]), second.index(algorithms[method]))
    for method in starts
  }


def _pattern(config):
  pattern = config.algorithm.get("pattern", "")
  return getattr(pattern, "name", pattern)


def _wide(table: Sequence[Row]) -> list[tuple[str, ...]]:
  """Accuracies, a line per method and a column per sparsity, below a header."""
  sparsities = sorted(
    {row.entry.sparsity for row in table if row.entry.sparsity is not None}
  )
  found = {row.entry: row for row in table}
  lines = [("method", *map(percent, sparsities), "runs")]
  for method in dict.fromkeys(row.entry.method for row in table):
    rows = [found.get(_nearest(found, method, s)) for s in sparsities]
    runs = str(next(len(row.accuracy) for row in rows if row))
    cells = (row.spread if row else "-" for row in rows)
    lines.append((method, *cells, runs))
  return lines


def _sparsities_text(table, shown):
  at = next(e.sparsity for e in shown if e.sparsity is not None)
  return (
    "\n## Accuracy at several sparsities\n\n"
    f"{csv_tables.table(_wide(table))}\n\n"
    "![test accuracy against sparsity](sparsities.png)\n\n"
    f"The pictures below show the runs at {percent(at)}.\n"
  )


def _order_text(lines):
  if not lines:
    return ""
  listed = "\n".join(f"- {line}" for line in lines)
  return (
    f"\nThe order that papers report, held against these runs:\n\n{listed}\n"
  )


_TEXT = """\
# {name}

{table}

Accuracy is that of the last step, mean ± standard deviation over seeds, and
the mean's 95 % interval (t). FLOPs
are relative to dense, by the cost model of RigL's paper (appendix H), with
2 per multiply-add; masks cost what a machine would that skips zeros.
{order}{sparsities}
## Accuracy over steps

![test accuracy over steps](accuracy.png)

## Where the zeros are

![zeros in every layer](layers.png)

The layers of {method} with seed {seed}:

{layers}

## How the masks moved

![new weights over steps](churn.png)
"""
