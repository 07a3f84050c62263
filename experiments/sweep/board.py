"""Shows the progress of a sweep: a live table on a terminal, or else lines."""

import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import rich.console
import rich.live
import rich.table

from experiments.errors import UserError
from experiments.runs import metrics
from experiments.sweep import workers
from experiments.sweep.forecast import Forecast, told


class Board:
  """The states of a sweep's runs."""

  def __init__(
    self,
    planned: Mapping[str, ml_collections.ConfigDict],
    left: Sequence[str],
    root: pathlib.Path,
    forecast: Forecast,
    at_once: int | None,
  ):
    """Starts with nothing running.

    Args:
      planned: The configs of all runs, by name.
      left: The names of those that are not finished.
      root: The directory of all runs.
      forecast: How long runs take; it learns from those that finish.
      at_once: How many run at once, None if that is not known.
    """
    self.planned, self.root = planned, root
    self.left = dict.fromkeys(left)
    self.forecast, self.at_once = forecast, at_once
    self.done = len(planned) - len(left)
    self.running: dict[str, float] = {}
    self.failed: dict[str, str] = {}
    self.console = rich.console.Console(stderr=True)

  def follow(self, events: Iterable[workers.Event | None]) -> dict[str, str]:
    """Shows events as they come, to the last; returns why runs have failed."""
    if not self.console.is_terminal:
      for event in events:
        if event is not None:
          self._update(event)
          self.console.print(self._line(event), highlight=False, soft_wrap=True)
      return self.failed
    with rich.live.Live(
      console=self.console, get_renderable=self._table, refresh_per_second=1
    ):
      for event in events:
        if event is not None:
          self._update(event)
    return self.failed

  def _update(self, event: workers.Event) -> None:
    if event.what == "begun":
      self.running[event.name] = time.monotonic()
      return
    del self.running[event.name], self.left[event.name]
    if event.what == "failed":
      self.failed[event.name] = event.why
    else:
      self.done += 1
      if self.at_once:  # members of a population take as long as all of it
        self.forecast.add(self.planned[event.name], event.seconds)

  def _counts(self) -> str:
    waiting = len(self.planned) - self.done - len(self.failed)
    return (
      f"{self.done} of {len(self.planned)} finished, "
      f"{len(self.running)} running, {waiting - len(self.running)} waiting, "
      f"{len(self.failed)} failed{self._time_left()}"
    )

  def _time_left(self) -> str:
    seconds = self.forecast.left(self.planned[name] for name in self.left)
    if not self.at_once or not seconds:
      return ""
    now = time.monotonic()
    seconds -= sum(now - since for since in self.running.values())
    seconds /= min(self.at_once, len(self.left))
    return f", about {told(max(0, seconds))} left"

  def _line(self, event: workers.Event) -> str:
    title = self.planned[event.name].name
    took = f" after {event.seconds:.0f} s" if event.what != "begun" else ""
    why = f": {event.why.splitlines()[0]}" if event.why else ""
    return f"{event.name} ({title}) {event.what}{took}{why}; {self._counts()}"

  def _table(self) -> rich.table.Table:
    table = rich.table.Table(title=self._counts())
    for column in ("run", "what", "step", "accuracy", "seconds"):
      table.add_column(column)
    for name, since in self.running.items():
      config, last = self.planned[name], self._last_record(name)
      table.add_row(
        name,
        config.name,
        f"{last.get('step', 0)} of {config.steps}",
        f"{last['accuracy']:.3f}" if "accuracy" in last else "",
        f"{time.monotonic() - since:.0f}",
      )
    for name, why in self.failed.items():
      title = self.planned[name].name
      table.add_row(name, title, "failed", "", why.splitlines()[0])
    return table

  def _last_record(self, name: str) -> dict[str, Any]:
    try:
      records = metrics.read(self.root / name)
    except (OSError, UserError):
      return {}
    return records[-1] if records else {}
