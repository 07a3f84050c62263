"""Pictures of runs over their steps, from the records of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plots import style

History = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Sequence[History]]


def accuracy(runs: Runs, file: Path) -> None:
  """Draws test accuracy over steps: mean and standard deviation over seeds.

  Args:
    runs: By method, the records of the run of each seed.
    file: Where the PNG goes.
  """
  _over_steps(runs, file, "accuracy", "test accuracy [%]", unit=100)


def losses(runs: Runs, file: Path) -> None:
  """Draws the training loss over steps: mean and standard deviation.

  Args:
    runs: By method, the records of the run of each seed.
    file: Where the PNG goes.
  """
  _over_steps(runs, file, "loss", "training loss", split="train", scale="log")


def _over_steps(
  runs: Runs,
  file: Path,
  key: str,
  label: str,
  *,
  unit: float = 1,
  split: str = "test",
  scale: str = "linear",
) -> None:
  with style.picture(file) as (_, axes):
    for color, (name, histories) in style.coloured(runs.items()):
      steps, values = curves(histories, key, split=split)
      style.band(axes, steps, unit * values, name, color=color)
    axes.set(xlabel="step", ylabel=label, yscale=scale)
    axes.legend(loc="best")


def layers(runs: Runs, file: Path) -> None:
  """Draws the sparsity of every sparse layer at the end of training.

  Args:
    runs: By method, the records of the run of each seed, of which the first is
      drawn; dense methods have no bars.
    file: Where the PNG goes.
  """
  last = {name: _tests(histories[0])[-1] for name, histories in runs.items()}
  last = {name: record for name, record in last.items() if record["layers"]}
  paths = list(dict.fromkeys(p for r in last.values() for p in r["layers"]))
  with style.picture(file, width=max(7, 0.9 * len(paths))) as (figure, axes):
    width = 0.8 / max(len(last), 1)
    colours = {name: color for color, name in style.coloured(runs)}
    for i, (name, record) in enumerate(last.items()):
      counts = [record["layers"][path] for path in paths]
      sparsity = [100 * (1 - c["nnz"] / c["size"]) for c in counts]
      at = np.arange(len(paths)) + (i - (len(last) - 1) / 2) * width
      axes.bar(at, sparsity, width, label=name, color=colours[name])
    axes.set_xticks(range(len(paths)), paths, rotation=20, ha="right")
    axes.set(ylabel="zeros at the end [%]", ylim=(0, 100))
    style.legend(figure, axes)


def churn(runs: Runs, file: Path) -> None:
  """Draws the share of new weights since the last evaluation, and the first.

  Args:
    runs: By method, the records of the run of each seed; dense ones are left
      out.
    file: Where the PNG goes.
  """
  labels = {
    "churn": "new since the last evaluation",
    "churn_since_start": "new since the first step",
  }
  with style.picture(file, columns=2, width=10) as (figure, panels):
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
      for color, (name, histories) in style.coloured(runs.items()):
        if not _tests(histories[0])[-1]["layers"]:
          continue
        steps, values = curves(histories, key)
        style.band(axes, steps[1:], 100 * values[:, 1:], name, color=color)
      axes.set(xlabel="step", ylabel=f"{label} [% of active]")
      axes.set_ylim(bottom=0)
    style.legend(figure, panels[0])


def finetuning(history: History, measure: str, file: Path) -> None:
  """Draws the training losses, and the test measure, of one run over steps.

  Args:
    history: The run's records.
    measure: The key of the test measure.
    file: Where the PNG goes.
  """
  training = [record for record in history if record["split"] == "train"]
  tests = _tests(history)
  terms = [key for key in training[0] if key not in ("step", "split")]
  terms = terms if len(terms) > 2 else ["loss"]  # which is its only term
  with style.picture(file, columns=2, width=10) as (_, (left, right)):
    steps = [r["step"] for r in training]
    for color, key in style.coloured(terms):
      values, label = [r[key] for r in training], key.replace("_", " ")
      left.plot(steps, values, label=label, color=color)
    left.set(xlabel="step", ylabel="training loss")
    left.legend()
    right.plot([r["step"] for r in tests], [r[measure] for r in tests], "o-k")
    right.set(xlabel="step", ylabel=f"test {measure}")


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
  return steps, np.array([[r[key] for r in records] for records in tests])
