"""What all pictures share: colours, panels, legends, and the PNG file.

Matplotlib is imported when the first picture is drawn, so that a driver may
import its report without it.
"""

import contextlib
import itertools
from collections.abc import (
  Callable,
  Hashable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from experiments.plots import titles

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Item = TypeVar("Item")

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = (
  "#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7",
  "#999999",
)  # fmt: skip
GREY = "#555555"  # of lines to compare with
DOT = "#0072B2"
_FAINT = "#dddddd"  # of the lines of other panels
_MOST = 4  # lines that can be told apart in one panel
_STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 10,
  "grid.alpha": 0.3,
  "legend.frameon": False,
}


@contextlib.contextmanager
def picture(
  file: Path,
  *,
  columns: int = 1,
  rows: int = 1,
  width: float = 7.0,
  height: float = 4.0,
  **options: Any,
) -> Iterator[tuple["Figure", Any]]:
  """Makes a figure to draw in, without a display, and saves it afterwards.

  Args:
    file: Where the PNG goes.
    columns: Of panels.
    rows: Of panels.
    width: In inches.
    height: In inches.
    **options: Of `Figure.subplots`.

  Yields:
    The figure, and its axes as `Figure.subplots` returns them.
  """
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure, figure.subplots(rows, columns, **options)
    save(figure, file)


def save(figure: "Figure", file: Path) -> None:
  """Writes a PNG; equal pictures have equal bytes."""
  figure.savefig(file, metadata={"Software": None})


def coloured(items: Iterable[Item]) -> Iterator[tuple[str, Item]]:
  """Pairs each item with a colour; the colours repeat after the last."""
  return zip(itertools.cycle(COLOURS), items, strict=False)


def name_parts(names: Iterable[str]) -> dict[str, tuple[str, str]]:
  """Splits names of methods for `panels`: `RigL (ERK)` has two parts.

  Example:
    >>> name_parts(["RigL (ERK)", "SNIP"])
    {'RigL (ERK)': ('RigL', 'ERK'), 'SNIP': ('SNIP', '')}
  """
  parts = {name: name.rstrip(")").partition(" (") for name in names}
  return {name: (base, kind) for name, (base, _, kind) in parts.items()}


def panels(
  features: Mapping[str, tuple[str, Hashable]],
) -> dict[str, tuple[str, int]]:
  """Places lines in panels, so that none holds more than can be told apart.

  A few lines share one panel. More are split by the feature of which that
  leaves fewer panels, or else each has a panel of its own.

  Args:
    features: By line, two things that it may share with other lines.

  Returns:
    By line the name of its panel, and the number of its colour.

  Example:
    >>> lines = {f"{a} {b}": (a, b) for a in "xyz" for b in "uv"}
    >>> panels(lines)["y v"]
    ('v', 1)
  """
  if 1 < len(features) <= _MOST:
    return {name: ("", i) for i, name in enumerate(features)}
  found = []
  for i in (0, 1):
    groups: dict[str, list[str]] = {}
    for name, own in features.items():
      groups.setdefault(str(own[i]), []).append(name)
    if max(map(len, groups.values()), default=0) <= _MOST:
      found.append((len(groups), i, groups))
  if not found:
    return {name: (name, 0) for name in features}
  _, i, groups = min(found, key=lambda one: one[0])
  others = list(dict.fromkeys(own[1 - i] for own in features.values()))
  # A colour is the same thing in all panels, if that tells lines apart.
  unique = len({*features.values()}) == len(features)
  same = unique and len(others) <= len(COLOURS)
  return {
    name: (panel, others.index(features[name][1 - i]) if same else j)
    for panel, names in groups.items()
    for j, name in enumerate(names)
  }


