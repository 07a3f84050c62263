"""The rows of all tables, of sweeps, lottery tickets and language models.

A row holds what the runs of one method at one setting measured. How a table
shows it, and where its numbers come from, is for the module of that table.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments import statistics
from experiments.config.entry import Entry, percent
from experiments.plots import sparsities

Group = TypeVar("Group")


class Row(NamedTuple):
  """The runs of one method at one setting, which differ in their seed.

  Attributes:
    method: The method; of lottery tickets the branch.
    setting: What it is run at: a sparsity, the name of a pruned model, a level
      of lottery tickets; None if there is only one, as for dense nets.
    values: By seed the final measure: accuracies in percent, or what `Measure`
      of a language model says; by None if no seed changes it.
    nnz: Active weights, the mean over seeds.
    size: All weights.
    density: Share of the prunable weights that are active.
    training: FLOPs of training, relative to dense.
    estimated: Whether `training` is not by a cost model of the method's own.
    inference: FLOPs of a forward pass, relative to dense.
    bytes: Of weights and masks, the mean over seeds.
    trained: How many weights fine-tuning trains.
    barriers: By seed the error barrier between two children, in percent.
    published: The published measure.
    source: Where that is published.
    comparable: Whether it is of the same net and data.
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
  barriers: Mapping[int, float] = {}
  published: float | None = None
  source: str = ""
  comparable: bool = True

  @property
  def label(self) -> str:
    """Method and setting, for people."""
    if self.setting is None:
      return self.method
    text = self.setting
    if isinstance(text, float):
      text = percent(text)
    elif isinstance(text, int):
      text = f"level {text}"
    return f"{self.method}, {text}"

  @property
  def zeros(self) -> str:
    """Its sparsity, for people; `-` if it has none."""
    return "-" if self.setting is None else percent(self.setting)

  @property
  def mean(self) -> float:
    """The mean over seeds."""
    return float(np.mean(list(self.values.values())))

  @property
  def interval(self) -> tuple[float, float]:
    """The 95 % interval of the mean; infinite if it has none."""
    return statistics.interval(list(self.values.values()))

  @property
  def spread(self) -> str:
    """The mean with the standard deviation over seeds, for people."""
    values = list(self.values.values())
    if len(values) < 2:
      return f"{self.mean:.2f}"
    return f"{self.mean:.2f} ± {np.std(values, ddof=1):.2f}"

  @property
  def training_flops(self) -> str:
    """FLOPs of training relative to dense, for people; `~` if estimated."""
    return f"{'~' if self.estimated else ''}{self.training:.3f}x"

  @property
  def within(self) -> bool | None:
    """Whether the published measure is in the interval; None if unknown."""
    low, high = self.interval
    if self.published is None or not self.comparable or np.isinf(low):
      return None
    return low <= self.published <= high


def estimate_note(rows: Iterable[Row]) -> str:
  """Explains the mark `~`, where a row has it."""
  if not any(row.estimated for row in rows):
    return ""
  return (
    " FLOPs marked ~ are of algorithms without a cost model: the mean over "
    "steps of three forward passes with the masks of that step."
  )


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
  rows: Sequence[Row],
  styles: Mapping[str, Mapping[str, Any]],
  *,
  x: str = "setting",
  unit: float = 1,
) -> list[sparsities.Series]:
  """Makes the lines of a picture, one for each method that has a style.

  Args:
    rows: The rows of a table.
    styles: By method, keywords of `Axes.plot`.
    x: The attribute of rows that says where a point is.
    unit: What measures are multiplied by.
  """
  groups = {m: [row for row in rows if row.method == m] for m in styles}
  return [
    sparsities.Series(
      name,
      [getattr(row, x) for row in group],
      [row.label for row in group],
      unit * np.array([row.mean for row in group]),
      *(unit * np.array([row.interval for row in group]).T),
      styles[name],
    )
    for name, group in groups.items()
    if group
  ]


def draw_settings(
  rows: Sequence[Row],
  styles: Mapping[str, Mapping[str, Any]],
  file: Path,
  *,
  unit: float = 1,
  levels: Mapping[str, float] = {},
  **options: Any,
) -> None:
  """Draws the measure of each method at each setting.

  Args:
    rows: The rows; those without a setting are level lines.
    styles: By method, keywords of `Axes.plot`.
    file: Where the PNG goes.
    unit: What measures are multiplied by.
    levels: More level lines, in the unit of `rows`.
    **options: Of `sparsities.against_settings`.
  """
  fixed = {row.method: row.mean for row in rows if row.setting is None}
  varied = [row for row in rows if row.setting is not None]
  settings = list(dict.fromkeys(row.setting for row in varied))
  if all(isinstance(setting, float) for setting in settings):
    settings.sort()
  sparsities.against_settings(
    series(varied, styles, unit=unit),
    settings,
    file,
    levels={k: unit * v for k, v in {**levels, **fixed}.items()},
    **options,
  )
