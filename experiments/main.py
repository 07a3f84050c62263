"""Runs the driver that a config names.

python -m experiments.main --config=configs/FILE.py[:arg] \
  --config.key=value --workdir=DIR
"""

import importlib
import sys
import types

import ml_collections
from absl import flags

from experiments import cli, errors
from experiments.config import describe, grid, overrides, smoke

DRIVERS = {
  "train": "experiments.drivers.single",
  "compare": "experiments.drivers.compare",
  "lottery": "experiments.drivers.lottery",
  "prune_llm": "experiments.drivers.prune_llm",
  "finetune": "experiments.drivers.finetune",
  "recovery": "experiments.drivers.recovery",
  "shrink": "experiments.drivers.shrink",
  "shrink_llm": "experiments.drivers.shrink_llm",
}


def main(changes: overrides.Changes) -> None:
  """Calls the driver with config and workdir."""
  config, driver = load(flags.FLAGS.config, changes)
  _, _, arg = flags.FLAGS.config.partition(":")
  smoke.compile_quickly(arg)
  driver.run(smoke.with_data(config, arg), flags.FLAGS.workdir)


def load(
  config: str, changes: overrides.Changes
) -> tuple[ml_collections.ConfigDict, types.ModuleType]:
  """Makes a config, and imports its driver.

  Args:
    config: The config file, with its argument after a colon.
    changes: Dotted keys, and the text of their values. What a changed name
      brings and takes is printed to standard error.

  Raises:
    UserError: If there is no such file, argument, driver, key or value.
  """
  made = grid.config(config)
  name = made.get("driver", "train")
  errors.check_known("driver", name, DRIVERS)
  driver = importlib.import_module(DRIVERS[name])
  for note in overrides.apply(made, changes, driver.SECTION):
    print(note, file=sys.stderr)
  return made, driver


def _describe(config: str | None, changes: overrides.Changes) -> str:
  """Returns what `--help` says of configs, and of the keys of one."""
  if config is None:
    return describe.configs()
  made, driver = load(config, changes)
  return describe.keys(config, made, driver.SECTION)


def _define_flags() -> None:
  flags.DEFINE_string(
    "config", None, "The config file, with its argument after a colon."
  )
  flags.DEFINE_string("workdir", None, "The run's own directory.")
  flags.mark_flags_as_required(["config", "workdir"])


if __name__ == "__main__":
  cli.run(main, _define_flags, describe=_describe)
