"""The command line: flags only. The driver that the config names does the rest.

python -m experiments.main --config=configs/FILE.py[:arg] \
  --config.key=value --workdir=DIR
"""

import importlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import errors

DRIVERS = {"train": "experiments.train", "compare": "experiments.compare"}

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's own directory.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  """Hands config and workdir to the driver."""
  if len(argv) > 1:
    raise errors.UserError(f"unknown arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
  name = _CONFIG.value.get("driver", "train")
  if name not in DRIVERS:
    raise errors.unknown("driver", name, DRIVERS)
  importlib.import_module(DRIVERS[name]).run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  try:
    app.run(main)
  except errors.UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
