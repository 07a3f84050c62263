"""Draws the pictures of tables from their CSVs: no run is needed.

The command in the first line of a CSV tells the config, and so the net and the
data in the title; all else follows from the table.
"""

import ast
import csv
import pathlib
import re
import shlex
import types
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from experiments import cli, statistics
from experiments.config import grid
from experiments.errors import UserError
from experiments.plots import sparsities, style, titles
from experiments.runs.workdir import storage
from experiments.tables import llm, lottery, markdown, rows, sweep
from experiments.tables.llm import Measure
from experiments.tables.rows import Row

ROOT = pathlib.Path(__file__).parents[2]
_PERCENT = r"([\d.]+) %"
_INTERVAL = "95 % interval"


class Table(NamedTuple):
  """A table as its CSV has it.

  Attributes:
    file: The CSV.
    command: What made it.
    lines: Its lines, by header.
    root: Where the config file of its command lies.
  """

  file: pathlib.Path
  command: str
  lines: Sequence[Mapping[str, str]]
  root: pathlib.Path

  @property
  def headers(self) -> list[str]:
    """Its headers."""
    return list(self.lines[0])

  @property
  def grid(self) -> grid.Grid:
    """Which runs its command made.

    Raises:
      UserError: If that names no config file.
    """
    words, changes = cli.split(shlex.split(self.command))
    named = [w.partition("=")[2] for w in words if w.startswith("--config=")]
    if not named:
      raise UserError(f"{self.file}: its command names no --config")
    return grid.Grid(str(self.root / named[0]), changes)

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The config that its command names."""
    config = grid.base(self.grid)
    seeds = dict(self.grid.changes).get("seeds")
    if seeds:  # a key that drivers have, and single runs have not
      config.seeds = ast.literal_eval(seeds)
    return config


def read(file: pathlib.Path, root: pathlib.Path = ROOT) -> Table:
  """Reads a table.

  Args:
    file: Its CSV, the first line of which is `# ` and a command.
    root: Where the config file of that command lies.

  Raises:
    UserError: If there is no such file, or it is no table.
  """
  try:
    command, *lines = file.read_text().splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"{file} cannot be read: {error}") from error
  found = list(csv.DictReader(lines))
  if not command.startswith("# ") or not found:
    raise UserError(
      f"{file} is no table of ours: its first line is not `# ` and the command "
      "that made it, or nothing follows"
    )
  return Table(file, command[2:], found, root)


def draw(
  file: pathlib.Path, out: pathlib.Path, root: pathlib.Path = ROOT
) -> list[pathlib.Path]:
  """Draws the pictures of a table, which say in the file what they are of.

  Args:
    file: Its CSV.
    out: The directory of the pictures.
    root: Where the config file of its command lies.

  Returns:
    Their files.

  Raises:
    UserError: If the table cannot be read, or there is no picture of its kind.
  """
  table = read(file, root)
  headers = set(table.headers)
  for needed, make in _KINDS:
    if needed <= headers:
      with storage(out):
        out.mkdir(parents=True, exist_ok=True)
        made = make(table, out / file.stem.removesuffix("_runs"))
        for png in made:
          style.sign(png, source(file))
        return made
  raise UserError(
    f"no picture is known of a table with the columns {', '.join(headers)}"
  )


def source(file: pathlib.Path) -> str:
  """Names a table and its contents, but for the command."""
  _, _, body = file.read_bytes().partition(b"\n")
  return f"{file.name} {zlib.crc32(body):08x}"


def csv_of(png: pathlib.Path) -> pathlib.Path:
  """Finds the CSV of a picture, by its name."""
  stem, known = png.stem, list(png.parent.glob("*.csv"))
  for end in ("_flops", "_tickets", "_barriers"):
    stem = stem.removesuffix(end)
  for name in (f"{stem}_runs.csv", f"{stem}.csv"):
    if png.with_name(name) in known:
      return png.with_name(name)
  raise UserError(f"{png} has no CSV beside it")


def _beside(stem: pathlib.Path, end: str = "") -> pathlib.Path:
  return stem.with_name(f"{stem.name}{end}.png")


def _sweep(table: Table, stem: pathlib.Path) -> list[pathlib.Path]:
  """Of a sweep: accuracy against sparsity, and against FLOPs."""
  nothing_published = types.ModuleType("config")
  found = sweep.summarize(sweep.load_records(table.file), nothing_published)
  return sweep.draw(found, table.config, stem)


def _comparison(table: Table, stem: pathlib.Path) -> list[pathlib.Path]:
  """Of a comparison: accuracy against sparsity, or by method."""
  runs = grid.rows(table.grid)
  file = _beside(stem)
  rows.draw_settings(
    accuracies(table),
    markdown.features({entry: group[0] for entry, group in runs.items()}),
    file,
    title=titles.of(table.config),
    chance=titles.chance(table.config),
  )
  return [file]


def accuracies(table: Table) -> list[Row]:
  """Reads the rows of a comparison: a line for each, or a column a sparsity."""
  columns = [h for h in table.headers if re.fullmatch(_PERCENT, h)]
  found = []
  for line in table.lines:
    method, runs = line["method"], line["runs"]
    cells = {header: line[header] for header in columns}
    if len({*cells.values()}) == 1:  # a method without a sparsity
      cells = {"": line[columns[0]]}
    for zeros, cell in cells.items():
      found.append(Row(method, _share(zeros), _values(cell, runs)))
    if not columns:
      name, _, zeros = method.rpartition(", ")
      if _share(zeros) is None:
        name = method
      values = _values(line[rows.ACCURACY], runs, line.get(_INTERVAL, "-"))
      found.append(Row(name, _share(zeros), values))
  return found


def _share(zeros: str) -> float | None:
  matched = re.fullmatch(_PERCENT, zeros)
  return float(matched[1]) / 100 if matched else None


def _values(
  cell: str, runs: str, interval: str = "-"
) -> dict[int | None, float]:
  """Makes numbers that have the mean, the spread and the count of a cell.

  They stand for the seeds' own, which tables do not hold. The spread is that of
  the interval, if there is one: it has more digits.
  """
  count = int(runs.split()[0])
  lost = re.search(r"\((\d+) of \d+ diverged\)", cell)
  lost = int(lost[1]) if lost else 0
  mean, _, deviation = cell.partition(" (")[0].partition(" ± ")
  if mean == "-":
    return dict.fromkeys(range(count), np.nan)
  spread = float(deviation or 0)
  left = count - lost
  places = np.linspace(-1, 1, left) if left > 1 else np.zeros(left)
  if left > 1:
    places /= np.std(places, ddof=1)
  if interval != "-":
    low, high = map(_number, interval.split(" to "))
    spread = (high - low) / 2 / statistics.half_width(left)
  found = [*(_number(mean) + spread * places), *[np.nan] * lost]
  return dict(enumerate(map(float, found)))


def _number(text: str) -> float:
  return float(text.replace(",", ""))


def _models(table: Table, stem: pathlib.Path) -> list[pathlib.Path]:
  """Of language models: the measure of each method, by model before."""
  measured = table.headers[2]
  measure = Measure(measured.removesuffix(" [%]"), "[%]" not in measured)
  several = max(int(line["runs"].split()[0]) for line in table.lines)
  found = []
  for line in table.lines:
    values = _values(line[measured], line["runs"], line.get(_INTERVAL, "-"))
    if len(values) == 1 < several:  # no seed changes it
      values = {None: values[0]}
    found.append(Row(line["method"], line["zeros"], values))
  file = _beside(stem)
  llm.draw(found, measure, dense(table, measure), table.config, file, unit=1)
  return [file]


def dense(table: Table, measure: Measure) -> float:
  """The dense model's value: a column, or what the others are relative to."""
  found = []
  for line in table.lines:
    relative = line["against dense"].removesuffix("x")
    if line.get("dense", "-") != "-":
      return _number(line["dense"])
    if relative != "-":
      value = _number(line[measure.title].partition(" (")[0])
      by = float(relative)
      found.append(value / by if measure.lower_is_better else value - by)
  return float(np.median(found))


