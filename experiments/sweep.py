"""Runs all configs of a grid that are not finished, several at once.

python -m experiments.sweep --config=configs/FILE.py[:ARG] --root=DIR \
  [--jobs=N] [--dry_run] [--only=NAME]

The file's `sweep(arg)` gives the grid: what to change in the config of
`get_config(arg)`, one mapping a run. A config of the driver `compare` is a grid
as it is. Each run is one of experiments.train in DIR/NAME, where NAME is a hash
of what differs from the defaults of a run, told in DIR/sweep.json. The same
command goes on with runs that were stopped, and leaves finished ones alone; a
run that fails does not stop the others.
"""

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import shlex
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
import rich.console
import rich.live
import rich.table
from absl import flags
from flax import traverse_util

from experiments import build, command, compare, metrics, named, train, workers
from experiments import workdir as workdir_lib
from experiments.errors import UserError, unknown

_SHOWN = 5  # last lines of what a failed run printed
_PATIENCE = 60.0  # seconds, for somebody else to leave a run's directory


def run(config: str, root: str, *, jobs: int | None = None) -> None:
  """Does what is left of a sweep.

  Args:
    config: The config file, with its argument after a colon.
    root: The directory of all runs.
    jobs: How many runs at once; as many as there are cores by default.

  Raises:
    UserError: If there is no such file or grid, two runs are the same, or runs
      have failed.
  """
  planned = plan(config)
  path = pathlib.Path(root)
  with workdir_lib.locked(path), workdir_lib.storage(path):
    told = {name: differences(one) for name, one in planned.items()}
    workdir_lib.write_json(path / "sweep.json", told)
    left = _left(planned, path)
    pieces = {name: path / "logs" / f"{name}.txt" for name in left}
    work = functools.partial(_work, config, root)
    count = jobs or len(os.sched_getaffinity(0))
    board = Board(planned, left, path)
    failed = board.follow(workers.run(work, pieces, jobs=count))
  if failed:
    raise UserError(_complaint(failed, pieces))
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
  planned = plan(config)
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
    for name in _left(plan(config), pathlib.Path(root))
  ]


def _left(planned, path: pathlib.Path) -> list[str]:
  """The runs that are not finished."""
  return [n for n in planned if workdir_lib.finished(path / n) is None]


def plan(config: str) -> dict[str, ml_collections.ConfigDict]:
  """The configs of all runs, by name, each of them checked.

  Args:
    config: The config file, with its argument after a colon.

  Raises:
    UserError: If there is no such file or grid, or two runs are the same.
  """
  file, _, arg = config.partition(":")
  module = _module(pathlib.Path(file))
  base = module.get_config(arg)
  if hasattr(module, "sweep"):
    configs = [_changed(base, change) for change in module.sweep(arg)]
  elif base.get("driver") == "compare":
    configs = [one for _, group in compare.plan(base) for one in group]
  else:
    raise UserError(
      f"{file} has no function sweep(arg), and its config is no comparison: "
      "nothing tells which runs there are"
    )
  planned = {}
  for one in configs:
    build.check(one)
    if planned.setdefault(name_of(one), one) is not one:
      raise UserError(f"two runs of {file} are the same: {differences(one)}")
  if not planned:
    raise UserError(f"the grid of {file} is empty; nothing to run")
  return planned


def _module(file: pathlib.Path):
  if not file.is_file():
    raise UserError(f"there is no config file {file}")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _changed(base, change: Mapping[str, Any]) -> ml_collections.ConfigDict:
  one = base.copy_and_resolve_references()
  one.unlock()
  for key, value in change.items():
    *parts, last = key.split(".")
    inner = one
    for part in parts:
      if part not in inner:
        raise unknown("key of the config", key, one)
      inner = inner[part]
    if not parts and last not in inner:
      raise unknown("key of the config", key, one)
    inner[last] = value
  return one


def differences(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a run's config says that the defaults do not, but for its name."""
  usual, given = _flat(build.defaults()), _flat(config)
  nothing = object()
  return {
    key: value
    for key, value in sorted(given.items())
    if key != "name" and usual.get(key, nothing) != value
  }


def _flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
  return traverse_util.flatten_dict(named.plain(config), sep=".")


def name_of(config: ml_collections.ConfigDict) -> str:
  """The directory of a run: twelve hexadecimal digits."""
  text = json.dumps(differences(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _work(config: str, root: str, name: str) -> None:
  """Does one run in a worker, which has its plan at hand from then on."""
  one, folder = _planned(config)[name], pathlib.Path(root) / name
  end = time.monotonic() + _PATIENCE
  while True:
    try:
      train.train(one, folder)
      return
    except workdir_lib.InUse:
      # Perhaps by a worker of a sweep that was killed, which saves just now.
      if time.monotonic() > end:
        raise
      time.sleep(1)


@functools.cache
def _planned(config):
  return plan(config)


def _complaint(failed: Mapping[str, str], logs) -> str:
  parts = [f"{len(failed)} runs failed; the same command tries them again."]
  for name, why in failed.items():
    lines = logs[name].read_text(errors="replace").splitlines()
    last = "\n".join(f"    {line}" for line in lines[-_SHOWN:])
    parts.append(f"  {name}: {why}\n{last}\n    ({logs[name]})")
  return "\n".join(parts)


def titles(planned: Mapping[str, ml_collections.ConfigDict]) -> dict[str, str]:
  """What tells runs apart: their own names, or else what differs among them."""
  names = {name: str(one.name) for name, one in planned.items()}
  if len(set(names.values())) == len(names):
    return names
  told = {name: _flat(one) for name, one in planned.items()}
  keys = sorted({key for one in told.values() for key in one} - {"name"})
  keys = [
    k for k in keys if len({repr(one.get(k)) for one in told.values()}) > 1
  ]
  return {
    name: ", ".join(f"{key} {one.get(key)}" for key in keys)
    for name, one in told.items()
  }


class Board:
  """The state of a sweep, as a table that lives, or a line now and then."""

  def __init__(self, planned, left, root):
    self.planned, self.root, self.titles = planned, root, titles(planned)
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
    title = self.titles[event.name]
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
        self.titles[name],
        f"{last.get('step', 0)} of {config.steps}",
        f"{last['accuracy']:.3f}" if "accuracy" in last else "",
        f"{time.monotonic() - since:.0f}",
      )
    for name, why in self.failed.items():
      title = self.titles[name]
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
    run(given.config, given.root, jobs=given.jobs)


def _define_flags() -> None:
  flags.DEFINE_string("config", None, "The config file, and its argument.")
  flags.DEFINE_string("root", None, "The directory of all runs.")
  flags.DEFINE_integer("jobs", None, "How many runs at once.", lower_bound=1)
  flags.DEFINE_bool("dry_run", False, "Print the commands of the runs only.")
  flags.DEFINE_string("only", None, "Do this run only, in this process.")
  flags.mark_flags_as_required(["config", "root"])


if __name__ == "__main__":
  # Workers import what they unpickle by its name.
  from experiments import sweep

  command.run(sweep.main, _define_flags)
