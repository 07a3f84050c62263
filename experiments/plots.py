"""Pictures of runs, in one style, from the records of metrics.jsonl.

What is drawn comes from the runs; nothing here computes a result.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Sequence[History]]

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = (
  "#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7",
  "#999999",
)  # fmt: skip
_STYLE = {
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
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure()
    for (name, histories), colour in zip(runs.items(), _cycle(), strict=False):
      steps, values = _curves(histories, "accuracy")
      _band(axes, steps, 100 * values, name, colour)
    axes.set(xlabel="step", ylabel="test accuracy [%]")
    axes.legend(loc="best")
    _save(figure, file)


def layers(runs: Runs, file: Path) -> None:
  """Draws the sparsity of every sparse layer at the end of training.

  Args:
    runs: The records of the runs of each method; dense ones have no bars.
    file: Where the PNG goes.
  """
  last = {name: _tests(histories[0])[-1] for name, histories in runs.items()}
  last = {name: record for name, record in last.items() if record["layers"]}
  paths = list(dict.fromkeys(p for r in last.values() for p in r["layers"]))
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure(width=max(7, 0.9 * len(paths)))
    width = 0.8 / max(len(last), 1)
    colours = dict(zip(runs, _cycle(), strict=False))
    for i, (name, record) in enumerate(last.items()):
      rows = [record["layers"][path] for path in paths]
      sparsity = [100 * (1 - row["nnz"] / row["size"]) for row in rows]
      at = np.arange(len(paths)) + (i - (len(last) - 1) / 2) * width
      axes.bar(at, sparsity, width, label=name, color=colours[name])
    axes.set_xticks(range(len(paths)), paths, rotation=20, ha="right")
    axes.set(ylabel="zeros at the end [%]", ylim=(0, 100))
    if last:
      figure.legend(loc="outside upper center", ncols=len(last))
    _save(figure, file)


def churn(runs: Runs, file: Path) -> None:
  """Draws how masks moved: new weights since the last look, and the first.

  Args:
    runs: The records of the runs of each method; the dense ones are left out.
    file: Where the PNG goes.
  """
  with matplotlib.rc_context(_STYLE):
    figure, both = _figure(columns=2, width=10)
    labels = {
      "churn": "new since the last evaluation",
      "churn_since_start": "new since the first step",
    }
    for axes, (key, label) in zip(both, labels.items(), strict=True):
      for (name, histories), colour in zip(
        runs.items(), _cycle(), strict=False
      ):
        if not _tests(histories[0])[-1]["layers"]:
          continue
        steps, values = _curves(histories, key)
        _band(axes, steps[1:], 100 * values[:, 1:], name, colour)
      axes.set(xlabel="step", ylabel=f"{label} [% of active]")
      axes.set_ylim(bottom=0)
    handles, names = both[0].get_legend_handles_labels()
    if handles:
      figure.legend(
        handles, names, loc="outside upper center", ncols=len(names)
      )
    _save(figure, file)


def _figure(columns=1, width=7.0):
  figure = Figure(figsize=(width, 4), dpi=120, layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots(1, columns)


def _save(figure, file):
  figure.savefig(file, metadata={"Software": None})


def _cycle():
  while True:
    yield from _COLOURS


def _tests(history: History) -> list[Mapping[str, Any]]:
  return [record for record in history if record["split"] == "test"]


def _curves(histories, key):
  """Steps, and values as an array [runs, steps]."""
  tests = [_tests(history) for history in histories]
  steps = np.array([record["step"] for record in tests[0]])
  return steps, np.array([[r[key] for r in records] for records in tests])


def _band(axes, steps, values, name, colour):
  mean, std = values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0)
  axes.plot(steps, mean, label=name, color=colour, linewidth=1.5)
  axes.fill_between(
    steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0
  )
