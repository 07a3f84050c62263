"""Stops a run on SIGTERM and Ctrl-C where everything can be saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.errors import UserError


class Stopped(UserError):
  """The run was asked to stop, and has saved; the same command goes on."""

  def __init__(self, what: str, number: int):
    """Says where the run goes on.

    Args:
      what: What is saved, and where.
      number: The signal's.
    """
    name = signal.Signals(number).name
    super().__init__(
      f"stopped by {name}{what}; the same command goes on from there"
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
  with _handled(came.append):
    yield lambda: came[0] if came else None


@contextlib.contextmanager
def obeyed(path: Path) -> Iterator[None]:
  """Stops at SIGTERM and SIGINT at once, where files are written as wholes.

  Args:
    path: The directory that holds them, for the message.

  Raises:
    Stopped: When a signal comes.
  """

  def stop(number: int) -> None:
    raise Stopped(f"; what was finished is saved in {path}", number)

  with _handled(stop):
    yield


@contextlib.contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
  """Calls a function with the number of the first signal of each kind."""
  before = {}

  def first(number: int, frame: object) -> None:
    del frame
    signal.signal(number, before[number])
    handle(number)

  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGTERM, signal.SIGINT):
      before[number] = signal.signal(number, first)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
