"""Comparisons: from their config to those of their runs."""

from collections.abc import Iterator

import ml_collections

from experiments.config import algorithms, check
from experiments.config.entry import Entry
from experiments.errors import UserError, check_known


def runs(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[Entry, list[ml_collections.ConfigDict]]]:
  """Makes and checks the configs of all runs of a comparison.

  Args:
    config: As `experiments.drivers.compare.defaults` makes it.

  Yields:
    A row of the table, and the configs of its runs, one a seed.

  Raises:
    UserError: If there is nothing to run, or a config is wrong.
  """
  if not config.methods or not config.seeds:
    raise UserError("config.methods or config.seeds is empty; nothing to run")
  for name in config.methods:
    check_known("algorithm of the config", name, config.algorithms)
    for sparsity in _sparsities(config, name):
      entry = Entry(name, sparsity)
      yield entry, [_config(config, entry, seed) for seed in config.seeds]


def _sparsities(
  config: ml_collections.ConfigDict, name: str
) -> tuple[float | None, ...]:
  if name in config.settings:
    return tuple(sparsity for sparsity, _ in config.settings[name])
  fits = config.sparsities and config.algorithms[name].name != "dense"
  return config.sparsities if fits else (None,)


def _config(
  config: ml_collections.ConfigDict, entry: Entry, seed: int
) -> ml_collections.ConfigDict:
  one = config.base.copy_and_resolve_references()
  one.unlock()
  one.algorithm = config.algorithms[entry.method].copy_and_resolve_references()
  if entry.sparsity is not None:
    one.algorithm.unlock()
    if algorithms.find(one.algorithm.name).takes("sparsity"):
      one.algorithm.sparsity = entry.sparsity
  settings = dict(config.settings.get(entry.method, ()))
  one.algorithm.update(settings.get(entry.sparsity, {}))
  own = {"initial": config.initial, "optimizer": config.optimizers}
  for key, by_method in own.items():
    if entry.method in by_method:
      one[key] = by_method[entry.method].copy_and_resolve_references()
  one.seed = seed
  one.name = f"{entry}, seed {seed}"
  check.training_run(one)
  return one
