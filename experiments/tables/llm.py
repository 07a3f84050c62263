"""Tables of pruned and repaired language models: report.md and its picture.

Every number comes from the runs; what papers found for other models stands
beside it, with that model's name.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
import rich.console
import rich.table

from experiments import statistics as intervals
from experiments.errors import unknown
from experiments.plots import runs as plots
from experiments.runs.workdir import storage
from experiments.tables import text as csv_tables

_PUBLISHED = "published, of another model"


class Cell(NamedTuple):
  """What runs that differ in their seed have in common.

  Attributes:
    base: The model before: "50 %", "2:4" or "wanda 60 %"; "" for dense ones.
    method: What was done to it.
  """

  base: str
  method: str

  def __str__(self):
    return f"{self.method}, {self.base}" if self.base else self.method

  @property
  def folder(self) -> str:
    """A name for files."""
    name = f"{self.base}-{self.method}" if self.base else self.method
    return re.sub(r"[^\w.-]+", "_", name.replace(" %", "").replace(":", "of"))


class Row(NamedTuple):
  """A line of the table.

  Attributes:
    cell: What it is about.
    values: The measure of each seed's model.
    nnz: The non-zeros of its layers' kernels, the most of any seed.
    size: How many weights they have.
    trained: How many weights were trained; None where nothing is.
  """

  cell: Cell
  values: tuple[float, ...]
  nnz: int
  size: int
  trained: int | None = None

  @property
  def mean(self) -> float:
    """The mean over seeds."""
    return statistics.fmean(self.values)


class Measure(NamedTuple):
  """The number that models are judged by.

  Attributes:
    name: Its name.
    lower_is_better: Whether less of it is better.
  """

  name: str
  lower_is_better: bool

  @property
  def unit(self) -> str:
    """What follows its name in headers."""
    return "" if self.lower_is_better else " [%]"

  def shown(self, value: float) -> str:
    """A value for people."""
    if not self.lower_is_better:
      return f"{100 * value:.1f}"
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"

  def against(self, value: float, dense: float) -> str:
    """What became of the dense model's value, for people."""
    if self.lower_is_better:
      return f"{value / dense:.3g}x"
    return f"{100 * (value - dense):+.1f}"


def lines(
  rows: Sequence[Row],
  measure: Measure,
  dense: float,
  published: Mapping[Cell, str],
) -> list[tuple[str, ...]]:
  """The table's cells, a header first.

  Args:
    rows: The rows.
    measure: What the values are.
    dense: The dense model's value.
    published: What papers found, by cell.

  Returns:
    The lines; columns that would be empty are left out.
  """
  columns: dict[str, Callable[[Row], str]] = {
    "zeros": lambda r: r.cell.base or "dense",
    "method": lambda r: r.cell.method,
    measure.name + measure.unit: lambda r: measure.shown(r.mean),
    "against dense": lambda r: measure.against(r.mean, dense),
    "95 % interval": lambda r: _interval(measure, r.values),
    "runs": lambda r: str(len(r.values)),
    "non-zeros": lambda r: f"{100 * r.nnz / r.size:.2f} %",
    "trained weights": lambda r: "-" if r.trained is None else f"{r.trained:,}",
    _PUBLISHED: lambda r: published.get(r.cell, "-"),
  }
  made = [tuple(columns)]
  made += [tuple(show(row) for show in columns.values()) for row in rows]
  kept = [
    i for i in range(len(columns)) if any(line[i] != "-" for line in made[1:])
  ]
  return [tuple(line[i] for i in kept) for line in made]


def _interval(measure: Measure, values: Sequence[float]) -> str:
  low, high = intervals.interval(values)
  if not np.isfinite([low, high]).all():
    return "-"
  return f"{measure.shown(low)} to {measure.shown(high)}"


def order(
  rows: Sequence[Row], measure: Measure, expected: Sequence[tuple[str, str]]
) -> list[str]:
  """Says whether rows come in the order that papers report.

  Args:
    rows: The rows.
    measure: What the values are.
    expected: Pairs of cells, as `str` names them, the worse one first; or of
      methods, which are compared wherever both are.

  Returns:
    A sentence for each pair.

  Raises:
    UserError: If a name is no row's.
  """
  found = {str(row.cell): row for row in rows}
  methods = dict.fromkeys(row.cell.method for row in rows)
  said = []
  for pair in expected:
    for name in pair:
      if name not in found and name not in methods:
        raise unknown("row of the table", name, {*found, *methods})
    if all(name in found for name in pair):
      said.append(_compared(*(found[name] for name in pair), measure))
      continue
    for base in dict.fromkeys(row.cell.base for row in rows):
      two = [found.get(str(Cell(base, method))) for method in pair]
      if None not in two:
        said.append(_compared(*two, measure))
  return said


def _compared(worse: Row, better: Row, measure: Measure) -> str:
  counts = {len(worse.values), len(better.values)} - {1}
  runs = min(counts, default=1)  # one value is that of every seed
  gain = np.subtract(worse.values[:runs], better.values[:runs])
  if not measure.lower_is_better:
    gain = -gain
  verdict = intervals.difference(gain).sentence
  first, second = (
    f"{row.cell}: {measure.shown(row.mean)}" for row in (worse, better)
  )
  return f"{first} and {second}: {verdict}."


