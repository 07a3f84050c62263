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
from experiments.plots import sparsities, style, titles
from experiments.runs import metrics, workdir
from experiments.tables import costs, orders, rows, text
from experiments.tables.rows import Row

_DENSE = "dense"  # the method that is drawn as a level
_FINISHED, _UNFINISHED, _FRESH = "finished", "not finished", "not begun"


class Record(NamedTuple):
  """A planned run, as a line of NAME_runs.csv.

  What is measured is None where it is not finished.

  Attributes:
    method: The method of its row.
    sparsity: The sparsity of its row, None if it has none.
    seed: Its seed.
    accuracy: On the test set at the end, in percent; NaN if it diverged.
    loss: On the test set at the end; None if it is not finite.
    nnz: Active weights at the end, all leaves counted.
    size: All weights.
    bytes: Of the weights that are left, 4 bytes each, and of masks, one bit for
      each weight of a sparse leaf.
    steps: Of training.
    training: FLOPs of the whole training for one example a step.
    inference: FLOPs of a forward pass of one example.
    run: Its directory.
    estimated: Whether its algorithm has no cost model, see `costs.Cost`.
    dense_training: FLOPs of the whole training of the config file's own model
      without zeros, for its own steps, by arithmetic: what `training` is
      relative to, whether the sweep has a dense row or not.
    dense_inference: FLOPs of a forward pass of that model.
    barred: Why it allows no verdict, see `rows.barred`.
    state: `finished`, `not finished`, `not begun`, or how it failed.
  """

  method: str
  sparsity: float | None
  seed: int
  accuracy: float | None
  loss: float | None
  nnz: int | None
  size: int | None
  bytes: float | None
  steps: int
  training: float | None
  inference: float | None
  run: str
  estimated: bool
  dense_training: float
  dense_inference: float
  barred: str
  state: str


def collect_records(
  config: grid.Grid | str, root: pathlib.Path
) -> list[Record]:
  """Reads the runs of a sweep.

  Args:
    config: Which runs; or the config file alone, with its argument.
    root: The directory of all runs.

  Returns:
    A record of each planned run, in the order of the grid.

  Raises:
    UserError: If none is finished.
  """
  plan, dense, known = grid.rows(config), None, {}
  found = []
  for entry, group in plan.items():
    for one in group:
      folder = root / grid.name_of(one)
      state = _state(folder)
      record = Record(
        *(*entry, one.seed, *[None] * 5, one.steps, None, None, folder.name),
        estimated=False,
        **(dense or (dense := _dense(config))),
        barred=rows.barred(data=one.data, model=one.model),
        state=state,
      )
      if state == _FINISHED:
        history = metrics.read(folder)
        # Seeds do not change what a run costs, if its layers end alike.
        key = (entry, str(metrics.last_test(history)["layers"]))
        if key not in known:
          known[key] = costs.of(one, history)
        record = _measured(record, history, known[key])
      found.append(record)
  if not any(one.state == _FINISHED for one in found):
    raise UserError(
      f"{root} holds no finished run of {grid.of(config)}: {_what_else(root)}"
    )
  return found


def _what_else(root: pathlib.Path) -> str:
  """Says what a directory without runs of a sweep holds, and what to do."""
  if not root.is_dir():
    return "there is no such directory. Give another --root."
  if (root / "config.json").exists():
    return (
      "it is the workdir of a command of experiments.main, whose table is "
      f"{root / 'report.md'}. Give the --root of an experiments.sweep."
    )
  count = len(list(root.glob("*/finished.json")))
  if count:
    return (
      f"its {count} finished runs are of another config or argument. A sweep "
      "of FILE.py:ARG needs --arg=ARG, one with --config.key=value the same."
    )
  return "none has come to its end. Give the command of the sweep again."


def _dense(config: grid.Grid | str) -> dict[str, float]:
  """The FLOPs of the config file's own model without zeros."""
  base = grid.base(config)
  base = base.get("base", base)  # of a comparison
  training, inference = costs.dense(base)
  return {
    "dense_training": _digits(training * base.steps),
    "dense_inference": _digits(inference),
  }


def _digits(flops: float) -> float:
  return float(f"{flops:.6g}")


def _state(folder: pathlib.Path) -> str:
  """Whether a run of a sweep is finished, and if not why."""
  if workdir.finished(folder) is not None:
    return _FINISHED
  name = folder.name
  for file in (folder.parent / "logs").glob("*.txt"):
    for line in reversed(file.read_text(errors="replace").splitlines()):
      head, _, why = line.partition(": ")
      # Of its own log, and of that of a population.
      if head == name or (head == "Error" and file.stem == name):
        return f"failed: {why}"
  return _UNFINISHED if folder.exists() else _FRESH


