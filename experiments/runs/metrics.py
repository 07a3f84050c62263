"""Writes and reads metrics: metrics.jsonl, the record, and TensorBoard.

The record holds nothing that differs from run to run, such as times: a run
that was killed and resumed ends with the file of one that never stopped.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from experiments.errors import UserError
from experiments.runs.workdir import storage

Write = Callable[..., None]


@contextlib.contextmanager
def writer(
  workdir: Path, *, after: int, tensorboard: bool = True
) -> Iterator[Write]:
  """Opens the run's record, cut back to where the run goes on.

  Args:
    workdir: The run's directory.
    after: The step that was restored, -1 for a fresh start. What the record
      holds of later steps is dropped, since these are about to be run again.
    tensorboard: Whether to write TensorBoard's event files too.

  Yields:
    `write(step, split, values, timings={})`: appends one line to the
    record. Values are numbers or nested mappings of them; timings go to
    TensorBoard alone.
  """
  file = workdir / "metrics.jsonl"
  with storage(workdir):
    _cut(file, after)
  events = None
  if tensorboard:
    import tensorboardX  # which loads torch, where that is installed

    with storage(workdir):
      events = tensorboardX.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=after + 1
      )

  def write(
    step: int,
    split: str,
    values: Mapping[str, Any],
    timings: Mapping[str, float] | None = None,
  ) -> None:
    record = {"step": int(step), "split": split, **_plain(values)}
    with storage(workdir), file.open("a") as out:
      out.write(json.dumps(record, allow_nan=False) + "\n")
    if events:
      numbers = {**record, **(timings or {})}
      del numbers["step"], numbers["split"]
      for name, value in traverse_util.flatten_dict(numbers, sep="/").items():
        if value is not None:
          events.add_scalar(f"{split}/{name}", value, step)

  try:
    yield write
  finally:
    if events:
      events.close()


def sync(workdir: Path) -> None:
  """Flushes the record to the disk, before a checkpoint relies on it."""
  file = workdir / "metrics.jsonl"
  if file.exists():
    with storage(workdir), file.open("rb") as record:
      os.fsync(record.fileno())


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the run's record: one dict per line, in the order of the steps."""
  file = Path(workdir) / "metrics.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  return [json.loads(line) for line in lines]


def last_test(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the numbers of the last evaluation in a record.

  Raises:
    UserError: If it holds none.
  """
  last = next((r for r in reversed(history) if r["split"] == "test"), None)
  if last is None:
    raise UserError(
      "metrics.jsonl holds no evaluation, though the run is trained: it was "
      "removed or cut. Give another --workdir."
    )
  return {k: v for k, v in last.items() if k not in ("step", "split")}


def _cut(file: Path, after: int) -> None:
  """Truncates the file before the first line of a later step or cut short."""
  if not file.exists():
    return
  kept = 0
  with file.open("rb+") as record:
    for line in record:
      try:
        whole = line.endswith(b"\n") and json.loads(line)["step"] <= after
      except (ValueError, KeyError, TypeError):
        whole = False
      if not whole:
        break
      kept += len(line)
    record.truncate(kept)


def _plain(value: Any) -> Any:
  """Turns NumPy's numbers into Python's, with no more digits than they hold."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  value = np.asarray(value)
  if np.issubdtype(value.dtype, np.integer) or value.dtype == bool:
    return int(value)
  number = float(str(value[()]))
  return number if math.isfinite(number) else None
