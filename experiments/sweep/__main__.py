"""Runs all configs of a grid that are not finished, several at once.

python -m experiments.sweep --config=configs/FILE.py[:ARG] --root=DIR \
  [--config.key=value] [--rows=REGEX] [--launcher=local|population|slurm] \
  [--jobs=N] [--slurm=KEY=VALUE] [--dry_run] [--only=NAME]

config/grid.py reads the grid. Each run is one of runs/train.py in DIR/NAME;
NAME is a hash of what differs from the defaults of a run, and DIR/sweep.json
lists that. The same command goes on with runs that were stopped and leaves
finished ones alone; a run that fails does not stop the others. What it will
cost is told first, as far as finished runs tell; --dry_run starts none.

--config.key=value changes the config of every run that can have the key; --rows
chooses rows of the table, such as "RigL.*90 %".
"""

import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags

from experiments import cli
from experiments.config import describe, grid, sections, smoke
from experiments.config.grid import Grid
from experiments.config.overrides import Changes
from experiments.errors import UserError, check_known
from experiments.runs import train
from experiments.runs import workdir as workdir_lib
from experiments.sweep import forecast as forecast_lib
from experiments.sweep import launchers
from experiments.sweep.board import Board

_SHOWN = 5  # last lines of what a failed run printed


def run(
  chosen: Grid | str,
  root: str,
  *,
  launcher: str = "local",
  jobs: int | None = None,
  options: Mapping[str, Any] | None = None,
) -> None:
  """Trains the runs of a sweep that are not finished.

  Args:
    chosen: Which runs; or the config file alone, with its argument.
    root: The directory of all runs.
    launcher: How they are run: a key of `launchers.LAUNCHERS`.
    jobs: How many at once; see there.
    options: Further options of the launcher.

  Raises:
    UserError: If there is no such file, grid or launcher, two runs are the
      same, or runs have failed.
  """
  check_known("launcher", launcher, launchers.LAUNCHERS)
  chosen = grid.of(chosen)
  planned = grid.plan(chosen)
  path = pathlib.Path(root)
  with workdir_lib.locked(path), workdir_lib.storage(path):
    changes = {name: grid.differences(one) for name, one in planned.items()}
    file = path / "sweep.json"
    # Other rows and changes may have been run in this directory.
    others = workdir_lib.read_or_make(file, lambda: changes)
    workdir_lib.write_json(file, {**others, **changes})
    left = _unfinished(planned, path)
    task = launchers.Task(chosen, path, left, jobs, dict(options or {}))
    forecast = _tell(launcher, task)
    at_once = launchers.at_once(launcher, task)
    board = Board(planned, left, path, forecast, at_once)
    failed = board.follow(launchers.LAUNCHERS[launcher](task))
  if failed:
    raise UserError(_failure_message(failed, path))
  print(f"all {len(planned)} runs are finished: {path}")


def _tell(launcher: str, task: launchers.Task) -> forecast_lib.Forecast:
  """Says what the runs will cost; returns what that is estimated by."""
  planned = grid.plan(task.grid)
  done = [name for name in planned if name not in task.left]
  forecast = forecast_lib.of_finished(planned, done, task.root)
  at_once = launchers.at_once(launcher, task)
  seconds = None
  if launcher != "population":  # whose members take as long as all together
    seconds = forecast.left(planned[name] for name in task.left)
  cost = forecast_lib.Cost(len(planned), len(task.left), at_once, seconds)
  for line in (*grid.told(task.grid), cost):
    print(line, file=sys.stderr, flush=True)
  return forecast


def run_one(chosen: Grid | str, root: str, name: str) -> None:
  """Trains one run of a sweep in this process.

  Args:
    chosen: Which runs; or the config file alone, with its argument.
    root: The directory of all runs.
    name: The run.

  Raises:
    UserError: As `run`, and if there is no such run.
  """
  planned = grid.plan(chosen)
  check_known("run of the sweep", name, planned)
  train.train(planned[name], pathlib.Path(root) / name)


def commands(chosen: Grid | str, root: str) -> list[str]:
  """Lists a command for each run that is not finished.

  Args:
    chosen: Which runs; or the config file alone, with its argument.
    root: The directory of all runs.

  Raises:
    UserError: If there is no such file or grid, or two runs are the same.
  """
  same = *grid.of(chosen).flags(), f"--root={root}"
  return [
    shlex.join(("python", "-m", "experiments.sweep", *same, f"--only={name}"))
    for name in _unfinished(grid.plan(chosen), pathlib.Path(root))
  ]


def _unfinished(
  planned: Mapping[str, ml_collections.ConfigDict], path: pathlib.Path
) -> list[str]:
  """Lists the runs that are not finished."""
  return [n for n in planned if workdir_lib.finished(path / n) is None]


def _failure_message(failed: Mapping[str, str], root: pathlib.Path) -> str:
  parts = [f"{len(failed)} runs failed; the same command tries them again."]
  for name, why in failed.items():
    parts.append(f"  {name}: {why}")
    log = launchers.log(root, name)
    if log.exists():
      lines = log.read_text(errors="replace").splitlines()
      parts += [f"    {line}" for line in lines[-_SHOWN:]] + [f"    ({log})"]
  return "\n".join(parts)


def main(changes: Changes) -> None:
  """Trains a run or all of a sweep, or prints commands, as the flags say."""
  values = flags.FLAGS
  chosen = Grid(values.config, changes, values.rows)
  smoke.compile_quickly(values.config.partition(":")[2])
  if values.only is not None:
    run_one(chosen, values.root, values.only)
    return
  options = {
    "launcher": values.launcher,
    "jobs": values.jobs,
    "options": dict(map(launchers.option, values.slurm)),
  }
  if not values.dry_run:
    run(chosen, values.root, **options)
    return
  path = pathlib.Path(values.root)
  left = _unfinished(grid.plan(chosen), path)
  _tell(values.launcher, launchers.Task(chosen, path, left, values.jobs, {}))
  for line in commands(chosen, values.root):
    print(line)


def _describe(config: str | None, changes: Changes) -> str:
  """Returns what `--help` says of configs, and of the rows and keys of one."""
  if config is None:
    return describe.configs()
  found = grid.rows(Grid(config, changes))
  lines = [f"  {entry}: {len(group)} runs" for entry, group in found.items()]
  first = next(iter(found.values()))[0]
  keys = describe.keys(f"the first run of {config}", first, sections.TRAINING)
  return "\n".join([f"Rows of {config}:", "", *lines, "", keys])


def _define_flags() -> None:
  flags.DEFINE_string("config", None, "The config file, and its argument.")
  flags.DEFINE_string("rows", "", "A regular expression for names of rows.")
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
  cli.run(main, _define_flags, describe=_describe)
