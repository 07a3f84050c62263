"""Pictures of tables: a measure against sparsity, or against training FLOPs."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots import looks, style, titles

_WIDE = 8  # factor from which an axis is logarithmic
_ROOM = 0.35  # of an axis, for numbers


class Series(NamedTuple):
  """A method's line in a picture: one point for each row of its table.

  Attributes:
    features: As for `style.places`.
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


def lines(
  series: Mapping[str, Series],
  file: Path,
  *,
  levels: Mapping[str, float] = {},
  chance: float | None = None,
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
    chance: The accuracy of guesses, a level line where the axis gets there.
    ticks: What stands at x = 0, 1, ...
    xscale: Of the axis.
    ylabel: What the measure is.
    **options: Of `style.grid`.
  """
  means = [mean for one in series.values() for mean in one.mean]
  bottom = floor([*means, *levels.values()])

  def draw(
    axes: Any, name: str, *, look: looks.Look | None, label: str | None
  ) -> None:
    one = series[name]
    if look is None:
      axes.plot(one.x, one.mean, lw=0.8, zorder=1, color=looks.FAINT)
      return
    style.shade(axes, one.x, one.low, one.high, color=look.color)
    axes.plot(one.x, one.mean, **style.drawn(look), label=label)

  def finish(axes: Any, names: Sequence[str]) -> None:
    if xscale == "log":
      axes.set_xscale(xscale)
      style.plain_numbers(axes.xaxis)
    if ticks:
      # All of them in a large panel, and as many as there is room for else.
      every = 1 if len(names) == len(series) else -(-len(ticks) // 5)
      at = range(0, len(ticks), every)
      axes.set_xticks(at, [ticks[i] for i in at])
    axes.set_ylim(top=min(100, axes.get_ylim()[1]))
    if np.isfinite(bottom):
      ends = [x for one in series.values() for x in one.high if np.isfinite(x)]
      top = max([*means, *levels.values(), *ends])
      axes.set_ylim(bottom, min(100, top + 0.05 * (top - bottom)))
      _name_below(axes, [series[name] for name in names], bottom)
    for level in levels.values():
      axes.axhline(level, lw=1.1, ls=":", color=looks.GREY, zorder=1.5)
    if chance is not None and chance > axes.get_ylim()[0]:
      axes.axhline(chance, lw=1, ls=(0, (1, 3)), color=looks.GREY, zorder=1.5)
      if names[0] == next(iter(series)):
        axes.annotate(
          "chance",
          (0.02, chance),
          (0, 1),
          xycoords=("axes fraction", "data"),
          textcoords="offset points",
          color=looks.GREY,
        )

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
  zero: bool = False,
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
    log: Whether the axis is logarithmic where values are far apart.
    zero: Whether the axis begins at 0.
  """
  names = list(dict.fromkeys(name for one in panels.values() for name in one))
  height = 0.45 + 0.19 * len(names)
  shown = style.apart({name: looks.of(name) for name in names})
  with style.grid(
    file, len(panels), title=title, xlabel=xlabel, height=height, sharey=True
  ) as (_, all_axes):
    for axes, (setting, found) in zip(all_axes, panels.items(), strict=True):
      values = [mean for mean, *_ in found.values()]
      if log and max([*values, *levels.values()]) > _WIDE * min(values):
        axes.set_xscale("log")
      for level in levels.values():
        axes.axvline(level, lw=1.1, ls=":", color=looks.GREY)
      for name, (mean, *ends) in found.items():
        at, look = names.index(name), shown[name]
        axes.plot(mean, at, look.marker, ms=4.5, color=look.color)
        if np.isfinite(ends).all():
          axes.plot(ends, [at, at], lw=1.8, color=look.color)
        end = ends[1] if np.isfinite(ends).all() else mean
        axes.annotate(
          f"{mean:.2f}" if mean < 1000 else f"{mean:,.0f}",
          (end, at),
          (5, 0),
          textcoords="offset points",
          va="center",
          fontsize=style.SMALL,
        )
      axes.set_title(titles.published(setting))
      axes.set_yticks(range(len(names)), map(titles.published, names))
      axes.set_ylim(len(names) - 0.4, -0.6)
      axes.grid(visible=False, axis="x")
      _room_for_numbers(axes)
      if zero:
        axes.set_xlim(left=0)


def _room_for_numbers(axes: Any) -> None:
  """Widens an axis to the right for the number beside each point."""
  low, high = axes.get_xlim()
  if axes.get_xscale() == "log":
    axes.set_xlim(low, high * (high / low) ** _ROOM)
    style.plain_numbers(axes.xaxis, most=3)
  else:
    axes.set_xlim(low, high + _ROOM * (high - low))
    axes.locator_params(axis="x", nbins=3)


def floor(means: Sequence[float]) -> float:
  """Computes where a picture of accuracies ends below.

  Args:
    means: Those of all points.

  Returns:
    Tukey's far-out fence, q1 - 3 (q3 - q1) of the quartiles; minus infinity
    where it would leave out little of the axis.

  Example:
    >>> print(floor([88.0, 89.0, 90.0, 90.0, 37.0]))
    82.0
  """
  if not len(means):
    return -np.inf
  low, high = np.percentile(means, [25, 75])
  fence = low - 3 * (high - low)
  gained, left = fence - min(means), max(means) - fence
  return float(fence) if gained > 0.4 * left else -np.inf


def _name_below(axes: Any, series: Sequence[Series], bottom: float) -> None:
  """Says what is below the end of the axis, where the panel names a method."""
  below = []
  for one in series:
    for label, mean in zip(one.labels, one.mean, strict=True):
      if mean < bottom:
        name = titles.published(label).removeprefix(axes.get_title())
        name = name.lstrip(" ,(").replace("),", ",")
        below.append(f"\N{DOWNWARDS ARROW} {name}: {mean:.1f}")
  text = axes.annotate(
    "\n".join(below),
    (0.02, 0.02),
    xycoords="axes fraction",
    bbox={"color": "white", "alpha": 0.8, "pad": 1},
  )
  text.set_in_layout(False)