def _measured(
  record: Record, history: costs.History, cost: costs.Cost
) -> Record:
  last = metrics.last_test(history)
  masked = [c["size"] for c in last["layers"].values() if c["nnz"] < c["size"]]
  return record._replace(
    accuracy=round(rows.accuracy(last), 6),
    loss=last["loss"],
    nnz=last["nnz"],
    size=last["size"],
    bytes=4 * last["nnz"] + sum(masked) / 8,
    training=_digits(cost.training * record.steps),
    inference=_digits(cost.inference),
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

  def value(key: str, cell: str) -> Any:
    if key in ("method", "run", "barred", "state"):
      return cell
    if key == "estimated":
      return cell == "True"
    number = int if key in ("seed", "nnz", "size", "steps") else float
    return number(cell) if cell else None

  try:
    _, *lines = file.read_text().splitlines()
    return [
      Record(**{k: value(k, v) for k, v in line.items()})
      for line in csv.DictReader(lines)
    ]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{file} cannot be read as runs of a table: {error}. Make it again from "
      "the runs: python -m experiments.tables --table=NAME --root=DIR"
    ) from error


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
  published = getattr(config, "PUBLISHED", {})
  found = []
  for entry, group in groups.items():
    value, source = published.get(entry, (None, ""))
    done = [one for one in group if one.state == _FINISHED]
    row = Row(
      *entry,
      values={
        one.seed: np.nan if one.accuracy is None else one.accuracy
        for one in group
        if one.state == _FINISHED or rows.diverged(one.state)
      },
      lost={one.seed: one.state for one in group if one not in done},
      published=value,
      source=source,
      comparable=getattr(config, "SAME", True),
      barred=group[0].barred,
    )
    if done:
      mean = {
        key: np.mean([getattr(one, key) for one in done])
        for key in ("training", "inference", "bytes", "nnz")
      }
      row = row._replace(
        nnz=mean["nnz"],
        size=done[0].size,
        training=mean["training"] / done[0].dense_training,
        estimated=done[0].estimated,
        inference=mean["inference"] / done[0].dense_inference,
        bytes=mean["bytes"],
      )
    found.append(row)
  return found


_COLUMNS = {
  "method": lambda r: r.method,
  "zeros": lambda r: r.zeros,
  "test accuracy [%]": lambda r: r.spread,
  "95 % interval": lambda r: statistics.shown(*r.interval),
  "runs": lambda r: r.runs,
  "training FLOPs (1x: dense, computed)": lambda r: r.training_flops,
  "inference FLOPs (1x: dense, computed)": lambda r: rows.times(r.inference),
  "size [kB]": lambda r: "-" if r.bytes is None else f"{r.bytes / 1000:.1f}",
  "active weights": lambda r: "-" if r.nnz is None else f"{r.nnz:,.0f}",
  "published": lambda r: "-" if r.published is None else f"{r.published:g}",
  "within": lambda r: r.within,
  "source": lambda r: r.source or "-",
}


def table(found: Sequence[Row]) -> list[tuple[str, ...]]:
  """Makes the header and cells of a sweep's table."""
  return text.cells(_COLUMNS, found, optional=("published", "within", "source"))


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


def parts(found: Sequence[Row], config: types.ModuleType) -> list[Part]:
  """Makes the tables of a sweep: its rows, and the orders of papers if any."""
  note = f"{_NOTE} {rows.notes(found)}".strip()
  made = [Part("Table", table(found), note)]
  compared = orders.compare(found, getattr(config, "EXPECTED", ()))
  if compared:
    counts = ", ".join(f"{n} {v}" for v, n in orders.counts(compared).items())
    note = (
      f"Of {len(compared)} published orders: {counts}. Differences are paired "
      "by seed; interval and p by Student's t."
    )
    heading = "The order that papers report"
    made.append(Part(heading, orders.table(compared), note))
  return made


def draw(
  found: Sequence[Row], config: ml_collections.ConfigDict, stem: pathlib.Path
) -> list[pathlib.Path]:
  """Draws the pictures of a sweep.

  Args:
    found: Its rows.
    config: Its config file's own config.
    stem: What the files are called, without an ending.

  Returns:
    Their files: accuracy against sparsity, if rows have one, and FLOPs.
  """
  title, chance = titles.of(config), titles.chance(config)
  made = [stem.with_name(f"{stem.name}_flops.png")]
  draw_flops(found, made[0], title=title)
  if any(row.setting is not None for row in found):
    made.append(stem.with_name(f"{stem.name}.png"))
    draw_sparsities(found, made[1], title=title, chance=chance)
  return made


def draw_sparsities(
  found: Sequence[Row],
  file: pathlib.Path,
  *,
  title: str,
  chance: float | None = None,
) -> None:
  """Draws accuracy against sparsity."""
  kinds = _features(found)
  rows.draw_settings(found, kinds, file, title=title, chance=chance)


def draw_flops(found: Sequence[Row], file: pathlib.Path, *, title: str) -> None:
  """Draws accuracy against training FLOPs."""
  levels = {r.method: r.mean for r in found if r.method == _DENSE and r.finite}
  sparsities.lines(
    rows.series(found, _features(found), lambda row: row.training),
    file,
    levels=levels,
    xscale="log",
    title=rows.caption(title, found, level=", ".join(levels)),
    xlabel="training FLOPs / dense",
    ylabel=rows.ACCURACY,
  )


def _features(found: Sequence[Row]) -> dict[str, tuple[str, str]]:
  """By method its name and its distribution: `RigL (uniform)` has both."""
  return style.name_parts(row.method for row in found if row.method != _DENSE)


_NOTE = (
  "Accuracy after the last step, mean ± standard deviation over seeds; the "
  "interval is that of the mean, 95 %, by Student's t. FLOPs are those of the "
  "whole training and of a forward pass, by the cost model of RigL's paper "
  "(appendix H); 1x is the config's own model without zeros, trained for its "
  "own steps, by the same arithmetic. Active weights are counted from masks: a "
  "few that have just grown may still be 0. Size: 4 bytes a weight that is "
  "left, one bit of a mask for each of a sparse layer."
)
