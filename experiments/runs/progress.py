"""Shows the progress of runs: a bar on a terminal, elsewhere lines.

Nothing here is written to a run's directory.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import rich.console

Advance = Callable[..., None]  # advance(step, note=""), after each stretch
Track = Callable[..., Advance]  # track(name, total, start=0, unit="step")
_QUIET = 30.0  # seconds between two lines


def untracked(
  name: str, total: int, start: int = 0, unit: str = "step"
) -> Advance:
  """Shows nothing."""
  del name, total, start, unit
  return lambda step, note="": None


@contextlib.contextmanager
def bar(console: "rich.console.Console | None" = None) -> Iterator[Track]:
  """Shows a bar per run: its name, step, rate and the time that is left.

  Args:
    console: Where to draw; standard error if not given. Where that is no
      terminal, a line now and then takes the bar's place.

  Yields:
    `track(name, total, start, unit)`, called once per run, or for several of
    them: `unit` is what is counted. It returns `advance(step, note)`, called
    whenever that is further on.
  """
  import rich.console
  import rich.progress

  console = console or rich.console.Console(stderr=True)
  if not console.is_terminal:
    yield functools.partial(_lines, console)
    return
  columns = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(bar_width=None),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TextColumn("{task.fields[rate]}"),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn("{task.fields[note]}"),
  )
  with rich.progress.Progress(*columns, console=console) as display:

    def track(
      name: str, total: int, start: int = 0, unit: str = "step"
    ) -> Advance:
      task = display.add_task(
        name, total=total, completed=start, rate="", note=""
      )

      def advance(step: int, note: str = "") -> None:
        speed = display.tasks[task].speed
        rate = _told(speed, unit) if speed else ""
        fields = {"note": note} if note else {}
        display.update(task, completed=step, rate=rate, **fields)
        if step >= total:  # leave a line, and the room to the runs to come
          display.update(task, visible=False)
          display.print(f"{name}: done {note}", markup=False, highlight=False)

      return advance

    yield track


def _told(rate: float, unit: str) -> str:
  """Returns a rate for people: so many a second, or seconds for each."""
  if rate < 1:
    return f"{1 / rate:.1f} s a {unit}"
  return f"{rate:.0f} {unit}s/s"


def _lines(
  console: "rich.console.Console",
  name: str,
  total: int,
  start: int = 0,
  unit: str = "step",
) -> Advance:
  began = last = time.monotonic()

  def advance(step: int, note: str = "") -> None:
    nonlocal last
    now = time.monotonic()
    if step < total and now - last < _QUIET:
      return
    last = now
    speed = ""
    if step > start:  # nothing is known before
      rate = (step - start) / max(now - began, 1e-9)
      left = (total - step) / rate
      speed = f", {_told(rate, unit)}, {left:.0f} s left"
    console.print(
      f"{name}: {unit} {step} of {total}{speed}",
      f"{note}",
      markup=False,
      highlight=False,
      soft_wrap=True,
    )

  return advance
