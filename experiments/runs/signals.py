"""Stops a run on SIGTERM and Ctrl-C where everything can be saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.errors import UserError


class Stopped(UserError):
  """The run was asked to stop, and has saved; the same command goes on."""

  def __init__(self, path: Path, step: int, steps: int, number: int):
    """Says where the run goes on.

    Args:
      path: The run's directory.
      step: The step that is saved.
      steps: How many it was to be.
      number: The signal's.
    """
    name = signal.Signals(number).name
    super().__init__(
      f"stopped by {name} after step {step} of {steps}, which is saved in "
      f"{path}; the same command goes on from there"
    )
    self.exit_code = 128 + number


@contextlib.contextmanager
def caught() -> Iterator[Callable[[], int | None]]:
  """Catches SIGTERM and SIGINT while it is open.

  A second signal of a kind has its usual effect, for whoever cannot wait. In
  a thread other than the main one, where Python allows no handlers, nothing
  is caught.

  Yields:
    A function that returns the number of the signal that came, or None.
  """
  came: list[int] = []
  before = {}

  def note(number: int, frame: object) -> None:
    del frame
    came.append(number)
    signal.signal(number, before[number])

  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGTERM, signal.SIGINT):
      before[number] = signal.signal(number, note)
  try:
    yield lambda: came[0] if came else None
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
