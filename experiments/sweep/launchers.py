"""Launchers of a sweep: local processes, populations, Slurm.

A launcher maps a `Task` to events: when each run begins, finishes or fails.
"""

import functools
import importlib.util
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections

from experiments.config import grid
from experiments.config.grid import Grid
from experiments.errors import UserError
from experiments.runs import train
from experiments.runs import workdir as workdir_lib
from experiments.sweep import population, workers
from experiments.sweep.workers import Event

_PATIENCE = 60.0  # seconds, for another process to leave a run's directory
_EVERY = 5.0  # seconds between two queries of Slurm


class Task(NamedTuple):
  """The runs that a launcher has to train, and how.

  Attributes:
    grid: Which runs there are.
    root: The directory of all runs.
    left: The names of those that are not finished.
    jobs: How many at once; None leaves it to the launcher.
    options: Further options of the launcher.
  """

  grid: Grid
  root: pathlib.Path
  left: list[str]
  jobs: int | None
  options: Mapping[str, Any]


def log(root: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the file that a run's output goes to."""
  return root / "logs" / f"{name}.txt"


def option(text: str) -> tuple[str, int | str]:
  """Parses KEY=VALUE; whole numbers become ints.

  Raises:
    UserError: If there is no key or no value.
  """
  key, _, value = text.partition("=")
  if not key or not value:
    raise UserError(f"--slurm={text}; wanted --slurm=KEY=VALUE")
  return key, int(value) if value.isdecimal() else value


def local(task: Task) -> Iterator[Event | None]:
  """Trains runs in processes on this machine, each on its own cores and GPU.

  As many at once as there are GPUs for them, or cores if there is none, unless
  `jobs` says otherwise; more of them share the GPUs and their memory.
  """
  _without_options("local", task)
  work = functools.partial(_one, task.grid, task.root)
  pieces = {name: log(task.root, name) for name in task.left}
  jobs = at_once("local", task)
  environments = workers.gpus_of(workers.gpus(), jobs, _devices(task))
  yield from workers.run(work, pieces, jobs=jobs, environments=environments)


def at_once(launcher: str, task: Task) -> int | None:
  """Returns how many runs a launcher trains at once, None if it cannot know."""
  if launcher == "local" and not task.jobs:
    there = workers.gpus()
    return max(1, len(there) // _devices(task)) if there else cores()
  return None if launcher == "population" else task.jobs


def _devices(task: Task) -> int:
  """Returns how many devices the runs share that share the most."""
  planned = grid.plan(task.grid)
  return max((planned[name].devices for name in task.left), default=1)


def _one(chosen: Grid, root: pathlib.Path, name: str) -> None:
  """Trains one run in a worker; `grid.plan` is cached there."""
  one = grid.plan(chosen)[name]
  _patiently(lambda: train.train(one, root / name))


def populations(task: Task) -> Iterator[Event | None]:
  """Trains each population in a process, `jobs` at once, by default one."""
  _without_options("population", task)
  work = functools.partial(_group, task.grid, task.root)
  groups = {
    name: [one for one in group if one in task.left]
    for name, group in _groups(task.grid).items()
  }
  groups = {name: left for name, left in groups.items() if left}
  pieces = {name: log(task.root, name) for name in groups}
  jobs, there = task.jobs or 1, workers.gpus()
  environments = workers.gpus_of(there, jobs, max(1, len(there) // jobs))
  for event in workers.run(work, pieces, jobs=jobs, environments=environments):
    if event is None:
      yield None
      continue
    for name in groups[event.name]:
      yield _member(task.root, name, event)


@functools.cache
def _groups(chosen: Grid) -> dict[str, dict[str, ml_collections.ConfigDict]]:
  return population.groups(grid.plan(chosen))


def _member(root: pathlib.Path, name: str, event: Event) -> Event:
  """Makes a run's event of its population's."""
  own = event._replace(name=name)
  if event.what == "begun":
    return own
  if workdir_lib.finished(root / name) is not None:
    return own._replace(what="finished", why="")
  why = event.why or "its loss is not finite"
  return own._replace(what="failed", why=f"{why} ({log(root, event.name)})")


def _group(chosen: Grid, root: pathlib.Path, name: str) -> None:
  """Trains a population in a worker."""
  if jax.config.jax_num_cpu_devices != cores():  # before there are any
    jax.config.update("jax_num_cpu_devices", cores())
  group = _groups(chosen)[name]
  failed = _patiently(lambda: population.run(name, group, root))
  for member, why in failed.items():
    print(f"{member}: {why}", flush=True)


def _patiently(work: Callable[[], Any]) -> Any:
  """Calls `work`; waits for an earlier sweep that still saves its runs."""
  end = time.monotonic() + _PATIENCE
  while True:
    try:
      return work()
    except workdir_lib.InUse:
      if time.monotonic() > end:
        raise
      time.sleep(1)


def slurm(task: Task) -> Iterator[Event | None]:
  """Submits a Slurm array, one job a run, at most `jobs` of them at once.

  Jobs go on when this process ends; the same command later trains what is not
  finished. Options are submitit's, such as `slurm_partition`, `timeout_min`.
  """
  if importlib.util.find_spec("submitit") is None:
    raise UserError(
      "--launcher=slurm needs submitit. Install it: pip install submitit"
    )
  import submitit

  if not task.left:
    return
  try:
    executor = submitit.AutoExecutor(task.root / "slurm", cluster="slurm")
    parallelism = {"slurm_array_parallelism": task.jobs} if task.jobs else {}
    executor.update_parameters(name="sparsejax", **parallelism, **task.options)
    one = functools.partial(_one, task.grid, task.root.absolute())
    work = functools.partial(workers.done, one)
    jobs = dict(
      zip(task.left, executor.map_array(work, task.left), strict=True)
    )
  except (RuntimeError, TypeError, ValueError, AssertionError) as error:
    raise UserError(f"Slurm takes no jobs: {error}") from error
  yield from _followed(task, jobs)


def _followed(task: Task, jobs: dict[str, Any]) -> Iterator[Event | None]:
  """Yields the events of Slurm jobs, by run, until all have ended."""
  begun: dict[str, float] = {}
  while jobs:
    for name, job in list(jobs.items()):
      done = job.done()
      if name not in begun and (done or job.state == "RUNNING"):
        begun[name] = time.monotonic()
        yield Event(name, "begun")
      if not done:
        continue
      del jobs[name]
      seconds = time.monotonic() - begun[name]
      if workdir_lib.finished(task.root / name) is not None:
        yield Event(name, "finished", seconds)
        continue
      why = f"its job is {job.state}" if job.exception() else job.result()
      where = f"job {job.job_id}, {job.paths.stderr}"
      yield Event(name, "failed", seconds, f"{why} ({where})")
    yield None
    if jobs:
      time.sleep(_EVERY)


def _without_options(launcher: str, task: Task) -> None:
  if task.options:
    raise UserError(
      f"launcher {launcher} takes no options, got {dict(task.options)}"
    )


def cores() -> int:
  """Counts the cores that this process may use."""
  return len(os.sched_getaffinity(0))


LAUNCHERS = {"local": local, "population": populations, "slurm": slurm}
