"""Pictures of lottery tickets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots import looks, style, titles

_MARKERS = "osD^v"
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
    values: [seeds] in percent; or their mean alone.
  """

  branch: str
  step: int
  level: int
  left: float
  values: Sequence[float]


def panels(
  curves: Mapping[str, Sequence[Curve]],
  file: Path,
  *,
  ylim: tuple[float, float] | None = None,
  **options: Any,
) -> None:
  """Draws a panel for each branch, with a curve for each of some levels.

  Args:
    curves: By branch, its levels.
    file: Where the PNG goes.
    ylim: The ends of the axis; those of the curves if None.
    **options: Of `style.grid`.
  """
  levels = sorted({curve.level for group in curves.values() for curve in group})
  colours = _shades(style.evenly_spaced(levels, _SHOWN))
  with style.grid(file, len(curves), sharey=True, **options) as (figure, shown):
    for axes, (name, group) in zip(shown, curves.items(), strict=True):
      for curve in group:
        if curve.level in colours:
          color, label = colours[curve.level], f"{curve.left:.1f}"
          axes.plot(curve.x, curve.y, color=color, lw=1.3, label=label)
      axes.set_title(titles.published(name))
      axes.locator_params(axis="x", nbins=3)
    if ylim:
      shown[0].set_ylim(*ylim)  # which all share
    handles, labels = shown[0].get_legend_handles_labels()
    place = "outside lower center"
    figure.legend(
      handles, labels, loc=place, ncols=_SHOWN, title="weights left [%]"
    )


def barriers(found: Sequence[Barriers], file: Path, *, title: str) -> None:
  """Draws error barriers against weights left, and over rewinding steps.

  Args:
    found: Those of all levels that were examined.
    file: Where the PNG goes.
    title: What the nets are.
  """
  steps = {one.branch: one.step for one in found}
  shown = style.evenly_spaced(sorted({one.level for one in found}), _SHOWN)
  title += "; dashed: 2 %, below which nets count as stable"
  with style.grid(file, 2, title=title, height=2.8) as (_, both):
    by_left, by_step = both
    for name in steps:
      own = [one for one in found if one.branch == name]
      look, label = looks.of(name), titles.published(name)
      _with_seeds(by_left, [one.left for one in own], own, label, look)
    _weights_left(by_left, min(one.left for one in found))
    for i, (level, color) in enumerate(_shades(shown).items()):
      look = looks.Look(color, _MARKERS[i])
      own = [one for one in found if one.level == level]
      own.sort(key=lambda one: one.step)
      label = f"{np.mean([one.left for one in own]):.1f} % left"
      _with_seeds(by_step, [one.step for one in own], own, label, look)
    by_step.set(xlabel="rewound to step")
    by_step.set_xscale("symlog", linthresh=100)
    ticks = sorted(set(steps.values()))
    by_step.set_xticks(ticks, [f"{step}" for step in ticks])
    by_step.minorticks_off()
    for axes in both:
      # Two points count as stable in Frankle et al., arXiv:1912.05671.
      axes.axhline(2, color=looks.GREY, lw=1, ls="--")
      axes.set(ylabel="error barrier [%]")
      axes.legend(loc="best")


def _with_seeds(
  axes: Any,
  x: Sequence[float],
  found: Sequence[Barriers],
  label: str,
  look: looks.Look,
) -> None:
  """The mean over seeds as a line, each seed as a faint dot."""
  means = [np.mean(one.values) for one in found]
  axes.plot(x, means, **style.drawn(look), label=label)
  for at, one in zip(x, found, strict=True):
    values = list(one.values)
    axes.plot([at] * len(values), values, ".", color=look.color, alpha=0.4)


def _shades(levels: Sequence[int]) -> dict[int, Any]:
  """A colour for each level, dark for dense."""
  import matplotlib

  shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(levels)))
  to_hex = matplotlib.colors.to_hex
  return dict(zip(levels, map(to_hex, shades), strict=True))


def _weights_left(axes: Any, least: float) -> None:
  """A logarithmic axis from dense to sparse."""
  axes.set_xscale("log")
  axes.set(xlabel="weights left [%]", xlim=(115, 0.85 * least))
  ticks = [t for t in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2) if t > 0.9 * least]
  axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
  axes.minorticks_off()
