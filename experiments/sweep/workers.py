"""Processes that take pieces of work in turn, each on its own cores.

A piece that fails, or kills its process, does not stop the others. What a piece
prints goes to its own file.
"""

import collections
import importlib.metadata
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.errors import UserError

_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_PATIENCE = 60.0  # seconds, for a piece to save what it has when it is stopped


class Event(NamedTuple):
  """A change in the state of a piece of work.

  Attributes:
    name: The piece.
    what: "begun", "finished" or "failed".
    seconds: Since it began.
    why: What went wrong, if it failed.
  """

  name: str
  what: str
  seconds: float = 0.0
  why: str = ""


def cores_of(jobs: int) -> list[set[int]]:
  """Shares out this process's cores among jobs, as equally as possible.

  Args:
    jobs: How many run at once; with more than there are cores they share.
  """
  cores = sorted(os.sched_getaffinity(0))
  if jobs >= len(cores):
    return [{cores[i % len(cores)]} for i in range(jobs)]
  return [set(cores[i::jobs]) for i in range(jobs)]


def gpus() -> list[str]:
  """Lists the GPUs that this process may use, as CUDA_VISIBLE_DEVICES does.

  Returns:
    Their names; none where JAX has no CUDA, or is told not to use it.
  """
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
    return []
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  if not any("cuda" in plugin.name for plugin in plugins):
    return []
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is None:
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
      visible = ",".join(
        subprocess.run(
          query, capture_output=True, text=True, timeout=60, check=True
        ).stdout.split()
      )
    except (OSError, subprocess.SubprocessError):
      return []
  return [one for one in visible.split(",") if one and one != "-1"]


def gpus_of(
  there: Sequence[str], jobs: int, each: int = 1
) -> list[dict[str, str]]:
  """Gives GPUs to jobs, by variables of their environment.

  Args:
    there: All GPUs.
    jobs: How many run at once. If there are not enough GPUs for so many, they
      share them, and their memory.
    each: How many GPUs a job needs.

  Returns:
    For each job what to add to its environment; nothing without GPUs.
  """
  if not there:
    return [{} for _ in range(jobs)]
  sets = [there[i : i + each] for i in range(0, len(there), each)]
  sets = [one for one in sets if len(one) == each] or [list(there)]
  sharing = -(-jobs // len(sets))
  made = []
  for i in range(jobs):
    own = {"CUDA_VISIBLE_DEVICES": ",".join(sets[i % len(sets)])}
    if sharing > 1 and _MEMORY not in os.environ:
      # JAX takes three quarters of a GPU's memory when it starts.
      own[_MEMORY] = f"{0.9 / sharing:.3f}"
    made.append(own)
  return made


def run(
  work: Callable[[str], Any],
  pieces: Mapping[str, pathlib.Path],
  *,
  jobs: int,
  environments: Sequence[Mapping[str, str]] = (),
  every: float = 1.0,
) -> Iterator[Event | None]:
  """Runs all pieces, several at once, and yields their events.

  Args:
    work: Runs the piece of a name; a function that can be pickled.
    pieces: By name, the file that its output is appended to.
    jobs: How many to run at once.
    environments: What to add to the environment of each job.
    every: Seconds.

  Yields:
    Events; None when nothing has happened for that many seconds.
  """
  waiting = collections.deque(pieces.items())
  shares = cores_of(min(jobs, len(pieces)))
  workers = [
    _Worker(work, cores, environment)
    for cores, environment in itertools.zip_longest(
      shares, environments[: len(shares)], fillvalue={}
    )
  ]
  try:
    for worker in workers:
      yield worker.begin(*waiting.popleft())
    while busy := {w.connection: w for w in workers if w.name}:
      ready = multiprocessing.connection.wait(list(busy), every)
      if not ready:
        yield None
      for connection in ready:
        worker = busy[connection]
        yield worker.end()
        if waiting:
          yield worker.begin(*waiting.popleft())
  finally:
    for worker in workers:
      worker.close()


class _Worker:
  """A process, and the piece that it works on."""

  def __init__(
    self,
    work: Callable[[str], Any],
    cores: set[int],
    environment: Mapping[str, str],
  ):
    self.work, self.cores, self.name = work, cores, None
    self.environment = dict(environment)
    self.process = self.connection = None

  def begin(self, name: str, log: pathlib.Path) -> Event:
    """Sends it a piece; starts the process if there is none."""
    if self.process is None:
      context = multiprocessing.get_context("spawn")
      self.connection, other = context.Pipe()
      self.process = context.Process(
        target=_serve,
        args=(other, self.work, self.cores, self.environment),
        daemon=True,
      )
      self.process.start()
      other.close()
    self.name, self.since = name, time.monotonic()
    self.connection.send((name, log))
    return Event(name, "begun")

  def end(self) -> Event:
    """Receives how its piece has ended, or that the process has died."""
    name, self.name = self.name, None
    seconds = time.monotonic() - self.since
    try:
      why = self.connection.recv()
    except (EOFError, ConnectionError):
      self.process.join()
      code = self.process.exitcode
      why = f"its process ended with exit code {code}"
      if code < 0:
        why = f"its process was killed by {signal.Signals(-code).name}"
      self.connection.close()
      self.process = None
    if why:
      return Event(name, "failed", seconds, why)
    return Event(name, "finished", seconds)

  def close(self) -> None:
    """Ends the process; one that is at work is asked to save first."""
    if self.process is None:
      return
    if self.name:
      self.process.terminate()
    self.connection.close()
    self.process.join(_PATIENCE)
    if self.process.is_alive():
      self.process.kill()
      self.process.join()


def _serve(
  connection: multiprocessing.connection.Connection,
  work: Callable[[str], Any],
  cores: set[int],
  environment: Mapping[str, str],
) -> None:
  """Runs in a worker: takes pieces until the connection is closed."""
  os.environ.update(environment)  # before JAX looks for devices
  os.sched_setaffinity(0, cores)
  threading.Thread(target=_stop_with_parent, daemon=True).start()
  while True:
    try:
      name, log = connection.recv()
    except (EOFError, KeyboardInterrupt):
      return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    try:
      connection.send(done(work, name))
    except BrokenPipeError:
      return


def _stop_with_parent() -> None:
  """Sends this process SIGTERM when its parent has ended."""
  multiprocessing.parent_process().join()
  os.kill(os.getpid(), signal.SIGTERM)


def done(work: Callable[[str], Any], name: str) -> str:
  """Runs a piece; returns what went wrong, or an empty string."""
  try:
    work(name)
  except UserError as error:
    print(f"Error: {error}", flush=True)
    return str(error)
  except KeyboardInterrupt:
    return "interrupted"
  except BaseException as error:
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"
  return ""
