"""A sweep as a table: from the records of its runs to what a paper prints.

Each run is a line of NAME_runs.csv; the rest is computed from that file alone.
A config file may have besides its `sweep`:

* `PUBLISHED`: by `Entry`, a published accuracy in percent and its source.
* `SAME`: False if those are of another net or other data, so that ours need not
  agree with them.
* `EXPECTED`: pairs of methods of which papers report the first to do worse.
"""

import csv
import itertools
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tabulate

from experiments import statistics
from experiments.config import grid
from experiments.config.entry import Entry, percent
from experiments.errors import UserError
from experiments.runs import metrics
from experiments.runs import workdir as workdir_lib
from experiments.tables import costs
from experiments.tables import text as csv_tables

_DENSE = "dense"  # the method whose FLOPs the others' are relative to


class Record(NamedTuple):
  """A finished run, as a line of NAME_runs.csv.

  Attributes:
    method: The method of its row.
    sparsity: The sparsity of its row, None if it has none.
    seed: Its seed.
    accuracy: On the test set at the end, in percent.
    loss: Likewise.
    nnz: Active weights at the end, all leaves counted.
    size: All weights.
    bytes: Of the weights that are left, 4 bytes each, and of masks, one bit for
      each weight of a sparse leaf.
    steps: Of training.
    training: FLOPs of the whole training for one example a step.
    inference: FLOPs of a forward pass of one example.
    run: Its directory.
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

  @property
  def entry(self) -> Entry:
    """Its row."""
    return Entry(self.method, self.sparsity)


class Row(NamedTuple):
  """A line of the table.

  Attributes:
    entry: Method and sparsity.
    accuracy: By seed, in percent.
    low: The lower end of the 95 % interval of the mean, by Student's t.
    high: Its upper end; both infinite where no spread can be told.
    training: FLOPs of the whole training, relative to the dense row.
    inference: Of a forward pass, likewise.
    bytes: The mean of the runs.
    nnz: Likewise, active weights.
    published: A published accuracy, or None.
    source: Where that is from.
    within: Whether it is in the interval; None if that cannot be said.
  """

  entry: Entry
  accuracy: dict[int, float]
  low: float
  high: float
  training: float
  inference: float
  bytes: float
  nnz: float
  published: float | None = None
  source: str = ""
  within: bool | None = None

  @property
  def mean(self) -> float:
    """The mean accuracy."""
    return float(np.mean(list(self.accuracy.values())))

  @property
  def std(self) -> float:
    """Its standard deviation over seeds; NaN of a single one."""
    if len(self.accuracy) < 2:
      return float("nan")
    return float(np.std(list(self.accuracy.values()), ddof=1))


class Order(NamedTuple):
  """Two rows of which papers report the first to do worse.

  Attributes:
    low: The first.
    high: The second.
    gain: How much better the second is here, in points.
  """

  low: Entry
  high: Entry
  gain: statistics.Difference


def collect(config: str, root: pathlib.Path) -> list[Record]:
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
      if workdir_lib.finished(folder) is None:
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


def _record(entry, config, history, cost, run) -> Record:
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
  )


def save(
  file: pathlib.Path, records: Iterable[Record], *, command: str
) -> None:
  """Writes the runs, below the command that makes the file."""
  lines = [["" if x is None else str(x) for x in one] for one in records]
  csv_tables.write(file, [Record._fields, *lines], command=command)


def load(file: pathlib.Path) -> list[Record]:
  """Reads what `save` has written.

  Raises:
    UserError: If it cannot be.
  """
  kinds = Record.__annotations__
  try:
    _, *lines = file.read_text().splitlines()
    return [
      Record(
        **{
          k: None if not v else (float if k == "sparsity" else kinds[k])(v)
          for k, v in line.items()
        }
      )
      for line in csv.DictReader(lines)
    ]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} cannot be read as runs of a table: {error}") from (
      error
    )


def rows(records: Iterable[Record], config: types.ModuleType) -> list[Row]:
  """Sums up runs by row.

  Args:
    records: The runs.
    config: The config file, as `grid.module` imports it.

  Returns:
    The rows, in the order of their first runs.
  """
  groups: dict[Entry, list[Record]] = {}
  for one in records:
    groups.setdefault(one.entry, []).append(one)
  base = next((g for e, g in groups.items() if e.method == _DENSE), None)
  base = base or next(iter(groups.values()))
  published = getattr(config, "PUBLISHED", {})
  same = getattr(config, "SAME", True)
  return [
    _row(e, g, base[0], *published.get(e, (None, "")), same=same)
    for e, g in groups.items()
  ]


def _row(entry, group, base, value, source, *, same) -> Row:
  accuracy = {one.seed: one.accuracy for one in group}
  low, high = statistics.interval(list(accuracy.values()))
  told = same and value is not None and np.isfinite([low, high]).all()
  return Row(
    entry=entry,
    accuracy=accuracy,
    low=low,
    high=high,
    training=np.mean([one.training for one in group]) / base.training,
    inference=np.mean([one.inference for one in group]) / base.inference,
    bytes=np.mean([one.bytes for one in group]),
    nnz=np.mean([one.nnz for one in group]),
    published=value,
    source=source,
    within=bool(low <= value <= high) if told else None,
  )


def orders(
  found: Sequence[Row], expected: Iterable[tuple[str, str]]
) -> list[Order]:
  """Holds the order that papers report against the rows.

  Args:
    found: The rows.
    expected: Pairs of methods, the lower one first.

  Returns:
    An order for each pair and sparsity that both have.
  """
  by_entry = {row.entry: row for row in found}
  sparsities = dict.fromkeys(row.entry.sparsity for row in found)
  made = []
  for (low, high), sparsity in itertools.product(expected, sparsities):
    pair = [by_entry.get(Entry(name, sparsity)) for name in (low, high)]
    if None in pair:
      continue
    first, second = pair
    gain = statistics.paired(first.accuracy, second.accuracy)
    if gain is not None:
      made.append(Order(first.entry, second.entry, gain))
  return made


def lines(found: Sequence[Row]) -> list[tuple[str, ...]]:
  """The table's header and cells."""
  header = (
    "method",
    "zeros",
    "test accuracy [%]",
    "95 % interval",
    "runs",
    "training FLOPs",
    "inference FLOPs",
    "size [kB]",
    "active weights",
  )
  printed = any(row.published is not None for row in found)
  compared = any(row.within is not None for row in found)
  if printed:
    header += ("published",)
  if compared:
    header += ("within",)
  if printed:
    header += ("source",)
  made = [header]
  for row in found:
    spread = "" if np.isnan(row.std) else f" ± {row.std:.2f}"
    cells = (
      row.entry.method,
      "-" if row.entry.sparsity is None else percent(row.entry.sparsity),
      f"{row.mean:.2f}{spread}",
      statistics.shown(row.low, row.high),
      str(len(row.accuracy)),
      f"{row.training:.3f}x",
      f"{row.inference:.3f}x",
      f"{row.bytes / 1000:.1f}",
      f"{row.nnz:,.0f}",
    )
    if printed:
      cells += ("-" if row.published is None else f"{row.published:g}",)
    if compared:
      cells += ({None: "-", True: "yes", False: "no"}[row.within],)
    if printed:
      cells += (row.source or "-",)
    made.append(cells)
  return made


