"""Reports of pruned and repaired language models: report.md and its picture.

Every number comes from the runs; what papers found for other models stands
beside it, with that model's name.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments.config.entry import Cell
from experiments.errors import unknown
from experiments.plots import runs as run_plots
from experiments.plots import titles
from experiments.runs.workdir import storage
from experiments.tables import orders, text
from experiments.tables.rows import Row, barred, caption, draw_dots, notes

_PUBLISHED = "published, of another model"
# What the terminal leaves out first.
_LAST = (
  *(_PUBLISHED, "tested on", "trained weights", "dense", "non-zeros"),
  *("tokens/s", "95 % interval", "against dense"),
)
_TRAINED = 100  # steps of the dense model that are more than a smoke test


class Measure(NamedTuple):
  """The number that models are judged by.

  Attributes:
    name: Its name.
    lower_is_better: Whether less of it is better; if not, it is a share.
  """

  name: str
  lower_is_better: bool

  @property
  def title(self) -> str:
    """Its name and unit, for headers."""
    return self.name if self.lower_is_better else f"{self.name} [%]"

  def shown(self, value: float) -> str:
    """Formats a value for people, `-` if it is not finite."""
    if not np.isfinite(value):
      return "-"
    if not self.lower_is_better:
      return f"{100 * value:.1f}"
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"

  def interval(self, row: Row) -> str:
    """Formats the 95 % interval of a row, `-` if it has none."""
    low, high = row.interval
    if np.isinf(low):
      return "-"
    return f"{self.shown(low)} to {self.shown(high)}"

  def against(self, value: float, dense: float) -> str:
    """Formats a value relative to the dense model's."""
    if self.lower_is_better:
      return f"{value / dense:.3g}x"
    return f"{100 * (value - dense):+.1f}"


def number(value: float | None) -> float:
  """Reads a measure: None, which JSON has for what is not finite, as NaN."""
  return np.nan if value is None else value


def row(
  cell: Cell,
  results: Mapping[int | None, Mapping[str, Any]],
  measure: Measure,
  diverged: Mapping[int, str] = {},
  *,
  size: int | None = None,
  speed: tuple[float, float] | None = None,
) -> Row:
  """Sums up the models of a cell.

  Args:
    cell: What it is about.
    results: By seed the numbers of a model, see `tasks.evaluate`; by None those
      of a model that no seed changes.
    measure: The number that counts.
    diverged: By seed, the messages of runs that diverged.
    size: The weights of the dense model's kernels: one that was made narrower
      has fewer. By default as many as the models have.
    speed: As in `Row`.

  Returns:
    The row; its `nnz` is the largest of any seed.
  """
  first = next(iter(results.values()), {})
  values = {seed: number(one[measure.name]) for seed, one in results.items()}
  return Row(
    cell.method,
    cell.base or None,
    values={**values, **dict.fromkeys(diverged, np.nan)},
    nnz=max((one["nnz"] for one in results.values()), default=None),
    size=size or first.get("size"),
    speed=speed,
    trained=first.get("trained"),
    lost=diverged,
  )


def table(
  rows: Sequence[Row],
  measure: Measure,
  dense: float,
  published: Mapping[Cell, str],
  tested: str = "",
) -> list[tuple[str, ...]]:
  """Makes the header and cells of a table of language models.

  Args:
    rows: The rows.
    measure: What the values are.
    dense: The dense model's value.
    published: What papers found, by cell.
    tested: What the values are of, for the reader.

  Returns:
    The lines; columns that would be empty are left out.
  """
  columns = {
    "zeros": lambda r: r.setting or "dense",
    "method": lambda r: r.method,
    measure.title: lambda r: measure.shown(r.mean) + r.diverged,
    "against dense": lambda r: (
      measure.against(r.mean, dense) if r.finite else "-"
    ),
    "95 % interval": measure.interval,
    "dense": lambda r: measure.shown(dense) if tested else "-",
    "tested on": lambda r: tested or "-",
    "runs": lambda r: r.runs,
    "non-zeros": lambda r: (
      "-" if r.nnz is None else f"{100 * r.nnz / r.size:.2f} %"
    ),
    "tokens/s": lambda r: (
      "-" if r.speed is None else f"{r.speed[0]:,.1f} ({r.speed[1]:.2f}x)"
    ),
    "trained weights": lambda r: "-" if r.trained is None else f"{r.trained:,}",
    _PUBLISHED: lambda r: published.get(Cell(r.setting or "", r.method), "-"),
  }
  return text.cells(columns, rows, optional=columns)


