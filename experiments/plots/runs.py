"""Pictures of runs over their steps, from the records of metrics.jsonl."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plots import looks, style, titles

History = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Sequence[History]]


def accuracy(runs: Runs, file: Path, *, title: str) -> None:
  """Draws test accuracy over steps: means over seeds and 95 % intervals.

  Args:
    runs: By method, the records of the run of each seed.
    file: Where the PNG goes.
    title: What the runs are.
  """
  _over_steps(runs, file, title, "accuracy", "test accuracy [%]")


def losses(runs: Runs, file: Path, *, title: str) -> None:
  """Draws the training loss over steps: means over seeds and 95 % intervals.

  Args:
    runs: By method, the records of the run of each seed.
    file: Where the PNG goes.
    title: What the runs are.
  """
  how = {"unit": 1, "split": "train", "yscale": "log"}
  _over_steps(runs, file, title, "loss", "training loss", **how)


def churn(runs: Runs, file: Path, *, title: str, key: str = "churn") -> None:
  """Draws the share of active weights that are new since another evaluation.

  Args:
    runs: By method, the records of the run of each seed; dense ones are left
      out.
    file: Where the PNG goes.
    title: What the runs are.
    key: `churn`, since the evaluation before; `churn_since_start`, the first.
  """
  since = "last evaluation" if key == "churn" else "first step"
  label = f"new since the {since} [% of active]"
  sparse = {
    name: histories
    for name, histories in runs.items()
    if _tests(histories[0])[-1]["layers"]
  }
  _over_steps(sparse, file, title, key, label, first=1)


churn_since_start = functools.partial(churn, key="churn_since_start")


def _over_steps(
  runs: Runs,
  file: Path,
  title: str,
  key: str,
  label: str,
  *,
  unit: float = 100,
  split: str = "test",
  yscale: str = "linear",
  first: int = 0,
) -> None:
  found = {name: curves(runs[name], key, split=split) for name in runs}
  numbers = [values for _, values in found.values()]
  if yscale == "log" and not _far_apart(numbers):
    yscale = "linear"
  seeds = [len(values) for _, values in found.values()] or [1]

  def draw(axes: Any, name: str, **how: Any) -> None:
    steps, values = found[name]
    style.band(axes, steps[first:], unit * values[:, first:], **how)

  def finish(axes: Any, names: Sequence[str]) -> None:
    del names
    if yscale == "log":
      axes.set_yscale(yscale)
      style.plain_numbers(axes.yaxis)
    if first:
      axes.set_ylim(bottom=0)

  style.multiples(
    style.name_parts(found),
    draw,
    file,
    finish=finish,
    title=f"{title}\n{titles.spread(seeds)}",
    xlabel="step",
    ylabel=label,
  )


def _far_apart(numbers: Sequence[np.ndarray]) -> bool:
  """Whether an axis of these is better logarithmic."""
  known = np.concatenate([values.ravel() for values in numbers] or [[1.0]])
  known = known[np.isfinite(known)]
  return known.size > 0 and known.max() > 5 * known.min() > 0


def layers(runs: Runs, file: Path, *, title: str) -> None:
  """Draws the sparsity of every sparse layer at the end of training.

  Args:
    runs: By method, the records of the run of each seed, of which the first is
      drawn; dense methods have no panel.
    file: Where the PNG goes.
    title: What the runs are.
  """
  last = {name: _tests(histories[0])[-1] for name, histories in runs.items()}
  last = {name: record for name, record in last.items() if record["layers"]}
  paths = list(dict.fromkeys(p for r in last.values() for p in r["layers"]))
  with style.grid(
    file,
    len(last),
    title=f"{title}\none seed of each method",
    xlabel="zeros at the end [%]",
    height=0.45 + 0.19 * len(paths),
    sharex=True,
    sharey=True,
  ) as (_, panels):
    for axes, (name, record) in zip(panels, last.items(), strict=True):
      counts = [record["layers"][path] for path in paths]
      sparsity = [100 * (1 - c["nnz"] / c["size"]) for c in counts]
      axes.barh(range(len(paths)), sparsity, 0.7, color=looks.of(name).color)
      axes.set_yticks(range(len(paths)), paths)
      axes.set_title(titles.published(name))
      axes.set(xlim=(0, 100), ylim=(len(paths) - 0.4, -0.6))


def finetuning(
  history: History, measure: str, file: Path, *, title: str
) -> None:
  """Draws the training losses, and the test measure, of one run over steps.

  Args:
    history: The run's records.
    measure: The key of the test measure.
    file: Where the PNG goes.
    title: What the run is.
  """
  training = [record for record in history if record["split"] == "train"]
  tests = _tests(history)
  terms = [key for key in training[0] if key not in ("step", "split")]
  terms = terms if len(terms) > 2 else ["loss"]  # which is its only term
  with style.grid(
    file, 2, title=title, xlabel="step", height=2.4, sharex=True
  ) as (figure, (left, right)):
    steps = [r["step"] for r in training]
    for color, key in zip(looks.COLOURS, terms, strict=False):
      values = np.array([r[key] for r in training], float)
      dash = "-" if key == "loss" else "--"
      label = _TERMS.get(key, titles.published(key))
      left.plot(steps, values, label=label, ls=dash, color=color)
    left.set(ylabel="training loss")
    if len(terms) > 1:
      handles, labels = left.get_legend_handles_labels()
      place = {"loc": "outside lower center", "ncols": len(labels)}
      figure.legend(handles, labels, **place)
    values = np.array([r[measure] for r in tests], float)
    right.plot([r["step"] for r in tests], values, "o-", color=looks.BLACK)
    right.set(ylabel=f"test {measure}")


_TERMS = {"cross_entropy": "cross-entropy", "square_head": "SquareHead"}


def _tests(history: History) -> list[Mapping[str, Any]]:
  return [record for record in history if record["split"] == "test"]


def curves(
  histories: Sequence[History], key: str, *, split: str = "test"
) -> tuple[np.ndarray, np.ndarray]:
  """Collects one number of the records of several runs.

  Args:
    histories: The records of each run.
    key: Of the number.
    split: The records that hold it.

  Returns:
    [points] the steps, and [runs, points] the numbers.
  """
  tests = [[r for r in h if r["split"] == split] for h in histories]
  steps = np.array([record["step"] for record in tests[0]])
  values = [[record[key] for record in records] for records in tests]
  return steps, np.array(values, float)  # NaN where a loss was not finite
