"""Pictures of a sweep's table, in the style of plots.py.

What is drawn comes from the table's rows; nothing here computes a result.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from experiments.plots import runs as plots

if TYPE_CHECKING:
  from experiments.tables.rows import Row

_LINES = {"": "-", "ERK": "-", "uniform": "--"}


def sparsities(rows: Sequence["Row"], file: Path) -> None:
  """Draws accuracy against sparsity, with the bands of its intervals.

  Args:
    rows: Those of the table; those without a sparsity are level lines.
    file: Where the PNG goes.
  """
  ticks = sorted({r.entry.sparsity for r in rows if r.entry.sparsity})

  def draw(axes):
    for name, group, style in _methods(rows):
      if group[0].entry.sparsity is None:
        axes.axhline(group[0].mean, label=name, lw=1, ls=":", color="#555555")
        continue
      # At equal distances: what matters happens near the end.
      at = [ticks.index(row.entry.sparsity) for row in group]
      _line(axes, at, group, name, style)
    axes.set_xticks(range(len(ticks)), [f"{100 * t:g}" for t in ticks])
    axes.set_xlabel("zeros [%]")

  _picture(rows, draw, file)


def against_flops(rows: Sequence["Row"], file: Path) -> None:
  """Draws accuracy against the FLOPs of the whole training.

  Args:
    rows: Those of the table.
    file: Where the PNG goes.
  """

  def draw(axes):
    for name, group, style in _methods(rows):
      _line(axes, [row.training for row in group], group, name, style)
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs, relative to dense")

  _picture(rows, draw, file)


def _methods(rows) -> Iterator[tuple[str, list["Row"], dict]]:
  """Each method with its rows: a colour a method, a line a distribution."""
  groups: dict[str, list[Row]] = {}
  for row in rows:
    groups.setdefault(row.entry.method, []).append(row)
  parts = {name: name.rstrip(")").partition(" (") for name in groups}
  names = list(dict.fromkeys(parts[n][0] for n in groups if n != "dense"))
  for name, group in groups.items():
    own, _, kind = parts[name]
    colour = "#555555"
    if own in names:
      colour = plots.COLOURS[names.index(own) % len(plots.COLOURS)]
    yield name, group, {"color": colour, "ls": _LINES.get(kind, "-.")}


def _line(axes, at, group, name, style):
  means = np.array([row.mean for row in group])
  low = np.array([row.low for row in group])
  high = np.array([row.high for row in group])
  told = np.isfinite(low)
  low, high = np.where(told, low, means), np.where(told, high, means)
  axes.plot(at, means, "o", ms=3.5, lw=1.3, label=name, **style)
  if len(at) > 1:
    axes.fill_between(
      at, low, high, color=style["color"], alpha=0.12, linewidth=0
    )
  else:
    axes.errorbar(
      at, means, [means - low, high - means], fmt="none", ecolor=style["color"]
    )


def floor(means: Sequence[float]) -> float:
  """Where a picture of accuracies ends below, so that most can be told apart.

  Args:
    means: Those of all rows.

  Returns:
    Tukey's far-out fence, three times the middle half's height below that;
    minus infinity where nothing is further out.

  Example:
    >>> print(floor([88.0, 89.0, 90.0, 90.0, 37.0]))
    85.0
  """
  low, high = np.percentile(means, [25, 75])
  fence = low - 3 * (high - low)
  return float(fence) if fence > min(means) else -np.inf


def _picture(rows: Sequence["Row"], draw: Callable, file: Path) -> None:
  with matplotlib.rc_context(plots.STYLE):
    picture, axes = plots.figure(width=9, height=5)
    draw(axes)
    axes.set_ylabel("test accuracy [%]")
    axes.set_ylim(top=min(100, axes.get_ylim()[1]))
    means = [row.mean for row in rows]
    if np.isfinite(bottom := floor(means)):
      axes.set_ylim(bottom, max(means) + 0.1 * (max(means) - bottom))
      below = [row for row in rows if row.mean < bottom]
      text = "\n".join(f"below: {r.entry}, {r.mean:.1f}" for r in below)
      axes.annotate(
        text,
        (0.01, 0.02),
        xycoords="axes fraction",
        fontsize=8,
        bbox={"color": "white", "alpha": 0.8},
      )
    picture.legend(loc="outside right center")
    plots.save(picture, file)
