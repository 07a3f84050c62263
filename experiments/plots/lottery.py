"""Pictures of lottery tickets, in the style of plots.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.ticker
import numpy as np

from experiments.plots import runs as plots
from experiments.statistics import interval

if TYPE_CHECKING:
  from experiments.drivers.lottery import Level
  from experiments.tables.lottery import Row

_SHOWN = 4  # levels in a picture that has a panel or a colour for each


def tickets(table: Sequence["Row"], file: Path) -> None:
  """Draws test accuracy against weights left, with 95 % intervals.

  Args:
    table: The rows, the dense one first.
    file: Where the PNG goes.
  """
  dense, *rest = table
  branches = list(dict.fromkeys(row.branch for row in rest if row.level))
  with matplotlib.rc_context(plots.STYLE):
    figure, axes = plots.figure(width=8, height=5)
    level = np.mean(list(dense.accuracy.values()))
    axes.axhline(level, color="#555555", linewidth=1, linestyle="--")
    axes.annotate("dense", (100, level), (0, 4), textcoords="offset points")
    for i, (name, colour) in enumerate(
      zip(branches, plots.cycle(), strict=False)
    ):
      rows = [row for row in rest if row.branch == name and row.level]
      values = [list(row.accuracy.values()) for row in rows]
      means = np.mean(values, 1)
      bounds = np.array([interval(v) for v in values]).T
      error = np.abs(bounds - means) if np.isfinite(bounds).all() else None
      # Side by side, so that the intervals can be told apart.
      shift = 1.02 ** (i - (len(branches) - 1) / 2)
      left = [row.left * shift for row in rows]
      axes.plot(left, means, "o-", ms=3.5, lw=1.5, label=name, color=colour)
      axes.errorbar(
        left, means, error, fmt="none", lw=1, alpha=0.45, ecolor=colour
      )
    _weights_left(axes, [row.left for row in table])
    axes.set(ylabel="test accuracy [%]")
    axes.legend(loc="best")
    plots.save(figure, file)


def curves(levels: Sequence["Level"], file: Path) -> None:
  """Draws test accuracy over steps, a panel for each branch.

  Args:
    levels: All levels of all seeds.
    file: Where the PNG goes.
  """

  def draw(axes, group, style):
    steps, values = plots.curves([one.history for one in group], "accuracy")
    axes.plot(steps, 100 * values.mean(0), **style)

  def finish(axes):
    final = [100 * one.metrics["accuracy"] for one in levels]
    span = max(final) - min(final)
    axes.set(xlabel="step", ylim=(min(final) - span - 1, max(final) + 1))

  _panels(levels, file, draw, finish, "test accuracy [%]")


def lines(levels: Sequence["Level"], file: Path) -> None:
  """Draws the test error on the line between two children.

  Args:
    levels: All levels of all seeds; those without a line are left out.
    file: Where the PNG goes.
  """

  def draw(axes, group, style):
    values = 100 * np.mean([one.line for one in group], 0)
    axes.plot(np.linspace(0, 1, len(values)), values, **style)

  def finish(axes):
    axes.set(xlabel="from the first child to the second")

  connected = [one for one in levels if one.line is not None]
  _panels(connected, file, draw, finish, "test error [%]")


def _panels(levels, file, draw, finish, what):
  """A panel for each branch, a colour for each of a few levels."""
  branches = list(dict.fromkeys(one.branch for one in levels))
  shown = _spread(sorted({one.level for one in levels}))
  columns = min(4, len(branches))
  rows = -(-len(branches) // columns)
  with matplotlib.rc_context(plots.STYLE):
    figure, panels = plots.figure(
      columns,
      width=1.5 + 2.8 * columns,
      height=0.8 + 2.8 * rows,
      rows=rows,
      sharey=True,
      squeeze=False,
    )
    for axes, name in zip(panels.flat, branches, strict=False):
      for number, colour in zip(shown, _shades(shown), strict=True):
        key = name, number
        group = [one for one in levels if (one.branch, one.level) == key]
        if group:
          left = 100 * np.mean([one.metrics["density"] for one in group])
          draw(
            axes, group, {"color": colour, "lw": 1.3, "label": f"{left:.1f}"}
          )
      axes.set_title(name)
      axes.locator_params(axis="x", nbins=5)
      finish(axes)
    for axes in panels.flat[len(branches) :]:
      axes.remove()
    for axes in panels[:, 0]:
      axes.set(ylabel=what)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
      handles,
      labels,
      loc="outside upper center",
      ncols=len(shown),
      title="weights left [%]",
    )
    plots.save(figure, file)


def barriers(
  table: Sequence["Row"], steps: Mapping[str, int], file: Path
) -> None:
  """Draws error barriers, against weights left and over rewinding steps.

  Args:
    table: The rows.
    steps: The step to which each examined branch goes back.
    file: Where the PNG goes.
  """
  rows = [row for row in table if row.barriers]
  with matplotlib.rc_context(plots.STYLE):
    figure, (by_left, by_step) = plots.figure(columns=2, width=11, height=4.4)
    for (name, step), colour in zip(steps.items(), plots.cycle(), strict=False):
      own = [row for row in rows if row.branch == name]
      _with_seeds(
        by_left, [r.left for r in own], own, f"{name} ({step})", colour
      )
    _weights_left(by_left, [row.left for row in rows])
    shown = _spread(sorted({row.level for row in rows}))
    for level, colour in zip(shown, _shades(shown), strict=True):
      own = sorted(
        (r for r in rows if r.level == level), key=lambda r: steps[r.branch]
      )
      label = f"{np.mean([r.left for r in own]):.1f} % left"
      _with_seeds(by_step, [steps[r.branch] for r in own], own, label, colour)
    by_step.set(xlabel="rewound to step")
    by_step.set_xscale("symlog", linthresh=100)
    by_step.set_xticks(sorted(set(steps.values())))
    by_step.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    by_step.minorticks_off()
    for axes in (by_left, by_step):
      axes.axhline(2, color="#555555", lw=1, ls="--")
      axes.set(ylabel="error barrier [%]")
      axes.legend(loc="best")
    plots.save(figure, file)


def _with_seeds(axes, x, rows, label, colour):
  """The mean over seeds as a line, each seed as a faint dot."""
  means = [np.mean(list(row.barriers.values())) for row in rows]
  axes.plot(x, means, "o-", ms=3.5, lw=1.5, color=colour, label=label)
  for at, row in zip(x, rows, strict=True):
    values = list(row.barriers.values())
    axes.plot([at] * len(values), values, ".", ms=4, color=colour, alpha=0.4)


def _shades(shown):
  """A colour for each level, dark for dense."""
  return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(shown)))


def _weights_left(axes, left):
  """A logarithmic axis from dense to sparse."""
  axes.set_xscale("log")
  axes.set(xlabel="weights left [%]", xlim=(115, 0.85 * min(left)))
  ticks = [
    t for t in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2) if t > 0.9 * min(left)
  ]
  axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
  axes.minorticks_off()


def _spread(levels):
  """A few of the levels, the first and the last among them."""
  at = np.linspace(0, len(levels) - 1, min(_SHOWN + 1, len(levels)))
  return [levels[round(i)] for i in at]
