"""Compares methods: every method with every seed, one table, one report.

Each run is a run of train.py in a directory of its own, so a comparison that
was stopped goes on where it was, with the same command.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_collections

from experiments.config import calling, parts
from experiments.config.entry import Entry
from experiments.errors import UserError, unknown
from experiments.runs import progress as progress_lib
from experiments.runs import train
from experiments.runs import workdir as workdir_lib
from experiments.tables import markdown


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a comparison, to be filled in by a config file.

  Returns:
    The config: `base`, the config of a run but for what differs;
    `algorithms`, `initial` and `optimizers`, these parts of it by the method's
    name, the latter two only where they are not the base's; `methods`, those
    to run, in the order of the table; `sparsities`, at each of which to run
    them, if not only at their own; `settings`, for methods that need other
    keywords at each of them, [sparsity, keywords] pairs by name: these are run
    at those sparsities only; `seeds`; and `expected`, pairs of methods of which
    papers report the first to do worse.
  """
  config = ml_collections.ConfigDict()
  config.driver = "compare"
  config.name = "comparison"
  config.seeds = (0, 1, 2)
  config.base = parts.defaults()
  config.algorithms = ml_collections.ConfigDict()
  config.initial = ml_collections.ConfigDict()
  config.optimizers = ml_collections.ConfigDict()
  config.settings = ml_collections.ConfigDict()
  config.methods = ()
  config.sparsities = ()
  config.expected = ()
  return config


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished, then prints the table and writes the report."""
  planned = dict(plan(config))
  with workdir_lib.locked(workdir) as path:
    # Each run has its own config to hold on to; others may join them.
    free = (
      "seeds",
      "algorithms",
      "initial",
      "optimizers",
      "settings",
      "methods",
      "sparsities",
      "expected",
    )
    workdir_lib.admit(path, calling.plain(config), free=free)
    results = _train(planned, path)
    done = {
      entry: list(map(markdown.Run, configs, results[entry]))
      for entry, configs in planned.items()
    }
    rows = markdown.write_report(path, config, done, config.expected)
  title = f"{config.name}: {len(config.seeds)} seeds"
  markdown.print_summary(rows, title, config.expected)
  print(f"\nThe report is {path / 'report.md'}")


def plan(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[Entry, list[ml_collections.ConfigDict]]]:
  """The config of every run, by method, all checked before any begins.

  Args:
    config: As `defaults` makes it.

  Yields:
    A row of the table, and the configs of its runs, one a seed.

  Raises:
    UserError: If there is nothing to run, or a config is wrong.
  """
  if not config.methods or not config.seeds:
    raise UserError("config.methods or config.seeds is empty; nothing to run")
  for name in config.methods:
    if name not in config.algorithms:
      raise unknown("algorithm of the config", name, config.algorithms)
    for sparsity in _sparsities(config, name):
      entry = Entry(name, sparsity)
      yield entry, [_config(config, entry, seed) for seed in config.seeds]


def _sparsities(config, name) -> tuple[float | None, ...]:
  if name in config.settings:
    return tuple(sparsity for sparsity, _ in config.settings[name])
  fits = config.sparsities and config.algorithms[name].name != "dense"
  return config.sparsities if fits else (None,)


def _config(config, entry, seed) -> ml_collections.ConfigDict:
  one = config.base.copy_and_resolve_references()
  one.unlock()
  one.algorithm = config.algorithms[entry.method].copy_and_resolve_references()
  if entry.sparsity is not None:
    one.algorithm.unlock()
    if parts.has_sparsity(one.algorithm.name):
      one.algorithm.sparsity = entry.sparsity
  settings = dict(config.settings.get(entry.method, ()))
  one.algorithm.update(settings.get(entry.sparsity, {}))
  if entry.method in config.initial:
    one.initial = config.initial[entry.method].copy_and_resolve_references()
  if entry.method in config.optimizers:
    one.optimizer = config.optimizers[
      entry.method
    ].copy_and_resolve_references()
  one.seed = seed
  one.name = f"{entry}, seed {seed}"
  parts.check(one)
  return one


def _train(
  planned: Mapping[Entry, Sequence[ml_collections.ConfigDict]], path: Path
) -> dict[Entry, list[train.Result]]:
  total = sum(map(len, planned.values()))
  done = {}
  with progress_lib.bar() as progress:
    advance = progress("all runs", total, 0)
    for entry, configs in planned.items():
      done[entry] = []
      for config in configs:
        folder = path / "runs" / f"{entry.folder}-{config.seed}"
        result = train.train(config, folder, progress=progress)
        done[entry].append(result)
        advance(sum(map(len, done.values())))
  return done
