"""Compares methods: every method with every seed, one table, one report.

Each run is a run of train.py in a directory of its own, so a comparison that
was stopped goes on where it was, with the same command.
"""

from collections.abc import Iterator
from pathlib import Path

import ml_collections

from experiments import build, report, train
from experiments import progress as progress_lib
from experiments import workdir as workdir_lib
from experiments.errors import UserError, unknown


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a comparison, to be filled in by a config file.

  Returns:
    The config: `base`, the config of a run but for what differs;
    `algorithms`, that part of it by the method's name; `methods`, those to
    run, in the order of the table; `seeds`; and `expected`, pairs of methods
    of which papers report the first to do worse.
  """
  config = ml_collections.ConfigDict()
  config.driver = "compare"
  config.name = "comparison"
  config.seeds = (0, 1, 2)
  config.base = build.defaults()
  config.algorithms = ml_collections.ConfigDict()
  config.methods = ()
  config.expected = ()
  return config


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished, then prints the table and writes the report."""
  planned = {name: list(runs) for name, runs in _plan(config)}
  with workdir_lib.locked(workdir) as path:
    workdir_lib.admit(path, build.plain(config))
    done = _train(planned, path)
    table = report.write(path, config, done, config.expected)
  report.show(table, f"{config.name}: {len(config.seeds)} seeds")
  for line in report.order(table, config.expected):
    print(line)
  print(f"\nThe report is {path / 'report.md'}")


def _plan(config) -> Iterator[tuple[str, Iterator[ml_collections.ConfigDict]]]:
  """The config of every run, by method, all checked before any begins."""
  if not config.methods or not config.seeds:
    raise UserError("config.methods or config.seeds is empty; nothing to run")
  for name in config.methods:
    if name not in config.algorithms:
      raise unknown("algorithm of the config", name, config.algorithms)
    runs = []
    for seed in config.seeds:
      one = config.base.copy_and_resolve_references()
      one.unlock()
      one.algorithm = config.algorithms[name].copy_and_resolve_references()
      one.seed = seed
      one.name = f"{name}, seed {seed}"
      build.check(one)
      runs.append(one)
    yield name, runs


def _train(planned, path: Path) -> dict[str, list[report.Run]]:
  total = sum(map(len, planned.values()))
  done = {}
  with progress_lib.bar() as progress:
    advance = progress("all runs", total, 0)
    for name, configs in planned.items():
      done[name] = []
      for config in configs:
        folder = path / "runs" / f"{name}-{config.seed}"
        result = train.train(config, folder, progress=progress)
        done[name].append(report.Run(config, result))
        advance(sum(map(len, done.values())))
  return done
