"""What all pictures share: colours, line styles, legends, and the PNG file.

Matplotlib is imported when the first picture is drawn, so that a driver may
import its report without it.
"""

import contextlib
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Item = TypeVar("Item")

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = (
  "#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7",
  "#999999",
)  # fmt: skip
GREY = "#555555"  # of lines to compare with
LINES = ("-", "--", "-.", (0, (1, 1)))
MARKERS = "os^Dvph*X<"
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


def line_styles(
  features: Mapping[str, tuple[Hashable, Hashable]],
) -> dict[str, dict[str, Any]]:
  """Chooses the colour and the line style of each method.

  Methods with the same first feature share a colour, those with the same second
  one a line style. Where that leaves two methods alike, or needs more line
  styles than colours, each has a colour of its own, and the next line style
  when the colours are used up.

  Args:
    features: By method, two things that it may share with other methods.

  Returns:
    By method, the keywords of `Axes.plot`.
  """
  if not features:
    return {}
  columns = zip(*features.values(), strict=True)
  first, second = (list(dict.fromkeys(column)) for column in columns)
  if len(set(features.values())) < len(features) or len(first) < len(second):
    pairs = [divmod(i, len(COLOURS))[::-1] for i in range(len(features))]
  else:
    pairs = [(first.index(a), second.index(b)) for a, b in features.values()]
  return {
    name: {"color": COLOURS[i % len(COLOURS)], "ls": LINES[j % len(LINES)]}
    for name, (i, j) in zip(features, pairs, strict=True)
  }


def evenly_spaced(items: Sequence[Any], most: int) -> list[Any]:
  """Picks at most that many items, the first and the last among them."""
  at = np.linspace(0, len(items) - 1, min(most, len(items)))
  return [items[round(i)] for i in at]


def band(
  axes: Any,
  x: np.ndarray,
  values: np.ndarray,
  name: str,
  *,
  color: str,
  **options: Any,
) -> None:
  """Draws a mean over seeds with a band of one standard deviation.

  Args:
    axes: Where to.
    x: [points].
    values: [seeds, points].
    name: For the legend.
    color: Of both.
    **options: Of the line.
  """
  mean, std = values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0)
  axes.plot(x, mean, label=name, color=color, lw=1.5, **options)
  axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, lw=0)


def legend(figure: "Figure", axes: Any, **options: Any) -> None:
  """Puts the names above the figure or, if they are many, beside it."""
  handles, names = axes.get_legend_handles_labels()
  place = {"loc": "outside upper center", "ncols": len(names)}
  if len(names) > 6:
    place = {"loc": "outside right center"}
  if names:
    figure.legend(handles, names, **place, **options)
