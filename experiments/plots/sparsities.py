"""Pictures of tables: a measure against sparsity, or against training FLOPs."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots import style, titles


class Series(NamedTuple):
  """A method's line in a picture: one point for each row of its table.

  Attributes:
    features: As for `style.panels`.
    x: [points] where they are.
    labels: What each point is called.
    mean: [points] means over seeds.
    low: [points] lower ends of their 95 % intervals; infinite where none is.
    high: [points] their upper ends.
  """

  features: tuple[str, Hashable]
  x: Sequence[float]
  labels: Sequence[str]
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray

  @property
  def error(self) -> np.ndarray:
    """[2, points] from the means to the ends of intervals; 0 without one."""
    ends = [self.mean - self.low, self.high - self.mean]
    return np.where(np.isfinite(self.low), ends, 0)


def lines(
  series: Mapping[str, Series],
  file: Path,
  *,
  levels: Mapping[str, float] = {},
  ticks: Sequence[str] = (),
  xscale: str = "linear",
  ylabel: str = "test accuracy [%]",
  **options: Any,
) -> None:
  """Draws accuracies of methods over something, with 95 % intervals.

  Args:
    series: By method, its line.
    file: Where the PNG goes.
    levels: Values of methods that are at no x, as level lines.
    ticks: What stands at x = 0, 1, ...; points of a panel are then drawn side
      by side.
    xscale: Of the axis.
    ylabel: What the measure is.
    **options: Of `style.grid`.
  """
  means = [mean for one in series.values() for mean in one.mean]
  bottom = floor([*means, *levels.values()])

  def draw(
    axes: Any, name: str, offset: float, *, color: str, label: str | None
  ) -> None:
    one = series[name]
    at = np.add(one.x, 0.08 * offset * bool(ticks))
    if label is None:
      axes.plot(at, one.mean, lw=0.8, zorder=1, color=color)
      return
    axes.plot(at, one.mean, "o-", ms=4, lw=1.4, label=label, color=color)
    axes.errorbar(
      at, one.mean, one.error, fmt="none", lw=1, alpha=0.6, ecolor=color
    )

  def finish(axes: Any, names: Sequence[str]) -> None:
    for level in levels.values():
      axes.axhline(level, lw=1, ls=":", color=style.GREY, zorder=1.5)
    if xscale == "log":
      axes.set_xscale(xscale)
      _plain_numbers(axes.xaxis)
    if ticks:
      # All of them in a large panel, and as many as there is room for else.
      every = 1 if len(names) == len(series) else -(-len(ticks) // 6)
      at = range(0, len(ticks), every)
      axes.set_xticks(at, [ticks[i] for i in at])
    axes.set_ylim(top=min(100, axes.get_ylim()[1]))
    if np.isfinite(bottom):
      highest = max([*means, *levels.values()])
      axes.set_ylim(bottom, highest + 0.1 * (highest - bottom))
      _name_below(axes, [series[name] for name in names], bottom)

  features = {name: one.features for name, one in series.items()}
  style.multiples(features, draw, file, finish=finish, ylabel=ylabel, **options)


def dots(
  panels: Mapping[str, Mapping[str, tuple[float, float, float]]],
  file: Path,
  *,
  title: str,
  xlabel: str,
  levels: Mapping[str, float] = {},
  log: bool = False,
) -> None:
  """Draws a measure of methods, a line of the page each, with 95 % intervals.

  For settings that have no order, or for a single one.

  Args:
    panels: By setting and method, the mean and the ends of its interval, which
      are infinite where there is none.
    file: Where the PNG goes.
    title: Above all panels.
    xlabel: What the measure is.
    levels: Values without a setting, as vertical lines.
    log: Whether the axis is logarithmic.
  """
  names = list(dict.fromkeys(name for one in panels.values() for name in one))
  height = 0.5 + 0.24 * len(names)
  with style.grid(
    file,
    len(panels),
    title=title,
    xlabel=xlabel,
    height=height,
    sharey=True,
    sharex=True,
  ) as (_, all_axes):
    for axes, (setting, found) in zip(all_axes, panels.items(), strict=True):
      for level in levels.values():
        axes.axvline(level, lw=1, ls=":", color=style.GREY)
      for name, (mean, *ends) in found.items():
        at = names.index(name)
        axes.plot(mean, at, "o", ms=4.5, color=style.DOT)
        if np.isfinite(ends).all():
          axes.plot(ends, [at, at], lw=1.4, color=style.DOT)
      axes.set_title(titles.published(setting), fontsize=10)
      axes.set_yticks(range(len(names)), map(titles.published, names))
      axes.set_ylim(len(names) - 0.4, -0.6)
      if log:
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.tick_params(axis="x", which="both", labelsize=8)


def floor(means: Sequence[float]) -> float:
  """Computes where a picture of accuracies ends below.

  Args:
    means: Those of all points.

  Returns:
    Tukey's far-out fence, q1 - 3 (q3 - q1) of the quartiles; minus infinity
    where it would not leave out most of the axis.

  Example:
    >>> print(floor([88.0, 89.0, 90.0, 90.0, 37.0]))
    82.0
  """
  if not len(means):
    return -np.inf
  low, high = np.percentile(means, [25, 75])
  fence = low - 3 * (high - low)
  gained, left = fence - min(means), max(means) - fence
  return float(fence) if gained > left else -np.inf


def _name_below(axes: Any, series: Sequence[Series], bottom: float) -> None:
  """Names the points below the end of the axis."""
  below = [
    f"below: {titles.published(label)}, {mean:.1f}"
    for one in series
    for label, mean in zip(one.labels, one.mean, strict=True)
    if mean < bottom
  ]
  axes.annotate(
    "\n".join(below),
    (0.01, 0.02),
    xycoords="axes fraction",
    fontsize=7,
    bbox={"color": "white", "alpha": 0.8},
  )


def _plain_numbers(axis: Any) -> None:
  """Labels a logarithmic axis 20 and 200, a short one in between, too."""
  from matplotlib import ticker

  axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
  axis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
