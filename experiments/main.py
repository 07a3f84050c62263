"""Runs the driver that a config names.

python -m experiments.main --config=configs/FILE.py[:arg] \
  --config.key=value --workdir=DIR
"""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments import cli, errors

DRIVERS = {
  "train": "experiments.drivers.single",
  "compare": "experiments.drivers.compare",
  "lottery": "experiments.drivers.lottery",
  "prune_llm": "experiments.drivers.prune_llm",
  "finetune": "experiments.drivers.finetune",
  "recovery": "experiments.drivers.recovery",
}

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's own directory.")
_OVERRIDE = re.compile(r"--?config\.([^=\[]+)")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
  """Calls the driver with config and workdir."""
  name = _CONFIG.value.get("driver", "train")
  errors.check_known("driver", name, DRIVERS)
  importlib.import_module(DRIVERS[name]).run(_CONFIG.value, _WORKDIR.value)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; explains a key that the config lacks, or no config."""
  try:
    rest = app.parse_flags_with_usage(argv)
    _CONFIG.value.keys()  # raises if there is no such file
    return rest
  except OSError as error:
    raise errors.UserError(str(error).splitlines()[-1].strip()) from error
  except (AttributeError, KeyError, TypeError):
    # config_flags looks for overrides in sys.argv itself.
    sys.argv = [a for a in argv if not _OVERRIDE.match(a)]
    flags.FLAGS(sys.argv)
    for override in filter(None, map(_OVERRIDE.match, argv)):
      _check_key(override[1])
    raise


def _check_key(path: str) -> None:
  """Raises a UserError if the config lacks the key of a dotted path."""
  known = set(_paths(_CONFIG.value))
  errors.check_known("key of the config", path, known)


def _paths(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  for key, value in config.items():
    yield prefix + key
    if hasattr(value, "items"):
      yield from _paths(value, f"{prefix}{key}.")


if __name__ == "__main__":
  cli.run(main, parse=_parse)
