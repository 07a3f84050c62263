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
Track = Callable[..., Advance]  # track(name, total, start=0)
_QUIET = 30.0  # seconds between two lines


def untracked(name: str, total: int, start: int = 0) -> Advance:
  """Shows nothing."""
  del name, total, start
  return lambda step, note="": None


@contextlib.contextmanager
def bar(console: "rich.console.Console | None" = None) -> Iterator[Track]:
  """Shows a bar per run: its name, step, rate and the time that is left.

  Args:
    console: Where to draw; standard error if not given. Where that is no
      terminal, a line now and then takes the bar's place.

  Yields:
    `track(name, total, start)`, called once per run. It returns
    `advance(step, note)`, called whenever the run is further on.
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

    def track(name: str, total: int, start: int = 0) -> Advance:
      task = display.add_task(
        name, total=total, completed=start, rate="", note=""
      )

      def advance(step: int, note: str = "") -> None:
        speed = display.tasks[task].speed
        rate = f"{speed:.0f} steps/s" if speed else ""
        fields = {"note": note} if note else {}
        display.update(task, completed=step, rate=rate, **fields)
        if step >= total:  # leave a line, and the room to the runs to come
          display.update(task, visible=False)
          display.print(f"{name}: done {note}", markup=False, highlight=False)

      return advance

    yield track


def _lines(
  console: "rich.console.Console", name: str, total: int, start: int = 0
) -> Advance:
  began = last = time.monotonic()

  def advance(step: int, note: str = "") -> None:
    nonlocal last
    now = time.monotonic()
    if step < total and now - last < _QUIET:
      return
    last = now
    rate = (step - start) / max(now - began, 1e-9)
    left = (total - step) / max(rate, 1e-9)
    console.print(
      f"{name}: step {step} of {total}, {rate:.0f} steps/s, {left:.0f} s left",
      f"{note}",
      markup=False,
      highlight=False,
      soft_wrap=True,
    )

  return advance
