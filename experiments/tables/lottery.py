"""What the levels of lottery tickets amount to: a table, report.md, pictures.

Intervals are Student's t over seeds, at 95 %; differences are paired by seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ml_collections
import numpy as np
import rich.console
import rich.table

from experiments import statistics
from experiments.plots import lottery as lottery_plots
from experiments.runs.workdir import storage
from experiments.statistics import interval
from experiments.tables import text as csv_tables
from sparsejax.lottery import barrier

if TYPE_CHECKING:
  from experiments.drivers.lottery import Level


class Row(NamedTuple):
  """A level of a branch, over all seeds.

  Attributes:
    branch: Its name; `dense` for level 0, which the branches share.
    level: How often it was pruned.
    left: Weights left, in percent of those that may be pruned; their mean.
    accuracy: Final test accuracies in percent, by seed.
    barriers: Error barriers between two children, in percent, by seed; empty
      if there are none.
  """

  branch: str
  level: int
  left: float
  accuracy: dict[int, float]
  barriers: dict[int, float]


COLUMNS = (
  *("branch", "level", "weights left [%]", "test accuracy [%]"),
  *("95 % interval", "runs", "by seed", "error barrier [%]"),
)


def rows(levels: Sequence["Level"]) -> list[Row]:
  """Gathers the levels of all seeds, the dense run first."""
  groups = {}
  for level in levels:
    groups.setdefault((level.branch, level.level), []).append(level)
  table = [_row(*key, group) for key, group in groups.items()]
  dense = next(r for r in table if not r.level)._replace(
    branch="dense", barriers={}
  )
  return [dense, *(r for r in table if r.level or r.barriers)]


def _row(branch, level, group) -> Row:
  lines = {one.seed: one.line for one in group if one.line is not None}
  return Row(
    branch=branch,
    level=level,
    left=float(np.mean([100 * one.metrics["density"] for one in group])),
    accuracy={one.seed: 100 * one.metrics["accuracy"] for one in group},
    barriers={seed: 100 * barrier(line) for seed, line in lines.items()},
  )


def differences(
  table: Sequence[Row], pairs: Sequence[tuple[str, str]]
) -> list[tuple[str, str, list[tuple[Row, float, float, float]]]]:
  """Compares branches level by level, on the seeds that both have.

  Args:
    table: The rows.
    pairs: Names of branches, that which papers report to do worse first;
      `dense` is the dense run at every level.

  Returns:
    For each pair the two names, and by level: the second one's row, its mean
    lead in percent points and the 95 % interval of that.
  """
  found = {(row.branch, row.level): row for row in table}
  result = []
  for low, high in pairs:
    lines = []
    for row in (r for r in table if r.branch == high and r.level):
      other = found.get((low, 0 if low == "dense" else row.level))
      if other is None:
        continue
      shared = row.accuracy.keys() & other.accuracy.keys()
      gaps = [row.accuracy[s] - other.accuracy[s] for s in sorted(shared)]
      lines.append((row, float(np.mean(gaps)), *interval(gaps)))
    result.append((low, high, lines))
  return result


def write(
  workdir: Path, config: ml_collections.ConfigDict, levels: Sequence["Level"]
) -> list[Row]:
  """Writes table.csv, report.md and its pictures; prints a short table.

  Args:
    workdir: Where they go.
    config: The config of the lottery tickets.
    levels: All levels of all seeds.

  Returns:
    The rows of table.csv.
  """
  table = rows(levels)
  compared = differences(table, config.expected)
  pictures = [
    ("Accuracy against weights left", "tickets.png"),
    ("Learning curves", "curves.png"),
  ]
  with storage(workdir):
    lottery_plots.tickets(table, workdir / "tickets.png")
    lottery_plots.curves(levels, workdir / "curves.png")
    if any(row.barriers for row in table):
      steps = {
        name: config.branches[name].get("step", 0)
        for name in config.stability.branches
      }
      lottery_plots.barriers(table, steps, workdir / "barriers.png")
      lottery_plots.lines(levels, workdir / "lines.png")
      pictures += [
        ("Error barriers", "barriers.png"),
        ("Error on the line between two children", "lines.png"),
      ]
    csv_tables.write(workdir / "table.csv", [COLUMNS, *map(_cells, table)])
    (workdir / "report.md").write_text(_text(config, table, compared, pictures))
  _show(table, compared, config)
  return table


def _cells(row: Row) -> tuple[str, ...]:
  values = list(row.accuracy.values())
  low, high = interval(values)
  barriers = list(row.barriers.values())
  return (
    row.branch,
    str(row.level),
    f"{row.left:.2f}",
    f"{np.mean(values):.2f}",
    statistics.shown(low, high),
    str(len(values)),
    " ".join(f"{v:.2f}" for v in values),
    f"{np.mean(barriers):.2f}" if barriers else "-",
  )


def _show(table, compared, config):
  """Prints each branch's accuracies, a line per level."""
  branches = list(dict.fromkeys(r.branch for r in table if r.level))
  found = {(row.branch, row.level): row for row in table}
  printed = rich.table.Table(
    title=f"{config.name}: test accuracy [%], {len(config.seeds)} seeds"
  )
  for column in ("level", "weights left [%]", *branches):
    printed.add_column(column, justify="right", overflow="fold")
  dense = table[0]
  mean = f"{np.mean(list(dense.accuracy.values())):.2f}"
  printed.add_row("0", f"{dense.left:.2f}", *[mean] * len(branches))
  for level in sorted({r.level for r in table if r.level}):
    cells = [found.get((name, level)) for name in branches]
    left = next(c.left for c in cells if c)
    means = [
      f"{np.mean(list(c.accuracy.values())):.2f}" if c else "-" for c in cells
    ]
    printed.add_row(str(level), f"{left:.2f}", *means)
  rich.console.Console().print(printed)
  for low, high, lines in compared:
    print(_verdict(low, high, lines))


