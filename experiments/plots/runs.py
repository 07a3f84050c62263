"""Pictures of runs, in one style, from the records of metrics.jsonl.

What is drawn comes from the runs; nothing here computes a result.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.statistics import interval

if TYPE_CHECKING:
  from experiments.tables.markdown import Row

History = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Sequence[History]]

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = (
  "#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7",
  "#999999",
)  # fmt: skip
_LINES = ("-", "--", "-.", (0, (1, 1)))
STYLE = {
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 10,
  "grid.alpha": 0.3,
  "legend.frameon": False,
}


def accuracy(runs: Runs, file: Path) -> None:
  """Draws test accuracy over steps: the mean over seeds, and its spread.

  Args:
    runs: The records of the runs of each method.
    file: Where the PNG goes.
  """
  _over_steps(runs, file, "accuracy", "test accuracy [%]", unit=100)


def layers(runs: Runs, file: Path) -> None:
  """Draws the sparsity of every sparse layer at the end of training.

  Args:
    runs: The records of the runs of each method; dense ones have no bars.
    file: Where the PNG goes.
  """
  last = {name: _tests(histories[0])[-1] for name, histories in runs.items()}
  last = {name: record for name, record in last.items() if record["layers"]}
  paths = list(dict.fromkeys(p for r in last.values() for p in r["layers"]))
  with matplotlib.rc_context(STYLE):
    picture, axes = figure(width=max(7, 0.9 * len(paths)))
    width = 0.8 / max(len(last), 1)
    colours = dict(zip(runs, cycle(), strict=False))
    for i, (name, record) in enumerate(last.items()):
      rows = [record["layers"][path] for path in paths]
      sparsity = [100 * (1 - row["nnz"] / row["size"]) for row in rows]
      at = np.arange(len(paths)) + (i - (len(last) - 1) / 2) * width
      axes.bar(at, sparsity, width, label=name, color=colours[name])
    axes.set_xticks(range(len(paths)), paths, rotation=20, ha="right")
    axes.set(ylabel="zeros at the end [%]", ylim=(0, 100))
    if last:
      _legend(picture, axes)
    save(picture, file)


def churn(runs: Runs, file: Path) -> None:
  """Draws how masks moved: new weights since the last look, and the first.

  Args:
    runs: The records of the runs of each method; the dense ones are left out.
    file: Where the PNG goes.
  """
  with matplotlib.rc_context(STYLE):
    picture, both = figure(columns=2, width=10)
    labels = {
      "churn": "new since the last evaluation",
      "churn_since_start": "new since the first step",
    }
    for axes, (key, label) in zip(both, labels.items(), strict=True):
      for (name, histories), colour in zip(runs.items(), cycle(), strict=False):
        if not _tests(histories[0])[-1]["layers"]:
          continue
        steps, values = curves(histories, key)
        _band(axes, steps[1:], 100 * values[:, 1:], name, colour)
      axes.set(xlabel="step", ylabel=f"{label} [% of active]")
      axes.set_ylim(bottom=0)
    _legend(picture, both[0])
    save(picture, file)


def losses(runs: Runs, file: Path) -> None:
  """Draws the training loss over steps: the mean over seeds, and its spread.

  Args:
    runs: The records of the runs of each method.
    file: Where the PNG goes.
  """
  _over_steps(runs, file, "loss", "training loss", split="train", scale="log")


def _over_steps(
  runs, file, key, label, *, unit=1, split="test", scale="linear"
):
  with matplotlib.rc_context(STYLE):
    picture, axes = figure()
    for (name, histories), colour in zip(runs.items(), cycle(), strict=False):
      steps, values = curves(histories, key, split=split)
      _band(axes, steps, unit * values, name, colour)
    axes.set(xlabel="step", ylabel=label, yscale=scale)
    axes.legend(loc="best")
    save(picture, file)


def sparsities(
  table: Sequence["Row"], families: Mapping[str, tuple[int, int]], file: Path
) -> None:
  """Draws final test accuracy against sparsity, with 95 % intervals.

  Args:
    table: The rows of the report; those without a sparsity are level lines.
    families: By method, which of the colours it has, and which kind of line.
    file: Where the PNG goes.
  """
  methods = list(dict.fromkeys(row.entry.method for row in table))
  with matplotlib.rc_context(STYLE):
    picture, axes = figure(width=9, height=5)
    ticks = sorted(
      {row.entry.sparsity for row in table if row.entry.sparsity is not None}
    )
    for i, name in enumerate(methods):
      rows = [row for row in table if row.entry.method == name]
      if rows[0].entry.sparsity is None:
        axes.axhline(rows[0].mean, label=name, lw=1, ls=":", color="#555555")
        continue
      colour, line = families[name]
      style = {
        "color": COLOURS[colour % len(COLOURS)],
        "ls": _LINES[line % len(_LINES)],
      }
      # Side by side, so that the intervals can be told apart.
      at = [ticks.index(row.entry.sparsity) for row in rows]
      at = np.array(at) + 0.5 * (i / len(methods) - 0.5)
      means = np.array([row.mean for row in rows])
      ends = np.array([interval(row.accuracy) for row in rows]).T
      error = np.where(np.isfinite(ends), np.abs(ends - means), 0)
      axes.plot(at, means, "o", ms=4, lw=1.2, label=name, **style)
      axes.errorbar(
        at, means, error, fmt="none", lw=1, alpha=0.5, ecolor=style["color"]
      )
    axes.set_xticks(range(len(ticks)), [f"{100 * t:g}" for t in ticks])
    axes.set(xlabel="zeros [%]", ylabel="test accuracy [%]")
    axes.set_ylim(top=min(100, axes.get_ylim()[1]))
    picture.legend(loc="outside right center")
    save(picture, file)


def figure(columns=1, width=7.0, height=4.0, rows=1, **options):
  """A figure with rows and columns of axes, drawn without a display."""
  made = Figure(figsize=(width, height), dpi=120, layout="constrained")
  FigureCanvasAgg(made)
  return made, made.subplots(rows, columns, **options)


def save(figure: Figure, file: Path) -> None:
  """Writes a PNG, the same bytes for the same picture."""
  figure.savefig(file, metadata={"Software": None})


def _legend(picture: Figure, axes) -> None:
  """The names above the picture, or, if they are many, beside it."""
  handles, names = axes.get_legend_handles_labels()
  if len(names) > 6:
    picture.legend(handles, names, loc="outside right center")
  elif names:
    picture.legend(handles, names, loc="outside upper center", ncols=len(names))


def cycle() -> Iterator[str]:
  """The colours, over and over."""
  while True:
    yield from COLOURS


def _tests(history: History) -> list[Mapping[str, Any]]:
  return [record for record in history if record["split"] == "test"]


def curves(histories: Sequence[History], key: str, *, split: str = "test"):
  """Steps, and what records of them hold, as an array [runs, steps]."""
  tests = [[r for r in h if r["split"] == split] for h in histories]
  steps = np.array([record["step"] for record in tests[0]])
  return steps, np.array([[r[key] for r in records] for records in tests])


def _band(axes, steps, values, name, colour):
  mean, std = values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0)
  axes.plot(steps, mean, label=name, color=colour, linewidth=1.5)
  axes.fill_between(
    steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0
  )
