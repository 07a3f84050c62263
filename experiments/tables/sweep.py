"""The table of a sweep: the records of its runs, and what a paper prints.

Each run is a line of NAME_runs.csv; the rest is computed from that file alone.
A config file may have besides its `sweep`:

* `PUBLISHED`: by `Entry`, a published accuracy in percent and its source.
* `SAME`: False if those are of another net or other data, so that ours need not
  agree with them.
* `EXPECTED`: pairs of methods of which papers report the first to do worse.
"""

import csv
import pathlib
import types
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import statistics
from experiments.config import grid
from experiments.config.entry import Entry
from experiments.errors import UserError
from experiments.plots import sparsities, style
from experiments.runs import metrics, workdir
from experiments.tables import costs, orders, text
from experiments.tables.rows import Row, draw_settings, estimate_note, series

_DENSE = "dense"  # the method whose FLOPs the others' are relative to


class Record(NamedTuple):
  """A finished run, as a line of NAME_runs.csv.

  Attributes:
    method: The method of its row.
    sparsity: The sparsity of its row, None if it has none.
    seed: Its seed.
    accuracy: On the test set at the end, in percent.
    loss: On the test set at the end.
    nnz: Active weights at the end, all leaves counted.
    size: All weights.
    bytes: Of the weights that are left, 4 bytes each, and of masks, one bit for
      each weight of a sparse leaf.
    steps: Of training.
    training: FLOPs of the whole training for one example a step.
    inference: FLOPs of a forward pass of one example.
    run: Its directory.
    estimated: Whether its algorithm has no cost model, see `costs.Cost`.
  """

  method: str
  sparsity: float | None
  seed: int
  accuracy: float
  loss: float
  nnz: int
  size: int
  bytes: float
  steps: int
  training: float
  inference: float
  run: str
  estimated: bool = False


def collect_records(config: str, root: pathlib.Path) -> list[Record]:
  """Reads the finished runs of a sweep.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.

  Returns:
    A record each, in the order of the grid.

  Raises:
    UserError: If none is finished.
  """
  found, known = [], {}
  for entry, group in grid.rows(config).items():
    for one in group:
      folder = root / grid.name_of(one)
      if workdir.finished(folder) is None:
        continue
      history = metrics.read(folder)
      # Seeds do not change what a run costs, if its layers end alike.
      key = (entry, str(metrics.last_test(history)["layers"]))
      if key not in known:
        known[key] = costs.of(one, history)
      found.append(_record(entry, one, history, known[key], folder.name))
  if not found:
    raise UserError(
      f"{root} holds no finished run of {config}. Let the sweep come to its "
      "end, or give another --root; that of a sweep of FILE.py:ARG needs "
      "--arg=ARG."
    )
  return found


def _record(
  entry: Entry,
  config: ml_collections.ConfigDict,
  history: costs.History,
  cost: costs.Cost,
  run: str,
) -> Record:
  last = metrics.last_test(history)
  masked = [c["size"] for c in last["layers"].values() if c["nnz"] < c["size"]]
  return Record(
    *entry,
    seed=config.seed,
    accuracy=round(100 * last["accuracy"], 6),
    loss=last["loss"],
    nnz=last["nnz"],
    size=last["size"],
    bytes=4 * last["nnz"] + sum(masked) / 8,
    steps=config.steps,
    training=float(f"{cost.training * config.steps:.6g}"),
    inference=float(f"{cost.inference:.6g}"),
    run=run,
    estimated=cost.estimated,
  )


def save_records(
  file: pathlib.Path, records: Iterable[Record], *, command: str
) -> None:
  """Writes the runs as CSV, below the command that makes the file."""
  lines = [["" if x is None else str(x) for x in one] for one in records]
  text.write_csv(file, [Record._fields, *lines], command=command)


def load_records(file: pathlib.Path) -> list[Record]:
  """Reads the runs that `save_records` has written.

  Raises:
    UserError: If the file is missing or damaged.
  """
  kinds = {
    **Record.__annotations__,
    "sparsity": float,
    "estimated": lambda cell: cell == "True",
  }
  try:
    _, *lines = file.read_text().splitlines()
    return [
      Record(**{k: kinds[k](v) if v else None for k, v in line.items()})
      for line in csv.DictReader(lines)
    ]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} cannot be read as runs of a table: {error}") from (
      error
    )


