"""Turns sums and scores from the device into lines of metrics.jsonl.

Records are read one stretch late, when they are done anyway, so that the
device never waits for the host.
"""

import collections
import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.errors import UserError
from experiments.runs import checkpoints, metrics
from experiments.runs.model import Scores
from experiments.runs.step import COUNTS, NEVER, State, Sums
from sparsejax.masks import path_name

if TYPE_CHECKING:
  import orbax.checkpoint as ocp


class Diverged(Exception):
  """The loss, or what a step made of the params, is no longer finite."""

  def __init__(self, what: str, step: int):
    super().__init__(f"{what} at step {step}")


class DivergedError(UserError):
  """A run's message that it diverged."""


class ZerosLost(UserError):
  """Inactive weights are no longer 0."""


@contextlib.contextmanager
def diverging(path: Path, manager: "ocp.CheckpointManager") -> Iterator[None]:
  """Turns `Diverged` into a message that names the last good checkpoint.

  Args:
    path: The run's directory.
    manager: Of its checkpoints.

  Raises:
    DivergedError: In place of `Diverged`.
  """
  try:
    yield
  except Diverged as error:
    last = checkpoints.latest(manager)
    good = "there is no checkpoint yet"
    if last is not None:
      good = f"the last good checkpoint is that of step {last}"
    raise DivergedError(
      f"{error}; {good}, in {path / 'checkpoints'}. Try a lower learning rate, "
      "a warm-up or clipping, in another --workdir."
    ) from None


class Recorder:
  """Writes records in the order in which they were added, a little later."""

  def __init__(self, write: metrics.Write, *, params: Any, labels: int):
    """Starts with nothing to write.

    Args:
      write: From `metrics.writer`.
      params: The parameters, or their shapes.
      labels: Those that one training step takes.
    """
    self.note = ""  # on the last evaluation, for people
    self._write = write
    self._labels = labels
    leaves = jax.tree_util.tree_leaves_with_path(params)
    self._sizes = {path_name(path): math.prod(x.shape) for path, x in leaves}
    self._pending = collections.deque()
    self._clock = time.monotonic()

  def train(self, step: int, sums: Sums) -> None:
    """Adds the sums since the record before."""
    self._pending.append((self._write_train, step, sums))

  def test(self, step: int, scores: Scores, zeros: dict) -> None:
    """Adds an evaluation: what `evaluate` and `inspect` gave."""
    self._pending.append((self._write_test, step, (scores, zeros)))

  def flush(self, *, keep: int = 0) -> None:
    """Writes all but the newest `keep` records.

    Raises:
      Diverged: If a loss was not finite; that record is not written.
      ZerosLost: If inactive weights were not 0 in an evaluation.
    """
    while len(self._pending) > keep:
      write, step, values = self._pending.popleft()
      write(step, jax.device_get(values))

  def _write_train(self, step: int, sums: Sums) -> None:
    check_loss(sums)
    now = time.monotonic()
    rate = sums.steps / max(now - self._clock, 1e-9)
    self._clock = now
    values = {
      "loss": sums.loss / np.float32(sums.steps),
      "accuracy": sums.correct / (int(sums.steps) * self._labels),
    }
    self._write(step, "train", values, {"steps_per_second": rate})

  def _write_test(self, step: int, found: tuple[Scores, dict]) -> None:
    scores, zeros = found
    check_zeros({p: c["lost"] for p, c in zeros["layers"].items()}, step)
    layers = {
      path: {
        "size": self._sizes[path],
        "nnz": c["nnz"],
        **_churn(c),
        "explored": int(c["explored"]) / self._sizes[path],
      }
      for path, c in zeros["layers"].items()
    }
    counts = list(zeros["layers"].values())
    total = {k: sum(int(c[k]) for c in counts) for k in COUNTS}
    maskable = sum(layer["size"] for layer in layers.values())
    size = sum(self._sizes.values())
    examples = int(scores.examples)
    accuracy = int(scores.correct) / examples
    self.note = f"accuracy {accuracy:.3f}"
    values = {
      "loss": scores.loss / np.float32(examples),
      "accuracy": accuracy,
      "size": size,
      "nnz": size - maskable + total["nnz"],
      "density": total["nnz"] / maskable if maskable else 1.0,
      **_churn(total),
      "explored": total["explored"] / maskable if maskable else 1.0,
      "layers": layers,
    }
    self._write(step, "test", values)


def check_zeros(lost: Mapping[str, Any], step: int) -> None:
  """Raises `ZerosLost` if inactive weights are not 0; takes counts by leaf."""
  found = {path: int(count) for path, count in lost.items() if count}
  if found:
    counts = ", ".join(f"{count} of {path}" for path, count in found.items())
    raise ZerosLost(
      f"at step {step} inactive weights are not 0: {counts}. What changes "
      "updates after a sparse transformation loses its zeros: put it inside, "
      "as in rigl(chain(adam, scale)), never around or after"
    )


def check_loss(sums: Sums) -> None:
  """Raises `Diverged` if a loss was not finite."""
  if sums.bad != NEVER:
    raise Diverged("the loss is not finite", int(sums.bad))


def check_state(state: State) -> None:
  """Raises `Diverged` if a loss, or a weight on the host, is not finite."""
  check_loss(state.sums)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(state.params)):
    raise Diverged("params are not finite", int(state.step))


def _churn(counts: dict[str, Any]) -> dict[str, float]:
  """Computes the shares of active weights that were inactive before."""
  nnz = max(int(counts["nnz"]), 1)
  return {
    "churn": int(counts["new"]) / nnz,
    "churn_since_start": int(counts["new_since_start"]) / nnz,
  }
