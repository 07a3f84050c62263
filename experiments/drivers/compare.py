"""Compares methods: every method with every seed, one table, one report.

Each run is a run of train.py in a directory of its own, so a comparison that
was stopped goes on where it was, with the same command.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from experiments.config import calling, comparison, schema, sections
from experiments.config import defaults as defaults_lib
from experiments.config.entry import Entry
from experiments.errors import UserError
from experiments.plots import titles
from experiments.runs import progress as progress_lib
from experiments.runs import train
from experiments.runs import workdir as workdir_lib
from experiments.runs.recorder import DivergedError
from experiments.tables import markdown

# What may change in a workdir: each run has a config of its own.
_FREE = (
  *("seeds", "algorithms", "initial", "optimizers", "settings"),
  *("methods", "sparsities", "expected", "base.devices", "base.mode"),
)


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a comparison, to be filled in by a config file.

  Keys:
    driver: What runs the config.
    name: A title, for people.
    seeds: The seeds of each method.
    base: The config of a run but for what differs.
    algorithms: The algorithm by the method's name.
    initial: Where first masks come from, by the name of a method that has not
      the base's.
    optimizers: The optimizer by the name of a method that has not the base's.
    settings: For methods that need other keywords at each sparsity,
      [sparsity, keywords] pairs by name; they are run at those sparsities only.
    methods: Those to run, in the order of the table.
    sparsities: At each of which to run them, if not only at their own.
    expected: Pairs of methods of which papers report the first to do worse.

  Returns:
    The config.
  """
  config = ml_collections.ConfigDict()
  config.driver = "compare"
  config.name = "comparison"
  config.seeds = (0, 1, 2)
  config.base = defaults_lib.training_run()
  config.algorithms = ml_collections.ConfigDict()
  config.initial = ml_collections.ConfigDict()
  config.optimizers = ml_collections.ConfigDict()
  config.settings = ml_collections.ConfigDict()
  config.methods = ()
  config.sparsities = ()
  config.expected = ()
  return config


# What a config can have.
SECTION = sections.COMPARISON._replace(more=schema.of_defaults(defaults))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished, then prints the table and writes the report."""
  planned = dict(comparison.runs(config))
  with workdir_lib.locked(workdir) as path:
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    done, diverged = _train(planned, path)
    if not any(done.values()):
      raise UserError(f"all runs diverged: {next(iter(diverged.values()))}")
    rows = markdown.write_report(path, config, done, config.expected, diverged)
  title = f"{config.name}: {titles.seeds([len(config.seeds)])}"
  markdown.print_summary(rows, title, config.expected)
  print(f"\nThe report is {path / 'report.md'}")


def _train(
  planned: Mapping[Entry, Sequence[ml_collections.ConfigDict]], path: Path
) -> tuple[dict[Entry, list[markdown.Run]], dict[tuple[Entry, int], str]]:
  """Trains all runs, or reads what is finished, with a progress bar.

  Args:
    planned: The configs of the runs of each row.
    path: The workdir.

  Returns:
    The finished runs of each row; and by row and seed, why one diverged.
  """
  total = sum(map(len, planned.values()))
  done, diverged = {}, {}
  with progress_lib.bar() as progress:
    advance = progress("all runs", total, 0, "run")
    for entry, configs in planned.items():
      done[entry] = []
      for config in configs:
        folder = path / "runs" / f"{entry.folder}-{config.seed}"
        try:
          result = train.train(config, folder, progress=progress)
          done[entry].append(markdown.Run(config, result))
        except DivergedError as error:
          diverged[entry, config.seed] = str(error)
        advance(sum(map(len, done.values())) + len(diverged))
  return done, diverged