def summarize(records: Iterable[Record], config: types.ModuleType) -> list[Row]:
  """Sums up runs by method and sparsity.

  Args:
    records: The runs.
    config: The config file, as `grid.module` imports it.

  Returns:
    The rows, in the order of their first runs.
  """
  groups: dict[Entry, list[Record]] = {}
  for one in records:
    entry = Entry(one.method, one.sparsity)
    groups.setdefault(entry, []).append(one)
  base = next((g for e, g in groups.items() if e.method == _DENSE), None)
  base = (base or next(iter(groups.values())))[0]
  published = getattr(config, "PUBLISHED", {})
  rows = []
  for entry, group in groups.items():
    value, source = published.get(entry, (None, ""))
    mean = {
      key: np.mean([getattr(one, key) for one in group])
      for key in ("training", "inference", "bytes", "nnz")
    }
    row = Row(
      *entry,
      values={one.seed: one.accuracy for one in group},
      nnz=mean["nnz"],
      size=group[0].size,
      training=mean["training"] / base.training,
      estimated=group[0].estimated,
      inference=mean["inference"] / base.inference,
      bytes=mean["bytes"],
      published=value,
      source=source,
      comparable=getattr(config, "SAME", True),
    )
    rows.append(row)
  return rows


_COLUMNS = {
  "method": lambda r: r.method,
  "zeros": lambda r: r.zeros,
  "test accuracy [%]": lambda r: r.spread,
  "95 % interval": lambda r: statistics.shown(*r.interval),
  "runs": lambda r: str(len(r.values)),
  "training FLOPs": lambda r: r.training_flops,
  "inference FLOPs": lambda r: f"{r.inference:.3f}x",
  "size [kB]": lambda r: f"{r.bytes / 1000:.1f}",
  "active weights": lambda r: f"{r.nnz:,.0f}",
  "published": lambda r: "-" if r.published is None else f"{r.published:g}",
  "within": lambda r: {None: "-", True: "yes", False: "no"}[r.within],
  "source": lambda r: r.source or "-",
}


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
  """Makes the header and cells of a sweep's table."""
  return text.cells(_COLUMNS, rows, optional=("published", "within", "source"))


class Part(NamedTuple):
  """A table in a report.

  Attributes:
    heading: Above it.
    lines: The table.
    note: Below it.
  """

  heading: str
  lines: Sequence[text.Line]
  note: str


def parts(rows: Sequence[Row], config: types.ModuleType) -> list[Part]:
  """Makes the tables of a sweep: its rows, and the orders of papers if any."""
  made = [Part("Table", table(rows), _NOTE + estimate_note(rows))]
  found = orders.compare(rows, getattr(config, "EXPECTED", ()))
  if found:
    counts = ", ".join(f"{n} {v}" for v, n in orders.counts(found).items())
    note = (
      f"Of {len(found)} published orders: {counts}. Differences are paired by "
      "seed; interval and p by Student's t."
    )
    heading = "The order that papers report"
    made.append(Part(heading, orders.table(found), note))
  return made


def draw_sparsities(rows: Sequence[Row], file: pathlib.Path) -> None:
  """Draws accuracy against sparsity."""
  draw_settings(rows, _styles(rows), file)


def draw_flops(rows: Sequence[Row], file: pathlib.Path) -> None:
  """Draws accuracy against training FLOPs."""
  sparsities.against_flops(series(rows, _styles(rows), x="training"), file)


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
  """The colours and line styles of methods.

  `RigL (uniform)` has RigL's colour and the line style of uniform; a method of
  one distribution is drawn as if by ERK.
  """
  features = {}
  for row in rows:
    base, _, kind = row.method.rstrip(")").partition(" (")
    if base != _DENSE:
      features[row.method] = (base, kind or "ERK")
  return {_DENSE: {"color": style.GREY}, **style.line_styles(features)}


_NOTE = (
  "Accuracy after the last step, mean ± standard deviation over seeds; the "
  "interval is that of the mean, 95 %, by Student's t. FLOPs are those of the "
  "whole training and of a forward pass, relative to dense, by the cost model "
  "of RigL's paper (appendix H). Size: 4 bytes a weight that is left, one bit "
  "of a mask for each of a sparse layer."
)
