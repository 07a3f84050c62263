"""What all pictures share: panels, legends, sizes, and the PNG file.

Matplotlib is imported when the first picture is drawn, so that a driver may
import its report without it.
"""

import contextlib
import struct
import zlib
from collections.abc import (
  Callable,
  Hashable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import statistics
from experiments.plots import looks, titles

if TYPE_CHECKING:
  from matplotlib.figure import Figure

WIDTH = 7.5  # inches: as wide as a page's text, so that 8 pt stay 8 pt
SMALL, PANEL, TITLE = 8, 9, 10  # points of text
_DPI = 160
_ALONE = 3  # lines with bands that one panel can show
_MOST = 4  # lines that can be told apart in one of several panels
_STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.labelsize": PANEL,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": PANEL,
  "figure.labelsize": PANEL,
  "figure.titlesize": TITLE,
  "font.size": SMALL,
  "grid.alpha": 0.3,
  "legend.frameon": False,
  "legend.handlelength": 2.6,  # or dashes cannot be seen
}


@contextlib.contextmanager
def picture(
  file: Path,
  *,
  columns: int = 1,
  rows: int = 1,
  width: float = WIDTH,
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
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure, figure.subplots(rows, columns, **options)
    save(figure, file)


def save(figure: "Figure", file: Path) -> None:
  """Writes a PNG that says in a text chunk what its title and labels are.

  Equal pictures have equal bytes.
  """
  said = {"Title": figure.get_suptitle(), "Description": _words(figure)}
  figure.savefig(file, metadata={"Software": None, **said})


def sign(file: Path, source: str) -> None:
  """Writes into a PNG what it was drawn from, as its text chunk `Source`."""
  data = file.read_bytes()
  end = len(data) - 12  # the chunk IEND
  body = b"tEXtSource\0" + source.encode("latin-1")
  chunk = struct.pack(">I", len(body) - 4) + body
  chunk += struct.pack(">I", zlib.crc32(body))
  file.write_bytes(data[:end] + chunk + data[end:])


def _words(figure: "Figure") -> str:
  """What a picture names: its panels, lines and labels, one a line."""
  words = [axes.get_title() for axes in figure.axes]
  for axes in figure.axes:
    words += [label.get_text() for label in axes.get_yticklabels()]
  for one in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
    words += [text.get_text() for text in one.get_texts()] if one else []
  words += [figure.get_supylabel()]
  words += [axes.get_xlabel() for axes in figure.axes]
  return "\n".join(dict.fromkeys(filter(None, words)))


def name_parts(names: Iterable[str]) -> dict[str, tuple[str, str]]:
  """Splits names of methods for `places`: `RigL (ERK)` has two parts.

  Example:
    >>> name_parts(["RigL (ERK)", "SNIP"])
    {'RigL (ERK)': ('RigL', 'ERK'), 'SNIP': ('SNIP', '')}
  """
  parts = {name: name.rstrip(")").partition(" (") for name in names}
  return {name: (base, kind) for name, (base, _, kind) in parts.items()}


class Place(NamedTuple):
  """Where and how a line is drawn.

  Attributes:
    panel: The name of its panel; empty if there is only one.
    look: Its colour, marker and dash.
    label: What the legend calls it; empty where the panel says it.
  """

  panel: str
  look: looks.Look
  label: str


def places(
  features: Mapping[str, tuple[str, Hashable]],
) -> dict[str, Place]:
  """Places lines in panels, so that none holds more than can be told apart.

  A few lines share one panel. More are split by the feature of which that
  leaves fewer panels, or else each has a panel of its own. In a panel of one
  method the lines are variants of that method's look; where they are methods,
  each has its own.

  Args:
    features: By line, two things that it may share with other lines.

  Returns:
    By line, its place.

  Example:
    >>> lines = {f"{a} {b}": (a, b) for a in "xyz" for b in "uv"}
    >>> place = places(lines)["y v"]
    >>> place.panel, place.label
    ('v', 'y')
  """
  if 1 < len(features) <= _ALONE:
    shown = apart({name: looks.of(name) for name in features})
    return {
      name: Place("", look, titles.published(name))
      for name, look in shown.items()
    }
  found = []
  for i in (0, 1):
    panels = [str(own[i]) for own in features.values()]
    if len(set(panels)) > 1 and max(map(panels.count, panels)) <= _MOST:
      found.append((len(set(panels)), i))
  if not found or len({*features.values()}) < len(features):
    return {name: Place(name, looks.of(name), "") for name in features}
  _, i = min(found)
  told = {name: str(own[1 - i]) for name, own in features.items()}
  kinds = {"": 0} | looks.variants(filter(None, told.values()))
  panels = {name: str(own[i]) for name, own in features.items()}
  shown = apart({one: looks.of(one) for one in told.values()})
  variants = all(map(looks.known, panels.values())) and not all(
    map(looks.known, told.values())
  )
  return {
    name: Place(
      panels[name],
      looks.of(panels[name]).variant(kinds[told[name]])
      if variants
      else shown[told[name]],
      titles.published(told[name]),
    )
    for name in features
  }


def apart(shown: Mapping[str, looks.Look]) -> dict[str, looks.Look]:
  """Makes variants of looks that occur more than once."""
  found, seen = {}, []
  for name, look in shown.items():
    found[name] = look.variant(seen.count(look))
    seen.append(look)
  return found


@contextlib.contextmanager
def grid(
  file: Path,
  count: int,
  *,
  title: str,
  xlabel: str = "",
  ylabel: str = "",
  width: float = WIDTH,
  height: float | None = None,
  **options: Any,
) -> Iterator[tuple["Figure", list[Any]]]:
  """Makes a figure of panels with common labels, to be drawn in and saved.

  Args:
    file: Where the PNG goes.
    count: Of panels; there may be none.
    title: Above all.
    xlabel: Below the last panel of each column.
    ylabel: Left of all.
    width: Of all, in inches.
    height: Of a panel, in inches; by default more where there is one row.
    **options: Of `Figure.subplots`.

  Yields:
    The figure, and the axes of each panel.
  """
  columns = columns_of(count)
  rows = max(1, -(-count // columns))
  height = height or (2.2 if rows == 1 else 1.6)
  with picture(
    file,
    columns=columns,
    rows=rows,
    width=width,
    height=0.9 + height * rows,
    squeeze=False,
    **options,
  ) as (figure, all_axes):
    shown, spare = np.split(all_axes.ravel(), [count])
    for axes in spare:
      axes.remove()
    for axes in shown[-columns:]:  # above a panel that was removed, too
      axes.tick_params(labelbottom=True)
    for axes in shown[(rows - 1) * columns :]:
      axes.set_xlabel(xlabel)  # a common one would lie in the legend
    figure.suptitle(title)
    figure.supylabel(ylabel)
    yield figure, list(shown)


def columns_of(count: int) -> int:
  """Returns how many of so many panels stand side by side."""
  return max(1, min(count, 4 if count not in (5, 6, 9) else 3))


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
    features: By line, as for `places`.
    draw: `(axes, name, *, look, label)` draws a line; `look` is None for a
      faint one.
    file: Where the PNG goes.
    finish: `(axes, names)`, called for each panel, with its own lines, when all
      lines are drawn.
    **options: Of `grid`.
  """
  placed = places(features)
  names = list(dict.fromkeys(place.panel for place in placed.values()))
  if len(names) == 1:
    options |= {"width": 6.5, "height": 3.2}
  options |= {"sharex": True, "sharey": True}
  with grid(file, len(names), **options) as (figure, all_axes):
    drawn = []
    for axes, panel in zip(all_axes, names, strict=True):
      own = [name for name in placed if placed[name].panel == panel]
      drawn.append((axes, own))
      for name in placed:
        if name not in own:
          draw(axes, name, look=None, label=None)
      for name in own:
        draw(axes, name, look=placed[name].look, label=placed[name].label)
      axes.set_title(titles.published(panel))
    # Last: a limit set on one panel would cut off what others draw later.
    for axes, own in drawn:
      finish(axes, own)
    _legend_of(figure, placed.values())


def _legend_of(figure: "Figure", placed: Iterable[Place]) -> None:
  """One legend for all panels, where it hides nothing."""
  from matplotlib.lines import Line2D

  found: dict[str, set[looks.Look]] = {}
  for place in placed:
    if place.label:
      found.setdefault(place.label, set()).add(place.look)
  handles = []
  for label, own in found.items():
    look = min(own)
    # Variants have the colours of their methods, which panels name.
    color = look.color if len(own) == 1 else looks.GREY
    handles.append(
      Line2D([], [], **drawn(look) | {"color": color, "label": label})
    )
  if handles:
    place = "outside lower center"
    figure.legend(handles=handles, loc=place, ncols=min(4, len(handles)))


def drawn(look: looks.Look) -> dict[str, Any]:
  """Returns the options of `Axes.plot` for a look."""
  return {
    "color": look.color,
    "marker": look.marker,
    "ls": look.dash,
    "lw": 1.4,
    "ms": 4,
  }


def evenly_spaced(items: Sequence[Any], most: int) -> list[Any]:
  """Picks at most that many items, the first and the last among them."""
  at = np.linspace(0, len(items) - 1, min(most, len(items)))
  return [items[round(i)] for i in at]


def band(
  axes: Any,
  x: np.ndarray,
  values: np.ndarray,
  *,
  look: looks.Look | None,
  label: str | None,
) -> None:
  """Draws a mean over seeds with a band of its 95 % interval.

  Args:
    axes: Where to.
    x: [points].
    values: [seeds, points].
    look: Of both; None for a faint line without a band.
    label: For the legend.
  """
  mean = values.mean(0)
  if look is None:
    axes.plot(x, mean, lw=0.8, color=looks.FAINT, zorder=1)
    return
  axes.xaxis.get_major_locator().set_params(integer=True)  # of steps
  every = max(1, len(x) // 8)
  axes.plot(x, mean, **drawn(look) | {"ms": 3, "markevery": every}, label=label)
  ends = np.array([statistics.interval(column) for column in values.T]).T
  shade(axes, x, *ends, color=look.color)


def shade(
  axes: Any, x: Sequence[float], low: Any, high: Any, *, color: str
) -> None:
  """Draws a band between two lines; nothing where an end is not finite."""
  known = np.isfinite(low) & np.isfinite(high)
  low, high = np.where(known, low, 0), np.where(known, high, 0)
  axes.fill_between(x, low, high, where=known, color=color, alpha=0.13, lw=0)
  beside = np.r_[False, known[:-1]] | np.r_[known[1:], False]
  for i in np.flatnonzero(known & ~beside):  # a band of one point has no width
    axes.plot([x[i]] * 2, [low[i], high[i]], lw=4, color=color, alpha=0.3)


def legend(figure: "Figure", axes: Any, **options: Any) -> None:
  """Puts the names above the figure or, if they are many, beside it."""
  handles, names = axes.get_legend_handles_labels()
  place = {"loc": "outside upper center", "ncols": len(names)}
  if len(names) > 6:
    place = {"loc": "outside right center"}
  if names:
    figure.legend(handles, names, **place, **options)


def plain_numbers(axis: Any, most: int = 4) -> None:
  """Labels a logarithmic axis with at most so many plain numbers, as 200."""
  from matplotlib import ticker

  low, high = axis.get_view_interval()
  for steps in ((1, 2, 5), (1, 3), (1,)):
    locator = ticker.LogLocator(subs=steps, numticks=99)
    if sum(low <= x <= high for x in locator.tick_values(low, high)) <= most:
      break
  axis.set_major_locator(locator)
  axis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
  axis.set_minor_locator(ticker.NullLocator())
