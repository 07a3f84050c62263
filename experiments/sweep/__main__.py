"""Runs all configs of a grid that are not finished, several at once.

python -m experiments.sweep --config=configs/FILE.py[:ARG] --root=DIR \
  [--launcher=local|population|slurm] [--jobs=N] [--slurm=KEY=VALUE] \
  [--dry_run] [--only=NAME]

experiments/config/grid.py reads what the grid is. Each run is one of
experiments.runs.train
in DIR/NAME, where NAME is a hash of what differs from the defaults of a run,
told in DIR/sweep.json. The same command goes on with runs that were stopped,
and leaves finished ones alone; a run that fails does not stop the others.
"""

import pathlib
import shlex
import time
from collections.abc import Iterable, Mapping
from typing import Any

import rich.console
import rich.live
import rich.table
from absl import flags

from experiments import cli
from experiments.config import grid
from experiments.errors import UserError, unknown
from experiments.runs import metrics, train
from experiments.runs import workdir as workdir_lib
from experiments.sweep import launchers, workers

_SHOWN = 5  # last lines of what a failed run printed


def run(
  config: str,
  root: str,
  *,
  launcher: str = "local",
  jobs: int | None = None,
  options: Mapping[str, Any] | None = None,
) -> None:
  """Does what is left of a sweep.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.
    launcher: Who does it: a key of `launchers.LAUNCHERS`.
    jobs: How many at once; see there.
    options: What the launcher takes besides.

  Raises:
    UserError: If there is no such file, grid or launcher, two runs are the
      same, or runs have failed.
  """
  if launcher not in launchers.LAUNCHERS:
    raise unknown("launcher", launcher, launchers.LAUNCHERS)
  planned = grid.plan(config)
  path = pathlib.Path(root)
  with workdir_lib.locked(path), workdir_lib.storage(path):
    told = {name: grid.differences(one) for name, one in planned.items()}
    workdir_lib.write_json(path / "sweep.json", told)
    left = _left(planned, path)
    task = launchers.Task(config, path, left, jobs, dict(options or {}))
    board = Board(planned, left, path)
    failed = board.follow(launchers.LAUNCHERS[launcher](task))
  if failed:
    raise UserError(_complaint(failed, path))
  print(f"all {len(planned)} runs are finished: {path}")


def run_one(config: str, root: str, name: str) -> None:
  """Does one run of a sweep, here and now.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.
    name: The run.

  Raises:
    UserError: As `run`, and if there is no such run.
  """
  planned = grid.plan(config)
  if name not in planned:
    raise unknown("run of the sweep", name, planned)
  train.train(planned[name], pathlib.Path(root) / name)


def commands(config: str, root: str) -> list[str]:
  """The commands of the runs that are left, one each.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.

  Raises:
    UserError: If there is no such file or grid, or two runs are the same.
  """
  same = f"--config={config}", f"--root={root}"
  return [
    shlex.join(("python", "-m", "experiments.sweep", *same, f"--only={name}"))
    for name in _left(grid.plan(config), pathlib.Path(root))
  ]


def _left(planned, path: pathlib.Path) -> list[str]:
  """The runs that are not finished."""
  return [n for n in planned if workdir_lib.finished(path / n) is None]


def _complaint(failed: Mapping[str, str], root: pathlib.Path) -> str:
  parts = [f"{len(failed)} runs failed; the same command tries them again."]
  for name, why in failed.items():
    parts.append(f"  {name}: {why}")
    log = launchers.log(root, name)
    if log.exists():
      lines = log.read_text(errors="replace").splitlines()
      parts += [f"    {line}" for line in lines[-_SHOWN:]] + [f"    ({log})"]
  return "\n".join(parts)


class Board:
  """The state of a sweep, as a table that lives, or a line now and then."""

  def __init__(self, planned, left, root):
    self.planned, self.root = planned, root
    self.done = len(planned) - len(left)
    self.running: dict[str, float] = {}
    self.failed: dict[str, str] = {}
    self.console = rich.console.Console(stderr=True)

  def follow(self, events: Iterable[workers.Event | None]) -> dict[str, str]:
    """Shows what happens; why which runs failed."""
    if not self.console.is_terminal:
      for event in events:
        if event is not None:
          self._note(event)
          self.console.print(self._line(event), highlight=False, soft_wrap=True)
      return self.failed
    with rich.live.Live(
      console=self.console, get_renderable=self._table, refresh_per_second=1
    ):
      for event in events:
        if event is not None:
          self._note(event)
    return self.failed

  def _note(self, event):
    if event.what == "begun":
      self.running[event.name] = time.monotonic()
      return
    del self.running[event.name]
    if event.what == "failed":
      self.failed[event.name] = event.why
    else:
      self.done += 1

  def _counts(self):
    waiting = len(self.planned) - self.done - len(self.failed)
    return (
      f"{self.done} of {len(self.planned)} finished, "
      f"{len(self.running)} running, {waiting - len(self.running)} waiting, "
      f"{len(self.failed)} failed"
    )

  def _line(self, event):
    title = self.planned[event.name].name
    took = f" after {event.seconds:.0f} s" if event.what != "begun" else ""
    why = f": {event.why.splitlines()[0]}" if event.why else ""
    return f"{event.name} ({title}) {event.what}{took}{why}; {self._counts()}"

  def _table(self):
    table = rich.table.Table(title=self._counts())
    for column in ("run", "what", "step", "accuracy", "seconds"):
      table.add_column(column)
    for name, since in self.running.items():
      config, last = self.planned[name], self._last(name)
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

  def _last(self, name):
    try:
      records = metrics.read(self.root / name)
    except (OSError, UserError):
      return {}
    return records[-1] if records else {}


def main() -> None:
  """Hands the flags on."""
  given = flags.FLAGS
  if given.only is not None:
    run_one(given.config, given.root, given.only)
  elif given.dry_run:
    for line in commands(given.config, given.root):
      print(line)
  else:
    run(
      given.config,
      given.root,
      launcher=given.launcher,
      jobs=given.jobs,
      options=dict(map(launchers.option, given.slurm)),
    )


def _define_flags() -> None:
  flags.DEFINE_string("config", None, "The config file, and its argument.")
  flags.DEFINE_string("root", None, "The directory of all runs.")
  flags.DEFINE_enum(
    "launcher",
    "local",
    sorted(launchers.LAUNCHERS),
    "local: processes on this machine, each on its own cores. population: runs "
    "of one method in one program. slurm: an array of jobs.",
  )
  flags.DEFINE_multi_string(
    "slurm", [], "KEY=VALUE of submitit, such as slurm_partition=gpu."
  )
  flags.DEFINE_integer("jobs", None, "How many runs at once.", lower_bound=1)
  flags.DEFINE_bool("dry_run", False, "Print the commands of the runs only.")
  flags.DEFINE_string("only", None, "Do this run only, in this process.")
  flags.mark_flags_as_required(["config", "root"])


if __name__ == "__main__":
  # Workers import what they unpickle by its name.
  from experiments.sweep import __main__ as sweep

  cli.run(sweep.main, _define_flags)