@contextlib.contextmanager
def grid(
  file: Path,
  count: int,
  *,
  title: str,
  xlabel: str = "",
  ylabel: str = "",
  width: float = 3.0,
  height: float = 2.5,
  **options: Any,
) -> Iterator[tuple["Figure", list[Any]]]:
  """Makes a figure of panels with common labels, to be drawn in and saved.

  Args:
    file: Where the PNG goes.
    count: Of panels; there may be none.
    title: Above all.
    xlabel: Below all.
    ylabel: Left of all.
    width: Of a panel, in inches.
    height: Of a panel, in inches.
    **options: Of `Figure.subplots`.

  Yields:
    The figure, and the axes of each panel.
  """
  columns = max(1, min(count, 4 if count not in (5, 6, 9) else 3))
  rows = max(1, -(-count // columns))
  with picture(
    file,
    columns=columns,
    rows=rows,
    width=max(6.5, 0.6 + width * columns),
    height=1 + height * rows,
    squeeze=False,
    **options,
  ) as (figure, all_axes):
    shown, spare = np.split(all_axes.ravel(), [count])
    for axes in spare:
      axes.remove()
    for axes in shown[-columns:]:  # above a panel that was removed, too
      axes.tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    yield figure, list(shown)


def multiples(
  features: Mapping[str, tuple[str, Hashable]],
  draw: Callable[..., None],
  file: Path,
  *,
  finish: Callable[[Any, Sequence[str]], None] = lambda axes, names: None,
  **options: Any,
) -> None:
  """Draws lines in as many panels as they need, the others faint behind them.

  Args:
    features: By line, as for `panels`.
    draw: `(axes, name, offset, *, color, label)` draws a line; the label of a
      faint one is None. `offset` counts the lines of a panel from its middle,
      for those that draw side by side.
    file: Where the PNG goes.
    finish: `(axes, names)`, called for each panel, with its own lines, when all
      lines are drawn.
    **options: Of `grid`.
  """
  places = panels(features)
  names = list(dict.fromkeys(panel for panel, _ in places.values()))
  if len(names) == 1:
    options |= {"width": 6.5, "height": 3.8}
  options |= {"sharex": True, "sharey": True}
  with grid(file, len(names), **options) as (_, all_axes):
    drawn = []
    for axes, panel in zip(all_axes, names, strict=True):
      own = [name for name in places if places[name][0] == panel]
      drawn.append((axes, own))
      for name in places:
        if name not in own:
          draw(axes, name, 0, color=_FAINT, label=None)
      for i, name in enumerate(own):
        color = COLOURS[places[name][1] % len(COLOURS)]
        label = titles.published(name)
        offset = i - (len(own) - 1) / 2
        draw(axes, name, offset, color=color, label=label)
      axes.set_title(titles.published(panel), fontsize=10)
      if len(own) > 1:
        axes.legend(loc="best", fontsize=8)
    # Last: a limit set on one panel would cut off what others draw later.
    for axes, own in drawn:
      finish(axes, own)


def evenly_spaced(items: Sequence[Any], most: int) -> list[Any]:
  """Picks at most that many items, the first and the last among them."""
  at = np.linspace(0, len(items) - 1, min(most, len(items)))
  return [items[round(i)] for i in at]


def band(
  axes: Any, x: np.ndarray, values: np.ndarray, *, color: str, label: str | None
) -> None:
  """Draws a mean over seeds with a band of one standard deviation.

  Args:
    axes: Where to.
    x: [points].
    values: [seeds, points].
    color: Of both.
    label: For the legend; None for a faint line without a band.
  """
  mean, std = values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0)
  if label is None:
    axes.plot(x, mean, lw=0.8, color=color, zorder=1)
    return
  axes.xaxis.get_major_locator().set_params(integer=True)  # of steps
  marker = "o" if len(x) < 8 else None
  axes.plot(x, mean, label=label, color=color, lw=1.5, marker=marker, ms=3)
  axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, lw=0)


def legend(figure: "Figure", axes: Any, **options: Any) -> None:
  """Puts the names above the figure or, if they are many, beside it."""
  handles, names = axes.get_legend_handles_labels()
  place = {"loc": "outside upper center", "ncols": len(names)}
  if len(names) > 6:
    place = {"loc": "outside right center"}
  if names:
    figure.legend(handles, names, **place, **options)
