"""Runs all configs of a grid that are not finished, several at once.

python -m experiments.sweep --config=configs/FILE.py[:ARG] --root=DIR \
  [--launcher=local|population|slurm] [--jobs=N] [--slurm=KEY=VALUE] \
  [--dry_run] [--only=NAME]

config/grid.py reads the grid. Each run is one of runs/train.py in DIR/NAME;
NAME is a hash of what differs from the defaults of a run, and DIR/sweep.json
lists that. The same command goes on with runs that were stopped and leaves
finished ones alone; a run that fails does not stop the others.
"""

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags

from experiments import cli
from experiments.config import grid
from experiments.errors import UserError, check_known
from experiments.runs import train
from experiments.runs import workdir as workdir_lib
from experiments.sweep import launchers
from experiments.sweep.board import Board

_SHOWN = 5  # last lines of what a failed run printed


def run(
  config: str,
  root: str,
  *,
  launcher: str = "local",
  jobs: int | None = None,
  options: Mapping[str, Any] | None = None,
) -> None:
  """Trains the runs of a sweep that are not finished.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.
    launcher: How they are run: a key of `launchers.LAUNCHERS`.
    jobs: How many at once; see there.
    options: Further options of the launcher.

  Raises:
    UserError: If there is no such file, grid or launcher, two runs are the
      same, or runs have failed.
  """
  check_known("launcher", launcher, launchers.LAUNCHERS)
  planned = grid.plan(config)
  path = pathlib.Path(root)
  with workdir_lib.locked(path), workdir_lib.storage(path):
    changes = {name: grid.differences(one) for name, one in planned.items()}
    workdir_lib.write_json(path / "sweep.json", changes)
    left = _unfinished(planned, path)
    task = launchers.Task(config, path, left, jobs, dict(options or {}))
    board = Board(planned, left, path)
    failed = board.follow(launchers.LAUNCHERS[launcher](task))
  if failed:
    raise UserError(_failure_message(failed, path))
  print(f"all {len(planned)} runs are finished: {path}")


def run_one(config: str, root: str, name: str) -> None:
  """Trains one run of a sweep in this process.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.
    name: The run.

  Raises:
    UserError: As `run`, and if there is no such run.
  """
  planned = grid.plan(config)
  check_known("run of the sweep", name, planned)
  train.train(planned[name], pathlib.Path(root) / name)


def commands(config: str, root: str) -> list[str]:
  """Lists a command for each run that is not finished.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.

  Raises:
    UserError: If there is no such file or grid, or two runs are the same.
  """
  same = f"--config={config}", f"--root={root}"
  return [
    shlex.join(("python", "-m", "experiments.sweep", *same, f"--only={name}"))
    for name in _unfinished(grid.plan(config), pathlib.Path(root))
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


def main() -> None:
  """Trains a run or all of a sweep, or prints commands, as the flags say."""
  values = flags.FLAGS
  if values.only is not None:
    run_one(values.config, values.root, values.only)
  elif values.dry_run:
    for line in commands(values.config, values.root):
      print(line)
  else:
    run(
      values.config,
      values.root,
      launcher=values.launcher,
      jobs=values.jobs,
      options=dict(map(launchers.option, values.slurm)),
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
  cli.run(main, _define_flags)
