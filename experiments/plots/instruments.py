"""Pictures of what instruments measure in trained networks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots import looks, style, titles

_NO_VALUE = "#e8e8e8"  # the colour of cells without a value
_MOST_NUMBERS = 12  # columns of a heat map that have room for numbers


class Motion(NamedTuple):
  """How the masks of a method's runs moved.

  Attributes:
    steps: [n], those of the evaluations.
    last: [runs, n - 1] overlap with the evaluation before.
    since: [runs, n - 1] overlap with the first masks.
    ever: [runs, n] share of weights that were ever active; None if unknown.
  """

  steps: np.ndarray
  last: np.ndarray
  since: np.ndarray
  ever: np.ndarray | None


def sensitivity(
  title: str,
  leaves: Sequence[str],
  sparsities: Sequence[float],
  rise: np.ndarray,
  kept: np.ndarray,
  file: Path,
) -> None:
  """Draws how much the loss rises if one layer is pruned: layers x sparsities.

  Args:
    title: What to write above.
    leaves: The layers' names.
    sparsities: Shares of zeros.
    rise: [layers, sparsities]: the loss less that without pruning.
    kept: bool [layers, sparsities], where a layer is that sparse anyway.
    file: Where the PNG goes.
  """
  from matplotlib.colors import PowerNorm

  width, height = 3.8 + 0.75 * len(sparsities), 1.5 + 0.34 * len(leaves)
  with style.picture(file, width=width, height=height) as (figure, axes):
    values = np.ma.array(rise, mask=kept)
    # By a root, lest one layer's collapse leave all else white.
    top = max(values.max(), 1e-3) if values.count() else 1.0
    text = np.where(kept, "as is", np.vectorize(_signed)(rise))
    columns = [f"{100 * s:g}" for s in sparsities]
    norm = PowerNorm(1 / 3, 0, top, clip=True)
    image = _heat(axes, values, leaves, columns, text, cmap="OrRd", norm=norm)
    axes.set(
      xlabel="zeros in that layer alone [%]", title=titles.published(title)
    )
    ticks = [top * share for share in (0, 0.01, 0.1, 0.3, 1)]
    figure.colorbar(
      image,
      ax=axes,
      label="rise of the loss",
      ticks=ticks,
      format="{x:.2g}",
      aspect=20 + len(leaves),
    )


def _signed(x: float) -> str:
  return f"{x:+.3f}" if abs(x) < 0.1 else f"{x:+.2f}"


def overlap(
  panels: Sequence[tuple[str, Sequence[str], np.ndarray]], file: Path
) -> None:
  """Draws the overlap of the masks of every pair of runs, a panel per group.

  Args:
    panels: Of each group of runs its title, their names, and their [n, n]
      intersection over union.
    file: Where the PNG goes.
  """
  side = 1.1 + 0.32 * max(len(names) for _, names, _ in panels)
  width = 0.8 + side * style.columns_of(len(panels))
  with style.grid(
    file,
    len(panels),
    title="Overlap of the final masks of two runs",
    width=max(width, style.WIDTH / 2),
    height=side,
  ) as (figure, shown):
    for axes, (title, names, iou) in zip(shown, panels, strict=True):
      names = [titles.published(name) for name in names]
      text = np.vectorize("{:.2f}".format)(iou)
      image = _heat(axes, iou, names, names, text)
      axes.set_title(titles.published(title))
      axes.tick_params(axis="x", rotation=90 * (max(map(len, names)) > 2))
      axes.set_aspect("equal")
    label = "intersection over union"
    figure.colorbar(image, ax=shown, label=label, shrink=0.8)


def motion(curves: Mapping[str, Motion], file: Path, *, key: str) -> None:
  """Draws the overlap of masks with earlier ones, or R_s, over steps.

  Args:
    curves: By the method.
    file: Where the PNG goes.
    key: What to draw: an attribute of `Motion`.
  """
  runs = titles.spread(len(curve.last) for curve in curves.values())

  def draw(axes: Any, name: str, **how: Any) -> None:
    values = getattr(curves[name], key)
    steps = curves[name].steps[-values.shape[1] :]
    style.band(axes, steps, values, **how)

  style.multiples(
    style.name_parts(curves),
    draw,
    file,
    finish=lambda axes, names: axes.set_ylim(0, 1.02),
    title=f"{_MOTIONS[key]}\n{runs}",
    xlabel="step",
    ylabel="IoU" if key != "ever" else "R_s",
  )


_MOTIONS = {
  "last": "Overlap of masks with those of the evaluation before",
  "since": "Overlap of masks with the first ones",
  "ever": "R_s: share of weights that were ever active",
}


def motion_by_layer(
  title: str,
  leaves: Sequence[str],
  steps: Sequence[int],
  last: np.ndarray,
  since: np.ndarray,
  file: Path,
) -> None:
  """Draws the overlap of each layer's masks with earlier ones, over steps.

  Args:
    title: What to write above.
    leaves: The layers' names.
    steps: Those of the evaluations, but for the first.
    last: [layers, steps] overlap with the evaluation before.
    since: [layers, steps] overlap with the first masks.
    file: Where the PNG goes.
  """
  numbers = len(steps) <= _MOST_NUMBERS
  with style.picture(
    file,
    rows=2,
    height=1.8 + 0.44 * len(leaves),
    sharex=True,
  ) as (figure, both):
    panels = {"the evaluation before": last, "the first masks": since}
    for axes, (what, values) in zip(both, panels.items(), strict=True):
      text = np.vectorize("{:.2f}".format)(values) if numbers else None
      image = _heat(axes, values, leaves, steps, text)
      every = -(-len(steps) // _MOST_NUMBERS)
      axes.set_xticks(range(0, len(steps), every), steps[::every])
      axes.set_title(f"with {what}")
    axes.set(xlabel="step")
    figure.suptitle(titles.published(title), fontsize=style.TITLE)
    figure.colorbar(
      image, ax=both, label="intersection over union", aspect=20 + len(leaves)
    )


def flow(
  panels: Mapping[str, Mapping[str, tuple[float, float]]], file: Path
) -> None:
  """Draws gradients per weight, active and inactive, on a logarithmic axis.

  Args:
    panels: By its title and line, the root mean squares of the gradient at
      active and at inactive weights; nothing is drawn for 0.
    file: Where the PNG goes.
  """
  from matplotlib import ticker

  with _lists(panels, file) as (figure, pairs):
    for axes, lines in pairs:
      norms = np.array([*lines.values()])
      norms = np.where(norms > 0, norms, np.nan).T
      at = np.arange(len(lines))
      axes.plot(norms, [at, at], color="#bbbbbb", lw=1.5, zorder=1)
      axes.scatter(norms[0], at, color=looks.BLUE, label="active weights", s=30)
      axes.scatter(
        norms[1], at, color=looks.RED, label="inactive weights", s=30
      )
      axes.set_xscale("log")
      wide = axes.dataLim.x1 > 30 * axes.dataLim.x0
      ticks = ticker.LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8)
      axes.xaxis.set_major_locator(ticks)
      axes.xaxis.set_major_formatter("{x:.2g}")
      axes.xaxis.set_minor_locator(ticker.NullLocator())
      axes.margins(x=0.1)
      axes.set(xlabel="root mean square of the gradient")
    style.legend(figure, axes)


def dead(panels: Mapping[str, Mapping[str, np.ndarray]], file: Path) -> None:
  """Draws the shares of units without weights, and of those that never fire.

  Args:
    panels: By its title and line, int [3, 2]: how many units are without
      weights in, without weights out, silent; and how many there are.
    file: Where the PNG goes.
  """
  labels = (
    ("outputs without weights", looks.BLUE),
    ("inputs without weights", looks.SKY),
    ("never fire", looks.RED),
  )
  with _lists(panels, file, line=0.5) as (figure, pairs):
    for axes, lines in pairs:
      for j, (label, color) in enumerate(labels):
        cells = np.array([units[j] for units in lines.values()])
        share = 100 * cells[:, 0] / np.maximum(cells[:, 1], 1)
        at = np.arange(len(cells)) + 0.26 * (j - 1)
        axes.barh(at, share, 0.24, color=color, label=label)
        for y, x, known in zip(at, share, cells[:, 1], strict=True):
          if known:
            axes.annotate(
              f"{x:.0f}", (x, y), (2, 0), fontsize=style.SMALL, va="center",
              textcoords="offset points",
            )  # fmt: skip
      axes.set(xlabel="units [%]")
      axes.set_xlim(0, max(1.12 * axes.dataLim.x1, 5))
    style.legend(figure, axes)


@contextlib.contextmanager
def _lists(
  panels: Mapping[str, Mapping[str, Any]], file: Path, line: float = 0.3
) -> Iterator[tuple[Any, list[tuple[Any, Mapping[str, Any]]]]]:
  """A figure of panels one below the other; the axes and lines of each."""
  panels = {title: lines for title, lines in panels.items() if lines}
  heights = [1.5 + len(lines) for lines in panels.values()]
  with style.picture(
    file,
    rows=len(panels),
    width=7.5,
    height=1 + 0.4 * len(panels) + line * sum(heights),
    squeeze=False,
    height_ratios=heights,
  ) as (figure, all_axes):
    pairs = list(zip(all_axes[:, 0], panels.values(), strict=True))
    for title, (axes, lines) in zip(panels, pairs, strict=True):
      axes.set_yticks(range(len(lines)), map(titles.published, lines))
      axes.set_ylim(len(lines) - 0.4, -0.6)
      axes.set_title(titles.published(title))
      axes.grid(visible=False, axis="y")
    yield figure, pairs


def _heat(
  axes: Any,
  values: np.ndarray,
  rows: Sequence[Any],
  columns: Sequence[Any],
  text: np.ndarray | None = None,
  *,
  cmap: str = "viridis",
  norm: Any = None,
) -> Any:
  """A heat map with names, and numbers that can be read on their colour."""
  import matplotlib

  colours = matplotlib.colormaps[cmap].with_extremes(bad=_NO_VALUE)
  norm = norm or matplotlib.colors.Normalize(0, 1)
  image = axes.imshow(values, aspect="auto", cmap=colours, norm=norm)
  axes.grid(visible=False)
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  if text is not None:
    for (i, j), word in np.ndenumerate(text):
      dark = np.dot(image.to_rgba(values)[i, j, :3], (0.3, 0.59, 0.11)) < 0.5
      axes.text(
        j, i, word, ha="center", va="center", fontsize=style.SMALL,
        color="white" if dark else "black",
      )  # fmt: skip
  return image