def write(
  workdir: Path,
  title: str,
  rows: Sequence[Row],
  measure: Measure,
  *,
  dense: float,
  published: Mapping[Cell, str],
  expected: Sequence[tuple[str, str]],
) -> None:
  """Writes report.md, table.csv and models.png, and prints the table.

  Args:
    workdir: Where they go.
    title: Of the report.
    rows: The rows, the dense model's not among them.
    measure: What the values are.
    dense: The dense model's value.
    published: What papers found, by cell.
    expected: As for `order`.
  """
  table = lines(rows, measure, dense, published)
  ordered = order(rows, measure, expected)
  listed = "\n".join(f"- {line}" for line in ordered)
  said = f"\nThe order that papers report:\n\n{listed}\n" if ordered else ""
  text = _TEXT.format(
    title=title,
    table=csv_tables.table(table),
    dense=measure.shown(dense),
    measure=measure.name,
    order=said,
  )
  with storage(workdir):
    (workdir / "report.md").write_text(text)
    csv_tables.write(workdir / "table.csv", table)
    _draw(rows, measure, dense, workdir / "models.png")
  printed = rich.table.Table(title=title)
  shown = [i for i, name in enumerate(table[0]) if name != _PUBLISHED]
  for i in shown:  # the rest in report.md, for room
    printed.add_column(table[0][i], justify="left" if i < 2 else "right")
  for line in table[1:]:
    printed.add_row(*(line[i] for i in shown))
  rich.console.Console().print(printed)
  for line in ordered:
    print(line)
  print(f"\nThe report is {workdir / 'report.md'}")


def write_run(
  workdir: Path, title: str, history: Sequence[Mapping[str, Any]], name: str
) -> None:
  """Writes the report of one run: report.md, and run.png.

  Args:
    workdir: Where they go.
    title: Of the report.
    history: The records of metrics.jsonl.
    name: Of the measure.
  """
  table = [("step", "", name, "non-zeros")]
  for record in history:
    if record["split"] != "train":
      merged = record["split"] == "merged"
      table.append(
        (
          str(record["step"]),
          "before it is pruned again" if merged else "",
          f"{record[name]:.4g}",
          f"{100 * record['nnz'] / record['size']:.2f} %",
        )
      )
  with storage(workdir):
    _draw_run(history, name, workdir / "run.png")
    (workdir / "report.md").write_text(
      _RUN.format(title=title, table=csv_tables.table(table), measure=name)
    )


def _draw_run(
  history: Sequence[Mapping[str, Any]], name: str, file: Path
) -> None:
  """The losses, and the measure, over steps."""
  training = [record for record in history if record["split"] == "train"]
  tests = [record for record in history if record["split"] == "test"]
  with matplotlib.rc_context(plots.STYLE):
    picture, both = plots.figure(columns=2, width=10)
    names = [k for k in training[0] if k not in ("step", "split")]
    names = names if len(names) > 2 else ["loss"]  # the one there is
    for key, colour in zip(names, plots.cycle(), strict=False):
      both[0].plot(
        [r["step"] for r in training],
        [r[key] for r in training],
        label=key.replace("_", " "),
        color=colour,
      )
    both[0].set(xlabel="step", ylabel="training loss")
    both[0].legend()
    both[1].plot([r["step"] for r in tests], [r[name] for r in tests], "o-k")
    both[1].set(xlabel="step", ylabel=f"test {name}")
    plots.save(picture, file)


def _draw(
  rows: Sequence[Row], measure: Measure, dense: float, file: Path
) -> None:
  """The measure of each method at each base, with 95 % intervals."""
  bases = list(dict.fromkeys(row.cell.base for row in rows))
  methods = list(dict.fromkeys(row.cell.method for row in rows))
  scale = 1 if measure.lower_is_better else 100
  with matplotlib.rc_context(plots.STYLE):
    picture, axes = plots.figure(width=max(7, 1.3 * len(bases) + 2.5))
    axes.axhline(scale * dense, label="dense", lw=1, ls=":", color="#555555")
    for i, (method, colour) in enumerate(
      zip(methods, plots.cycle(), strict=False)
    ):
      some = [row for row in rows if row.cell.method == method]
      at = np.array([bases.index(row.cell.base) for row in some])
      at = at + 0.6 * ((i + 0.5) / len(methods) - 0.5)
      means = np.array([row.mean for row in some])
      ends = np.array([intervals.interval(row.values) for row in some]).T
      error = np.where(np.isfinite(ends), np.abs(ends - means), 0)
      marker = "os^Dvph*X<"[i % 10]  # colours are eight
      axes.errorbar(
        at,
        scale * means,
        scale * error,
        fmt=marker,
        ms=5,
        lw=1,
        label=method,
        color=colour,
      )
    axes.set_xticks(range(len(bases)), bases)
    axes.set(xlabel="zeros", ylabel=measure.name + measure.unit)
    if measure.lower_is_better:
      axes.set_yscale("log")
      plain = matplotlib.ticker.StrMethodFormatter("{x:g}")
      axes.yaxis.set_major_formatter(plain)
      between = matplotlib.ticker.LogFormatter(minor_thresholds=(2, 0.5))
      axes.yaxis.set_minor_formatter(between)
    picture.legend(loc="outside right center")
    plots.save(picture, file)


_TEXT = """\
# {title}

{table}

The dense model's {measure} is {dense}. Non-zeros are those of the kernels of
all layers; embedding and head stay dense. Intervals are of the mean over runs
(t).
{order}
![{measure} of every model](models.png)
"""

_RUN = """\
# {title}

{table}

Non-zeros are those of the kernels of all layers.

![training losses, and test {measure}](run.png)
"""
