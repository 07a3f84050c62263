"""Pictures of tables: a measure against sparsity, or against training FLOPs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots import style


class Series(NamedTuple):
  """A method's line in a picture: one point for each row of its table.

  Attributes:
    name: For the legend.
    x: Where each point is: a tick, or a number.
    labels: What each point is called.
    mean: [points] means over seeds.
    low: [points] lower ends of their 95 % intervals; infinite where none is.
    high: [points] their upper ends.
    style: Keywords of `Axes.plot`, `color` among them.
  """

  name: str
  x: Sequence[Any]
  labels: Sequence[str]
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  style: Mapping[str, Any]

  def draw(self, axes: Any, at: Sequence[float]) -> None:
    """Draws the points and their intervals at these x."""
    known = np.isfinite(self.low)
    error = np.where(known, [self.mean - self.low, self.high - self.mean], 0)
    options = {"marker": "o", **self.style}
    axes.plot(at, self.mean, ms=4, lw=1.2, label=self.name, **options)
    axes.errorbar(
      at, self.mean, error, fmt="none", lw=1, alpha=0.5, ecolor=options["color"]
    )


def against_settings(
  series: Sequence[Series],
  settings: Sequence[float | str],
  file: Path,
  *,
  levels: Mapping[str, float],
  xlabel: str = "zeros [%]",
  ylabel: str = "test accuracy [%]",
  log: bool = False,
) -> None:
  """Draws a measure of each method at each setting, with 95 % intervals.

  Settings stand at equal distances, since what matters happens near the end.

  Args:
    series: The methods, their `x` among the settings.
    settings: Sparsities or names, in order.
    file: Where the PNG goes.
    levels: Values of methods without a setting, as level lines.
    xlabel: What the settings are.
    ylabel: What the measure is.
    log: Whether its axis is logarithmic; no point is then cut off.
  """
  order = {setting: i for i, setting in enumerate(settings)}
  ticks = [s if isinstance(s, str) else f"{100 * s:g}" for s in settings]
  width = max(9, 1.3 * len(ticks) + 2.5)
  with style.picture(file, width=width, height=5) as (figure, axes):
    for name, level in levels.items():
      axes.axhline(level, label=name, lw=1, ls=":", color=style.GREY)
    for i, one in enumerate(series):
      # Side by side, so that the intervals can be told apart.
      shift = 0.5 * ((i + 0.5) / len(series) - 0.5)
      one.draw(axes, [order[x] + shift for x in one.x])
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if log:
      axes.set_yscale("log")
      _plain_numbers(axes.yaxis)
    else:
      _cut_off(axes, series, levels.values())
    figure.legend(loc="outside right center")


def against_flops(series: Sequence[Series], file: Path) -> None:
  """Draws accuracy against the FLOPs of the whole training.

  Args:
    series: The methods; their `x` are FLOPs relative to dense.
    file: Where the PNG goes.
  """
  with style.picture(file, width=9, height=5) as (figure, axes):
    for one in series:
      one.draw(axes, one.x)
    axes.set_xscale("log")
    axes.set(
      xlabel="training FLOPs, relative to dense", ylabel="test accuracy [%]"
    )
    _cut_off(axes, series)
    figure.legend(loc="outside right center")


def floor(means: Sequence[float]) -> float:
  """Computes where a picture of accuracies ends below.

  Args:
    means: Those of all points.

  Returns:
    Tukey's far-out fence, q1 - 3 (q3 - q1) of the quartiles; minus infinity
    where no point is below it.

  Example:
    >>> print(floor([88.0, 89.0, 90.0, 90.0, 37.0]))
    85.0
  """
  low, high = np.percentile(means, [25, 75])
  fence = low - 3 * (high - low)
  return float(fence) if fence > min(means) else -np.inf


def _cut_off(
  axes: Any, series: Sequence[Series], levels: Sequence[float] = ()
) -> None:
  """Ends the axis at 100 % and above far outliers, which it names instead."""
  axes.set_ylim(top=min(100, axes.get_ylim()[1]))
  means = np.concatenate([*(one.mean for one in series), [*levels]])
  bottom = floor(means)
  if not np.isfinite(bottom):
    return
  axes.set_ylim(bottom, max(means) + 0.1 * (max(means) - bottom))
  below = [
    f"below: {label}, {mean:.1f}"
    for one in series
    for label, mean in zip(one.labels, one.mean, strict=True)
    if mean < bottom
  ]
  axes.annotate(
    "\n".join(below),
    (0.01, 0.02),
    xycoords="axes fraction",
    fontsize=8,
    bbox={"color": "white", "alpha": 0.8},
  )


def _plain_numbers(axis: Any) -> None:
  """Labels a logarithmic axis 20 and 200, a short one in between, too."""
  from matplotlib import ticker

  axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  axis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