def order_sentences(
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
  known = {name for row in rows for name in (row.label, row.method)}
  for pair in expected:
    for name in pair:
      if name not in known:
        raise unknown("row of the table", name, known)
  found = orders.compare(
    rows, expected, lower_is_better=measure.lower_is_better
  )
  return [
    f"{' and '.join(f'{r.label}: {measure.shown(r.mean)}' for r in order[:2])}"
    f": {order.sentence}."
    for order in found
  ]


def write_report(
  workdir: Path,
  config: ml_collections.ConfigDict,
  rows: Sequence[Row],
  measure: Measure,
  dense: float,
  missing: Collection[Cell] = (),
  *,
  tested: str = "",
) -> None:
  """Writes report.md, table.csv and models.png, and prints the table.

  Args:
    workdir: Where they go.
    config: Its `name` is the title; `published` holds lines (base, method, what
      papers found), and `expected` is as for `order_sentences`.
    rows: The rows, the dense model's not among them.
    measure: What the values are.
    dense: The dense model's value.
    missing: Cells that may have no row; no order is expected of those then.
    tested: As for `table`.
  """
  known = {name for row in rows for name in (row.label, row.method)}
  lost = {name for cell in missing for name in (str(cell), cell.method)} - known
  expected = [pair for pair in config.expected if not lost.intersection(pair)]
  published = {Cell(*line[:2]): line[2] for line in config.published}
  dense = number(dense)
  reason = _barred(config)
  rows = [row._replace(barred=reason) for row in rows]
  lines = table(rows, measure, dense, published, tested)
  sentences = order_sentences(rows, measure, expected)
  report = text.render(
    text.TEMPLATES / "models.md",
    title=config.name,
    table=lines,
    dense=measure.shown(dense),
    measure=measure.name,
    orders=sentences,
    note=notes(rows),
  )
  with storage(workdir):
    (workdir / "report.md").write_text(f"{report}\n")
    text.write_csv(workdir / "table.csv", lines)
    unit = 1 if measure.lower_is_better else 100
    draw(rows, measure, dense, config, workdir / "models.png", unit=unit)
  text.print_table(
    config.name, lines, last=_LAST, left=2, rest=f"{workdir / 'table.csv'}"
  )
  print("\n".join(filter(None, [notes(rows), *sentences])))
  print(f"\nThe report is {workdir / 'report.md'}")


def draw(
  rows: Sequence[Row],
  measure: Measure,
  dense: float,
  config: ml_collections.ConfigDict,
  file: Path,
  *,
  unit: float,
) -> None:
  """Draws the measure of every model, a panel for each model before.

  Args:
    rows: The rows, the dense model's not among them.
    measure: What the values are.
    dense: The dense model's value.
    config: Of which the title tells model and data.
    file: Where the PNG goes.
    unit: What values are multiplied by.
  """
  draw_dots(
    rows,
    file,
    unit=unit,
    levels={"dense": dense},
    title=caption(titles.of(config), rows, level="dense", drawn="bars"),
    xlabel=measure.title,
    log=measure.lower_is_better,
  )


def _barred(config: ml_collections.ConfigDict) -> str:
  """Says why there is no verdict: a random model that nobody has trained."""
  base, dense = config.get("base", config), config.get("dense")
  if dense and dense.get("steps", base.steps) >= _TRAINED:
    return ""
  return barred(model=base.model)


def write_run_report(
  workdir: Path,
  config: ml_collections.ConfigDict,
  history: Sequence[Mapping[str, Any]],
  name: str,
) -> None:
  """Writes the report of one run of fine-tuning: report.md and run.png.

  Args:
    workdir: Where they go.
    config: Its `name` is the title of the report.
    history: The records of metrics.jsonl.
    name: Of the measure.
  """
  columns = {
    "step": lambda r: str(r["step"]),
    "": lambda r: "before it is pruned again" if r["split"] == "merged" else "",
    name: lambda r: "not finite" if r[name] is None else f"{r[name]:.4g}",
    "non-zeros": lambda r: f"{100 * r['nnz'] / r['size']:.2f} %",
  }
  tests = [record for record in history if record["split"] != "train"]
  lines = text.cells(columns, tests)
  report = text.render(
    text.TEMPLATES / "finetuning.md",
    title=config.name,
    table=lines,
    measure=name,
  )
  with storage(workdir):
    about = f"{titles.of(config)}\none seed"
    run_plots.finetuning(history, name, workdir / "run.png", title=about)
    (workdir / "report.md").write_text(f"{report}\n")
