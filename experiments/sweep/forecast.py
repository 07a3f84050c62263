"""How long runs will take, by those that have finished."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_collections

from experiments.config import calling


class Forecast:
  """Seconds a training step, of runs that are alike and of all."""

  def __init__(self):
    self._alike: dict[str, list[float]] = {}
    self._all: list[float] = []

  def add(self, config: ml_collections.ConfigDict, seconds: float) -> None:
    """Adds what a finished run has taken."""
    self._all.append(seconds / config.steps)
    self._alike.setdefault(_kind(config), []).append(self._all[-1])

  def seconds(self, config: ml_collections.ConfigDict) -> float | None:
    """Returns how long a run may take, or None if no run has finished.

    It is the median of runs that differ in seed, sparsity and steps only; of
    all runs if there is none.
    """
    known = self._alike.get(_kind(config), self._all)
    return statistics.median(known) * config.steps if known else None

  def left(self, configs: Iterable[ml_collections.ConfigDict]) -> float | None:
    """Returns how long runs may take, one after another, or None."""
    each = [self.seconds(config) for config in configs]
    return None if None in each else sum(each)


def _kind(config: ml_collections.ConfigDict) -> str:
  """Names what makes a step of a run as long as that of another."""
  keys = ("data", "model", "optimizer", "mode", "batch_size", "devices")
  plain = calling.plain(config)
  return json.dumps([config.algorithm.name, *(plain[key] for key in keys)])


def of_finished(
  planned: Mapping[str, ml_collections.ConfigDict],
  names: Iterable[str],
  root: pathlib.Path,
) -> Forecast:
  """Makes the forecast from finished runs, by the times of their files.

  Args:
    planned: The configs of all runs, by name.
    names: The names of those that are finished.
    root: The directory of all runs.
  """
  made = Forecast()
  for name in names:
    seconds = _seconds_of(root / name)
    if seconds is not None:
      made.add(planned[name], seconds)
  return made


def _seconds_of(folder: pathlib.Path) -> float | None:
  """Returns the time from a run's first file to its last, pauses included."""
  try:
    begun, ended = (
      (folder / name).stat().st_mtime
      for name in ("config.json", "finished.json")
    )
  except OSError:
    return None
  return ended - begun if ended > begun else None


def told(seconds: float) -> str:
  """Returns a duration for people.

  Example:
    >>> told(50), told(600), told(40_000)
    ('50 s', '10 min', '11.1 h')
  """
  if seconds < 100:
    return f"{seconds:.0f} s"
  if seconds < 6000:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


class Cost(NamedTuple):
  """What a sweep will cost.

  Attributes:
    runs: All runs.
    left: Those that are not finished.
    at_once: How many are run at once; None if nobody here knows.
    seconds: Until all are finished with one after another; None if unknown.
  """

  runs: int
  left: int
  at_once: int | None
  seconds: float | None

  def __str__(self) -> str:
    done = self.runs - self.left
    text = f"{self.runs} runs: {done} finished, {self.left} left"
    if not self.left:
      return text
    jobs = min(self.at_once or 1, self.left)
    if self.at_once:
      text += f", {jobs} at once"
    if self.seconds is None:
      when = "" if done else " before one has finished"
      return f"{text}; how long that takes is not known{when}"
    when = "" if self.at_once else " if one after another"
    return f"{text}; about {told(self.seconds / jobs)}{when}"