def order_lines(found: Sequence[Order]) -> list[tuple[str, ...]]:
  """Header and cells of the orders."""
  header = ("lower", "higher", "zeros", "points", "95 % interval", "p", "runs")
  made = [(*header, "the published order")]
  for one in found:
    made.append(
      (
        one.low.method,
        one.high.method,
        "-" if one.low.sparsity is None else percent(one.low.sparsity),
        f"{one.gain.mean:+.2f}",
        statistics.shown(*one.gain.interval, "+.2f"),
        "-" if np.isnan(one.gain.p) else f"{one.gain.p:.2g}",
        str(one.gain.n),
        one.gain.verdict,
      )
    )
  return made


def latex(cells: Sequence[Sequence[str]]) -> str:
  """A header and cells as a table of LaTeX's package booktabs."""
  header, *rest = cells
  return tabulate.tabulate(
    rest,
    header,
    tablefmt="latex_booktabs",
    disable_numparse=True,
    colalign=("left", *["right"] * (len(header) - 1)),
  )


def summary(found: Sequence[Order]) -> Mapping[str, Any]:
  """How many of the orders hold, are undecided, or are reversed."""
  verdicts = [one.gain.verdict for one in found]
  return {v: verdicts.count(v) for v in ("holds", "undecided", "reversed")}