def _tickets(table: Table, stem: pathlib.Path) -> list[pathlib.Path]:
  """Of lottery tickets: accuracy against weights left, and error barriers."""
  found = []
  for line in table.lines:
    level, barrier = int(line["level"]), line["error barrier [%]"]
    values = map(float, line["by seed"].split())
    found.append(
      Row(
        line["branch"],
        None if line["branch"] == "dense" else level,
        values=dict(enumerate(values)),
        density=float(line["weights left [%]"]) / 100,
        # The mean of seeds; the table does not hold their own.
        barriers={} if barrier == "-" else {0: float(barrier)},
      )
    )
  made = [_beside(stem, "_tickets")]
  lottery.draw_tickets(found, table.config, made[0])
  if any(row.barriers for row in found):
    made.append(_beside(stem, "_barriers"))
    lottery.draw_barriers(found, table.config, made[-1])
  return made


def _curves(table: Table, stem: pathlib.Path) -> list[pathlib.Path]:
  """Of lottery tickets: learning curves, or errors on lines between nets."""
  axes = tuple(table.headers[-2:])
  curves = lottery.read_curves(table.lines, axes)
  config = table.config
  file = _beside(stem)
  lottery.draw_curves(curves, axes, file, title=titles.of_means(config))
  return [file]


def _times(table: Table, stem: pathlib.Path) -> list[pathlib.Path]:
  """Of networks: the time to an accuracy."""
  file = _beside(stem)
  draw_times(table.lines, file)
  return [file]


def draw_times(lines: Sequence[Mapping[str, str]], file: pathlib.Path) -> None:
  """Draws the time to an accuracy, in epochs of dense training.

  Args:
    lines: By header, those of the table of `benchmarks.accuracy`.
    file: Where the PNG goes.
  """
  goals = [header for header in lines[0] if header.startswith(_TIME)]
  panels = {
    goal.removeprefix("dense epochs "): {
      _network(line): (float(line[goal]), -np.inf, np.inf)
      for line in lines
      if line[goal] != "-"
    }
    for goal in goals
  }
  counts = [int(line["seeds"]) for line in lines]
  sparsities.dots(
    panels,
    file,
    title=f"{_PERCEPTRON}\n{titles.means(counts)}",
    xlabel="time [epochs of dense training]",
    zero=True,
  )


def _network(line: Mapping[str, str]) -> str:
  name = line["network"]
  return name if name == "dense" else f"RigL, {name}"


_TIME = "dense epochs to "
_PERCEPTRON = "Time to a test accuracy: perceptron on Fashion-MNIST"
# By the headers that a table of a kind has.
_KINDS = (
  ({"sparsity", "seed", "accuracy"}, _sweep),
  ({"branch", "by seed"}, _tickets),
  ({"branch", *lottery.LEARNING}, _curves),
  ({"branch", *lottery.LINES}, _curves),
  ({"network", "seeds"}, _times),
  ({"zeros", "method", "against dense", "runs"}, _models),
  ({"method", "runs"}, _comparison),
)
