"""The report of lottery tickets: a table, report.md, its pictures.

Intervals are Student's t over seeds, at 95 %; differences are paired by seed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from experiments import statistics
from experiments.plots import lottery, sparsities, titles
from experiments.plots import runs as run_plots
from experiments.runs.lottery import Level
from experiments.runs.workdir import storage
from experiments.tables import orders, text
from experiments.tables.rows import (
  ACCURACY,
  Row,
  accuracy,
  barred,
  caption,
  notes,
  series,
)
from sparsejax.lottery import barrier

Points = tuple[np.ndarray, np.ndarray]  # x and y of a curve
# What x and y of curves are.
LEARNING = ("step", ACCURACY)
LINES = ("from child 1 to child 2", "test error [%]")


_LOST = "Seed {} diverged, and has no levels from there on: {}"
_COLUMNS = {
  "branch": lambda r: r.method,
  "level": lambda r: str(r.setting or 0),
  "weights left [%]": lambda r: f"{100 * r.density:.2f}",
  "test accuracy [%]": lambda r: f"{r.mean:.2f}{r.diverged}",
  "95 % interval": lambda r: statistics.shown(*r.interval),
  "runs": lambda r: r.runs,
  "by seed": lambda r: " ".join(f"{v:.2f}" for v in r.values.values()),
  "error barrier [%]": lambda r: (
    f"{np.mean(list(r.barriers.values())):.2f}" if r.barriers else "-"
  ),
}


def summarize(
  levels: Sequence[Level], diverged: Iterable[int] = ()
) -> list[Row]:
  """Sums up the levels of all seeds.

  Args:
    levels: All levels of all seeds.
    diverged: The seeds that diverged; they lack the levels from there on.

  Returns:
    A row for the dense run, which has no setting; for each level of a branch,
    its setting; and for level 0 of branches whose barrier was measured.
  """
  lost = dict.fromkeys(diverged, np.nan)
  rows = [_row(*key, group, lost) for key, group in _groups(levels).items()]
  dense = next(row for row in rows if row.setting == 0)
  dense = dense._replace(method="dense", setting=None, barriers={})
  return [dense, *(row for row in rows if row.setting or row.barriers)]


def _groups(levels: Sequence[Level]) -> dict[tuple[str, int], list[Level]]:
  """The seeds of each branch and level."""
  groups = {}
  for level in levels:
    groups.setdefault((level.branch, level.level), []).append(level)
  return groups


def _row(
  branch: str, level: int, group: Sequence[Level], lost: Mapping[int, float]
) -> Row:
  lines = {one.seed: one.line for one in group if one.line is not None}
  return Row(
    branch,
    level,
    values={**lost, **{one.seed: accuracy(one.metrics) for one in group}},
    density=_density(group),
    barriers={seed: 100 * barrier(line) for seed, line in lines.items()},
  )


def _density(group: Sequence[Level]) -> float:
  return float(np.mean([one.metrics["density"] for one in group]))


def compare(
  rows: Sequence[Row], expected: Sequence[tuple[str, str]]
) -> list[tuple[str, str, list[orders.Order]]]:
  """Compares branches level by level.

  Args:
    rows: The rows.
    expected: Pairs of branches, that which papers report to do worse first;
      `dense` is the dense run at every level.

  Returns:
    For each pair the two names, and an order for each level.
  """
  # Level 0 is one and the same run in all branches.
  pruned = [row for row in rows if row.setting != 0]
  return orders.by_pair(orders.compare(pruned, expected))


def write_report(
  workdir: Path,
  config: ml_collections.ConfigDict,
  levels: Sequence[Level],
  diverged: Mapping[int, str] = {},
) -> list[Row]:
  """Writes table.csv, report.md and its pictures; prints a short table.

  Args:
    workdir: Where they go.
    config: The config of the lottery tickets.
    levels: All levels of all seeds.
    diverged: By seed, the messages of those that diverged.

  Returns:
    The rows of table.csv.
  """
  reason = barred(data=config.base.data, model=config.base.model)
  rows = summarize(levels, diverged)
  rows = [row._replace(barred=reason) for row in rows]
  note = " ".join(
    [notes(rows), *(_LOST.format(*item) for item in diverged.items())]
  ).strip()
  compared = compare(rows, config.expected)
  with storage(workdir):
    pictures = _draw(workdir, config, rows, levels)
    lines = text.cells(_COLUMNS, rows)
    text.write_csv(workdir / "table.csv", lines)
    report = text.render(
      text.TEMPLATES / "lottery.md",
      name=config.name,
      rate=f"{100 * config.rate:g}",
      scope=config.scope,
      note=note,
      pictures=pictures,
      orders=[
        (_verdict(*pair), text.cells(_ORDER_COLUMNS, pair[-1]))
        for pair in compared
      ],
      table=lines,
    )
    (workdir / "report.md").write_text(f"{report}\n")
  text.print_table(
    f"{config.name}: test accuracy [%], {titles.seeds([len(config.seeds)])}",
    _by_level(rows),
    left=0,
  )
  said = [note, *(_verdict(*pair) for pair in compared)]
  print("\n".join(filter(None, said)))
  return rows


def _draw(
  workdir: Path,
  config: ml_collections.ConfigDict,
  rows: Sequence[Row],
  levels: Sequence[Level],
) -> dict[str, str]:
  """Draws the pictures; their files by their titles."""
  about = titles.of_means(config)
  draw_tickets(rows, config, workdir / "tickets.png")
  curves = _curves(levels, _learning_curve)
  write_curves(workdir / "curves.csv", curves, LEARNING)
  draw_curves(curves, LEARNING, workdir / "curves.png", title=about)
  pictures = {
    "Accuracy against weights left": "tickets.png",
    "Learning curves": "curves.png",
  }
  if any(row.barriers for row in rows):
    draw_barriers(rows, config, workdir / "barriers.png")
    lines = _curves([one for one in levels if one.line is not None], _line)
    write_curves(workdir / "lines.csv", lines, LINES)
    draw_curves(lines, LINES, workdir / "lines.png", title=about)
    pictures["Error barriers"] = "barriers.png"
    pictures["Error on the line between two children"] = "lines.png"
  return pictures


def draw_tickets(
  rows: Sequence[Row], config: ml_collections.ConfigDict, file: Path
) -> None:
  """Draws the accuracy of each branch against the weights that are left."""
  dense, *pruned = (row for row in rows if row.setting != 0)
  left = {row.setting: f"{100 * row.density:.3g}" for row in pruned}
  sparsities.lines(
    series(
      pruned,
      {row.method: (row.method, "") for row in pruned},
      lambda row: row.setting - 1,
    ),
    file,
    levels={"dense": dense.mean},
    ticks=[left[level] for level in sorted(left)],
    title=caption(titles.of(config), rows, level="dense"),
    xlabel="weights left [%]",
    ylabel=ACCURACY,
  )


def draw_barriers(
  rows: Sequence[Row], config: ml_collections.ConfigDict, file: Path
) -> None:
  """Draws the error barriers of branches against weights left and steps."""
  found = [
    lottery.Barriers(
      row.method,
      config.branches[row.method].get("step", 0),
      row.setting,
      100 * row.density,
      list(row.barriers.values()),
    )
    for row in rows
    if row.barriers
  ]
  about = titles.of_means(config)
  lottery.barriers(found, file, title=about)


def draw_curves(
  curves: Mapping[str, Sequence[lottery.Curve]],
  axes: tuple[str, str],
  file: Path,
  *,
  title: str,
) -> None:
  """Draws the curves of levels, a panel for each branch.

  Args:
    curves: By branch, its levels.
    axes: What x and y are: LEARNING or LINES.
    file: Where the PNG goes.
    title: What the nets are.
  """
  xlabel, ylabel = axes
  ylim = None
  if axes == LEARNING:  # the first steps would leave no room for the rest
    last = [curve.y[-1] for group in curves.values() for curve in group]
    margin = max(last) - min(last)
    ylim = (min(last) - margin - 1, max(last) + 1)
  lottery.panels(
    curves, file, title=title, xlabel=xlabel, ylabel=ylabel, ylim=ylim
  )


_LEVEL = ("branch", "level", "weights left [%]")


def write_curves(
  file: Path,
  curves: Mapping[str, Sequence[lottery.Curve]],
  axes: tuple[str, str],
) -> None:
  """Writes the points of curves as CSV."""
  lines = [
    (branch, str(curve.level), f"{curve.left:.2f}", f"{x:g}", f"{y:.3f}")
    for branch, group in curves.items()
    for curve in group
    for x, y in zip(curve.x, curve.y, strict=True)
  ]
  text.write_csv(file, [(*_LEVEL, *axes), *lines])


def read_curves(
  lines: Sequence[Mapping[str, str]], axes: tuple[str, str]
) -> dict[str, list[lottery.Curve]]:
  """Reads what `write_curves` wrote, from the lines of the CSV by header."""
  points: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
  for line in lines:
    key = tuple(line[header] for header in _LEVEL)
    points.setdefault(key, []).append(tuple(float(line[a]) for a in axes))
  curves: dict[str, list[lottery.Curve]] = {}
  for (branch, level, left), found in points.items():
    curve = lottery.Curve(int(level), float(left), *np.array(found).T)
    curves.setdefault(branch, []).append(curve)
  return curves


def _curves(
  levels: Sequence[Level], points: Callable[[Sequence[Level]], Points]
) -> dict[str, list[lottery.Curve]]:
  """By branch the curves of its levels, each of the points of all seeds."""
  curves = {}
  for (branch, level), group in _groups(levels).items():
    curve = lottery.Curve(level, 100 * _density(group), *points(group))
    curves.setdefault(branch, []).append(curve)
  return curves


def _learning_curve(group: Sequence[Level]) -> Points:
  """Steps, and test accuracies in percent, means over seeds."""
  x, y = run_plots.curves([one.history for one in group], "accuracy")
  return x, 100 * y.mean(0)


def _line(group: Sequence[Level]) -> Points:
  """Shares of the line, and test errors in percent, means over seeds."""
  y = 100 * np.mean([one.line for one in group], axis=0)
  return np.linspace(0, 1, len(y)), y


def _by_level(rows: Sequence[Row]) -> list[tuple[str, ...]]:
  """The accuracies of each branch, a line per level."""
  dense, *pruned = (row for row in rows if row.setting != 0)
  found = {(row.method, row.setting): row for row in pruned}
  branches = list(dict.fromkeys(row.method for row in pruned))
  mean = f"{dense.mean:.2f}"
  lines = [
    ("level", "weights left [%]", *branches),
    ("0", f"{100 * dense.density:.2f}", *[mean] * len(branches)),
  ]
  for level in sorted({row.setting for row in pruned}):
    own = [found.get((name, level)) for name in branches]
    left = next(100 * row.density for row in own if row)
    cells = [f"{row.mean:.2f}" if row else "-" for row in own]
    lines.append((str(level), f"{left:.2f}", *cells))
  return lines


def _verdict(low: str, high: str, found: Sequence[orders.Order]) -> str:
  """Says at how many levels a pair comes in the order that papers report."""
  ahead = sum(order.gain.mean > 0 for order in found)
  verdicts = orders.counts(found)
  sure, undecided, against = (verdicts.pop(v) for v in orders.VERDICTS)
  sentence = f"{high} above {low}: at {ahead} of {len(found)} levels"
  if sure + undecided + against:
    sentence += f", at {sure} of them with 95 % confidence"
  if against:
    sentence += f"; with 95 % confidence below at {against}"
  for reason, count in verdicts.items():
    where = "" if count == len(found) else f" at {count}"
    sentence += f"; {reason}{where}"
  return f"{sentence}."


_ORDER_COLUMNS = {
  "level": lambda o: str(_pruned(o).setting),
  "weights left [%]": lambda o: f"{100 * _pruned(o).density:.2f}",
  "lead": lambda o: f"{o.gain.mean:+.2f}",
  "95 % interval": lambda o: statistics.shown(*o.gain.interval, "+.2f"),
}


def _pruned(order: orders.Order) -> Row:
  """The row of an order that tells its level."""
  return order.low if order.high.setting is None else order.high
