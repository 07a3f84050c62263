"""Pictures of lottery tickets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots import style
from experiments.plots.sparsities import Series

_SHOWN = 5  # levels in a picture that has a curve or a colour for each


class Curve(NamedTuple):
  """A level's curve in the panel of its branch.

  Attributes:
    level: How often the net was pruned.
    left: Weights left, in percent.
    x: [points].
    y: [points].
  """

  level: int
  left: float
  x: np.ndarray
  y: np.ndarray


class Barriers(NamedTuple):
  """The error barriers of a level.

  Attributes:
    branch: Its branch.
    step: The step to which that goes back.
    level: How often the net was pruned.
    left: Weights left, in percent.
    values: [seeds] in percent.
  """

  branch: str
  step: int
  level: int
  left: float
  values: Sequence[float]


def tickets(dense: float, series: Sequence[Series], file: Path) -> None:
  """Draws test accuracy against weights left, with 95 % intervals.

  Args:
    dense: The dense net's accuracy, in percent.
    series: The branches; their `x` are weights left, in percent.
    file: Where the PNG goes.
  """
  with style.picture(file, width=8, height=5) as (_, axes):
    axes.axhline(dense, color=style.GREY, linewidth=1, linestyle="--")
    axes.annotate("dense", (100, dense), (0, 4), textcoords="offset points")
    for i, one in enumerate(series):
      # Side by side, so that the intervals can be told apart.
      shift = 1.02 ** (i - (len(series) - 1) / 2)
      one.draw(axes, [shift * left for left in one.x])
    _weights_left(axes, min(x for one in series for x in one.x))
    axes.set(ylabel="test accuracy [%]")
    axes.legend(loc="best")


def panels(
  curves: Mapping[str, Sequence[Curve]], file: Path, **labels: Any
) -> None:
  """Draws a panel for each branch, with a curve for each of some levels.

  Args:
    curves: By branch, its levels.
    file: Where the PNG goes.
    **labels: `ylabel`, and what else `Axes.set` takes.
  """
  levels = sorted({curve.level for group in curves.values() for curve in group})
  colours = _shades(style.evenly_spaced(levels, _SHOWN))
  columns = min(4, len(curves))
  rows = -(-len(curves) // columns)
  with style.picture(
    file,
    columns=columns,
    rows=rows,
    width=1.5 + 2.8 * columns,
    height=0.8 + 2.8 * rows,
    sharey=True,
    squeeze=False,
  ) as (figure, all_axes):
    for axes, (name, group) in zip(all_axes.flat, curves.items(), strict=False):
      for curve in group:
        if curve.level in colours:
          color, label = colours[curve.level], f"{curve.left:.1f}"
          axes.plot(curve.x, curve.y, color=color, lw=1.3, label=label)
      axes.set_title(name)
      axes.locator_params(axis="x", nbins=5)
      axes.set(**labels)
    for axes in all_axes.flat[len(curves) :]:
      axes.remove()
    for axes in all_axes[:, 1:].flat:
      axes.set(ylabel="")
    style.legend(figure, all_axes.flat[0], title="weights left [%]")


def barriers(found: Sequence[Barriers], file: Path) -> None:
  """Draws error barriers against weights left, and over rewinding steps.

  Args:
    found: Those of all levels that were examined.
    file: Where the PNG goes.
  """
  steps = {one.branch: one.step for one in found}
  shown = style.evenly_spaced(sorted({one.level for one in found}), _SHOWN)
  with style.picture(file, columns=2, width=11, height=4.4) as (_, panels):
    by_left, by_step = panels
    for color, (name, step) in style.coloured(steps.items()):
      own = [one for one in found if one.branch == name]
      label = f"{name} ({step})"
      _with_seeds(by_left, [one.left for one in own], own, label, color)
    _weights_left(by_left, min(one.left for one in found))
    for level, color in _shades(shown).items():
      own = [one for one in found if one.level == level]
      own.sort(key=lambda one: one.step)
      label = f"{np.mean([one.left for one in own]):.1f} % left"
      _with_seeds(by_step, [one.step for one in own], own, label, color)
    by_step.set(xlabel="rewound to step")
    by_step.set_xscale("symlog", linthresh=100)
    ticks = sorted(set(steps.values()))
    by_step.set_xticks(ticks, [f"{step}" for step in ticks])
    by_step.minorticks_off()
    for axes in panels:
      # Two points count as stable in Frankle et al., arXiv:1912.05671.
      axes.axhline(2, color=style.GREY, lw=1, ls="--")
      axes.set(ylabel="error barrier [%]")
      axes.legend(loc="best")


def _with_seeds(
  axes: Any,
  x: Sequence[float],
  found: Sequence[Barriers],
  label: str,
  color: Any,
) -> None:
  """The mean over seeds as a line, each seed as a faint dot."""
  means = [np.mean(one.values) for one in found]
  axes.plot(x, means, "o-", ms=3.5, lw=1.5, color=color, label=label)
  for at, one in zip(x, found, strict=True):
    values = list(one.values)
    axes.plot([at] * len(values), values, ".", ms=4, color=color, alpha=0.4)


def _shades(levels: Sequence[int]) -> dict[int, Any]:
  """A colour for each level, dark for dense."""
  import matplotlib

  shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(levels)))
  return dict(zip(levels, shades, strict=True))


def _weights_left(axes: Any, least: float) -> None:
  """A logarithmic axis from dense to sparse."""
  axes.set_xscale("log")
  axes.set(xlabel="weights left [%]", xlim=(115, 0.85 * least))
  ticks = [t for t in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2) if t > 0.9 * least]
  axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
  axes.minorticks_off()
