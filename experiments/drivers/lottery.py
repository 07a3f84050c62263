"""Trains lottery tickets, and controls on their masks; writes the report."""

import ml_collections

from experiments.config import branches, calling, schema, sections
from experiments.config import defaults as defaults_lib
from experiments.errors import UserError
from experiments.runs import lottery
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.recorder import DivergedError
from experiments.tables import lottery as report

# What may change in a workdir: branches and runs have configs of their own.
_FREE = (
  *("seeds", "levels", "branches", "methods", "stability", "expected"),
  *("base.devices", "base.mode"),
)


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of lottery tickets, to be filled in by a config file.

  Keys:
    driver: What runs the config.
    name: A title, for people.
    seeds: The seeds of dense runs.
    base: The config of the dense run.
    levels: How often to prune.
    rate: The share of weights that each round prunes.
    scope: Over the whole net, "global", or in each layer, "layer".
    branches: By name what `branches.DEFAULTS` lists.
    methods: The branches to run, in order.
    stability: The `branches` and `levels` whose linear mode connectivity to
      examine, and at how many `points`.
    expected: Pairs of branches of which papers report the first to do worse.

  Returns:
    The config.
  """
  config = ml_collections.ConfigDict()
  config.driver = "lottery"
  config.name = "lottery"
  config.seeds = (0, 1, 2)
  config.base = defaults_lib.training_run()
  config.base.algorithm = {"name": "static", "sparsity": 0.0}
  config.base.checkpoints_to_keep = 1
  config.levels = 10
  config.rate = 0.2
  config.scope = "global"
  config.branches = ml_collections.ConfigDict()
  config.methods = ()
  config.stability = {"branches": (), "levels": (), "points": 30}
  config.expected = ()
  return config


# What a config can have.
SECTION = sections.LOTTERY._replace(more=schema.of_defaults(defaults))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished, then prints the table and writes the report."""
  branches.check_config(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    with progress_lib.bar() as progress:
      runs = (config.levels + 1) * len(config.methods)
      advance = progress("all levels", len(config.seeds) * runs, 0, "level")
      levels, diverged = [], {}
      for number in config.seeds:
        folder = path / f"seed-{number}"
        try:
          for level in lottery.train_levels(config, number, folder, progress):
            levels.append(level)
            advance(len(levels))
        except DivergedError as error:
          diverged[number] = str(error)
    if not levels:
      raise UserError(f"all seeds diverged: {next(iter(diverged.values()))}")
    report.write_report(path, config, levels, diverged)
  print(f"\nThe report is {path / 'report.md'}")
