"""The rows of all tables, of sweeps, lottery tickets and language models.

A row holds what the runs of one method at one setting measured. How a table
shows it, and where its numbers come from, is for the module of that table.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments import statistics
from experiments.config.entry import Entry, percent
from experiments.plots import sparsities, titles

Group = TypeVar("Group")
ACCURACY = "test accuracy [%]"
_NAMED = 10  # missing runs that a note names


class Row(NamedTuple):
  """The runs of one method at one setting, which differ in their seed.

  Attributes:
    method: The method; of lottery tickets the branch.
    setting: What it is run at: a sparsity, the name of a pruned model, a level
      of lottery tickets; None if there is only one, as for dense nets.
    values: By seed the final measure: accuracies in percent, or what `Measure`
      of a language model says; NaN for a seed that diverged; by None if no seed
      changes it.
    nnz: Active weights, the mean over seeds.
    size: All weights.
    density: Share of the prunable weights that are active.
    training: FLOPs of training, relative to dense.
    estimated: Whether `training` is not by a cost model of the method's own.
    inference: FLOPs of a forward pass, relative to dense.
    bytes: Of weights and masks, the mean over seeds.
    trained: How many weights fine-tuning trains.
    speed: Tokens that a language model generates in a second, and how many
      times as many that is as the dense model's.
    barriers: By seed the error barrier between two children, in percent.
    published: The published measure.
    source: Where that is published.
    comparable: Whether it is of the same net and data.
    lost: By seed, why a run that was planned is not finished; one that diverged
      is among `values`, too.
    barred: Why the row allows no verdict, see `barred`.
  """

  method: str
  setting: float | str | int | None
  values: Mapping[int | None, float]
  nnz: float | None = None
  size: int | None = None
  density: float | None = None
  training: float | None = None
  estimated: bool = False
  inference: float | None = None
  bytes: float | None = None
  trained: int | None = None
  speed: tuple[float, float] | None = None
  barriers: Mapping[int, float] = {}
  published: float | None = None
  source: str = ""
  comparable: bool = True
  lost: Mapping[int, str] = {}
  barred: str = ""

  @property
  def label(self) -> str:
    """Method and setting, for people."""
    if self.setting is None:
      return self.method
    level = "level " if isinstance(self.setting, int) else ""
    return f"{self.method}, {level}{self.zeros}"

  @property
  def zeros(self) -> str:
    """Its setting, for people; `-` if it has none."""
    if isinstance(self.setting, float):
      return percent(self.setting)
    return "-" if self.setting is None else str(self.setting)

  @property
  def finite(self) -> list[float]:
    """The values of the seeds that did not diverge."""
    return [value for value in self.values.values() if np.isfinite(value)]

  @property
  def mean(self) -> float:
    """The mean over the seeds that did not diverge; NaN if there are none."""
    return float(np.mean(self.finite)) if self.finite else np.nan

  @property
  def interval(self) -> tuple[float, float]:
    """The 95 % interval of the mean; infinite if it has none."""
    return statistics.interval(list(self.values.values()))

  @property
  def spread(self) -> str:
    """The mean with the standard deviation over seeds, for people."""
    text = f"{self.mean:.2f}" if self.finite else "-"
    if len(self.finite) > 1:
      text += f" ± {np.std(self.finite, ddof=1):.2f}"
    return text + self.diverged

  @property
  def diverged(self) -> str:
    """How many seeds diverged, to stand behind a mean; empty if none did."""
    lost = len(self.values) - len(self.finite)
    return f" ({lost} of {len(self.values)} diverged)" if lost else ""

  @property
  def runs(self) -> str:
    """The number of its runs, for people: `2 of 3` where some are missing."""
    there, planned = len(self.values), len({*self.values, *self.lost})
    return str(there) if there == planned else f"{there} of {planned}"

  @property
  def training_flops(self) -> str:
    """FLOPs of training relative to dense, for people; `~` if estimated."""
    return f"{'~' if self.estimated else ''}{times(self.training)}"

  @property
  def undecidable(self) -> str:
    """Why the row allows no verdict; empty if it does."""
    return self.barred or statistics.undecidable(list(self.values.values()))

  @property
  def within(self) -> str:
    """Whether the published measure is in the interval: yes, no or why not.

    `-` where nothing comparable is published, or seeds do not spread.
    """
    low, high = self.interval
    if self.published is None or not self.comparable:
      return "-"
    if self.undecidable or np.isinf(low):
      return self.undecidable or "-"
    return "yes" if low <= self.published <= high else "no"


def times(share: float | None) -> str:
  """Formats what is relative to dense, `-` if it is not known."""
  return "-" if share is None else f"{share:.3f}x"


def diverged(why: str) -> bool:
  """Returns whether that is why a run of training a net is not finished."""
  return "not finite" in why


def accuracy(metrics: Mapping[str, Any]) -> float:
  """Reads the accuracy of an evaluation.

  Args:
    metrics: Its record.

  Returns:
    The accuracy in percent; NaN if the loss is not finite: a network that
    diverged answers by chance, and no mean may hold that.
  """
  loss = metrics["loss"]
  diverged = loss is None or not np.isfinite(loss)
  return np.nan if diverged else 100 * metrics["accuracy"]


def barred(**parts: Mapping[str, Any]) -> str:
  """Says why numbers allow no verdict, however many seeds there are.

  Args:
    **parts: Parts of the config, by what they are: `data`, `model`.

  Returns:
    The reason, if one of them is random; empty if not.

  Example:
    >>> barred(data={"name": "mnist1d"}, model={"name": "random"})
    'random model: no verdict'
    >>> barred(data={"name": "cifar10", "random": 64})
    'random data: no verdict'
  """
  for what, part in parts.items():
    # Data sets draw as many examples as their keyword `random` says.
    if part.get("name") == "random" or part.get("random"):
      return f"random {what}: no verdict"
  return ""


def notes(rows: Sequence[Row]) -> str:
  """Says what stands below a table: marks, missing runs, why no verdict."""
  found = []
  if any(row.estimated for row in rows):
    found.append(
      "FLOPs marked ~ are of algorithms without a cost model: the mean over "
      "steps of three forward passes with the masks of that step."
    )
  if lost := _lost(rows):
    planned = sum(len({*row.values, *row.lost}) for row in rows)
    named = "; ".join(lost[:_NAMED]) + ("; ..." if lost[_NAMED:] else "")
    found.append(
      f"{len(lost)} of {planned} runs have no number, and means are of the "
      f"others: {named}."
    )
  for reason in dict.fromkeys(row.barred for row in rows if row.barred):
    found.append(
      f"{reason.capitalize()}; these numbers say only that the program runs."
    )
  return " ".join(found)


def _lost(rows: Iterable[Row]) -> list[str]:
  """Names the planned runs that are not finished, and says why."""
  return [
    f"{row.label}, seed {seed} ({why.partition(';')[0]})"
    for row in rows
    for seed, why in row.lost.items()
  ]


def at_middle(
  groups: Mapping[Entry, Group],
) -> tuple[dict[str, Group], float | None]:
  """Picks what one picture shows: one sparsity, and methods that have none.

  Args:
    groups: Anything by method and sparsity.

  Returns:
    What there is at the middle sparsity, or at none, by method; and that
    sparsity, None if there is none.
  """
  found = sorted({e.sparsity for e in groups if e.sparsity is not None})
  middle = found[len(found) // 2] if found else None
  chosen = {
    e.method: g for e, g in groups.items() if e.sparsity in (None, middle)
  }
  return chosen, middle


def series(
  rows: Iterable[Row],
  features: Mapping[str, tuple[str, Hashable]],
  x: Callable[[Row], float],
) -> dict[str, sparsities.Series]:
  """Makes the lines of a picture, one for each method that has features.

  Args:
    rows: The rows of a table; those without a finite value are left out.
    features: By method, as for `style.places`.
    x: Where the point of a row is.

  Returns:
    By method, its line.
  """
  groups: dict[str, list[Row]] = {}
  for row in rows:
    if row.finite and row.method in features:
      groups.setdefault(row.method, []).append(row)
  return {
    name: sparsities.Series(
      features[name],
      [x(row) for row in groups[name]],
      [row.label for row in groups[name]],
      np.array([row.mean for row in groups[name]]),
      *np.array([row.interval for row in groups[name]]).T,
    )
    for name in features
    if name in groups
  }


def caption(
  title: str, rows: Iterable[Row], *, level: str = "", drawn: str = "shaded"
) -> str:
  """Makes the title of a picture: what it shows, and of how many seeds.

  Args:
    title: What it shows.
    rows: The rows that it shows.
    level: What its dotted line is, if it has one.
    drawn: How it shows intervals.

  Returns:
    The title, and below it the number of seeds, which of them diverged, and why
    there is no verdict if there can be none.
  """
  rows = [row for row in rows if row.values]
  counts = [len(row.values) for row in rows if None not in row.values] or [1]
  notes = []
  if max(counts) > 1:
    notes = [titles.means(counts), f"{drawn}: 95 % intervals (t)"]
  if level:
    notes.append(f"dotted: {level}")
  if lost := sum(len(row.values) - len(row.finite) for row in rows):
    notes.append(f"{lost} diverged, not drawn")
  notes.append(min((row.undecidable for row in rows), default=""))
  notes = filter(None, notes)
  return f"{title}\n{'; '.join(notes)}"


def draw_settings(
  rows: Sequence[Row],
  features: Mapping[str, tuple[str, Hashable]],
  file: Path,
  *,
  title: str,
  chance: float | None = None,
) -> None:
  """Draws the accuracy of each method at each sparsity.

  Args:
    rows: The rows; those without a sparsity are level lines.
    features: By method, as for `style.places`.
    file: Where the PNG goes.
    title: What it shows.
    chance: The accuracy of guesses.
  """
  levels = {r.method: r.mean for r in rows if r.setting is None and r.finite}
  varied = [row for row in rows if row.setting is not None]
  if not varied:
    varied = [row for row in rows if row.method != "dense"]
    levels = {row.method: row.mean for row in rows if row not in varied}
  settings = sorted({row.setting for row in varied if row.finite})
  level = ", ".join(levels)
  if len(settings) < 2:
    title = caption(title, rows, level=level, drawn="bars")
    draw_dots(varied, file, title=title, xlabel=ACCURACY, levels=levels)
    return
  sparsities.lines(
    series(varied, features, lambda row: settings.index(row.setting)),
    file,
    levels=levels,
    chance=chance,
    ticks=[f"{100 * setting:g}" for setting in settings],
    title=caption(title, rows, level=level),
    xlabel="zeros [%]",
    ylabel=ACCURACY,
  )


def draw_dots(
  rows: Iterable[Row],
  file: Path,
  *,
  unit: float = 1,
  levels: Mapping[str, float] = {},
  **options: Any,
) -> None:
  """Draws the measure of each method, a panel for each setting.

  Args:
    rows: The rows; those without a finite value are left out.
    file: Where the PNG goes.
    unit: What measures are multiplied by.
    levels: Values of methods without a setting, in the unit of `rows`.
    **options: Of `sparsities.dots`.
  """
  panels: dict[str, dict[str, tuple[float, float, float]]] = {}
  for row in rows:
    if row.finite:
      panel = panels.setdefault("" if row.setting is None else row.zeros, {})
      panel[row.method] = tuple(unit * x for x in (row.mean, *row.interval))
  levels = {name: unit * level for name, level in levels.items()}
  sparsities.dots(panels, file, levels=levels, **options)