def _verdict(low, high, lines) -> str:
  """Says at how many levels a pair comes in the order that papers report."""
  ahead = sum(gap > 0 for _, gap, _, _ in lines)
  sure = sum(bottom > 0 for _, _, bottom, _ in lines)
  against = sum(top < 0 for _, _, _, top in lines)
  text = (
    f"{high} above {low}: at {ahead} of {len(lines)} levels, at {sure} of them "
    "with 95 % confidence"
  )
  return text + (
    f"; with 95 % confidence below at {against}." if against else "."
  )


def _text(config, table, compared, pictures) -> str:
  parts = [
    f"# {config.name}",
    _EXPLAINED.format(rate=100 * config.rate, scope=_SCOPES[config.scope]),
    *(f"## {title}\n\n![{title}]({file})" for title, file in pictures),
  ]
  if compared:
    parts += ["## The order that papers report, held against these runs"]
    for low, high, levels in compared:
      body = [
        "| level | weights left [%] | lead | 95 % interval |",
        "| ---: | ---: | ---: | ---: |",
        *(
          f"| {row.level} | {row.left:.2f} | {gap:+.2f} | "
          f"{statistics.shown(bottom, top, '+.2f')} |"
          for row, gap, bottom, top in levels
        ),
      ]
      parts += [_verdict(low, high, levels), "\n".join(body)]
  parts += [
    "## All levels",
    csv_tables.table([COLUMNS, *map(_cells, table)]),
  ]
  return "\n\n".join(parts) + "\n"


_SCOPES = {
  "global": "over the whole net",
  "layer": "in every layer by itself",
}
_EXPLAINED = """\
Every level prunes {rate:g} % of the weights that are left, {scope}, and trains
again. Weights left are counted among those that may be pruned. Intervals are
95 % (Student's t over seeds); leads are paired by seed. The error barrier is
the highest test error on the line between two nets, trained from the same
start on two orders of the data, less the mean of their own errors
(arXiv:1912.05671, section 2)."""
