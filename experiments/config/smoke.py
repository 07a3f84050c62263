"""Smoke tests on random arrays, where a data set is missing.

A run whose config file was given the argument `smoke` tests the program, not a
method, so it needs no data. Any other run stops where its data are missing.
"""

import functools
import json
import os
import sys
from collections.abc import Iterable, Iterator

import jax
import ml_collections

from experiments import data
from experiments.config import args, parts
from experiments.data import tfds_source

_LEAST = 64  # examples to train on, and to test on


def with_data(
  config: ml_collections.ConfigDict, arg: str
) -> ml_collections.ConfigDict:
  """Has a smoke test take random arrays for data sets that are missing.

  Not where the config names a folder, from which data are wanted.
  Says so on the terminal, in the config, as `data.random`, and in its name,
  which reports show.

  Args:
    config: The config, or one that holds others.
    arg: The argument that its file was given.

  Returns:
    The config, another one if it changes.

  Raises:
    UserError: As `data.load`, but for data that are missing.
  """
  if args.SMOKE not in arg.split(","):
    return config
  one = config.copy_and_resolve_references()
  changed = False
  for run in _runs(one):
    options = run.data.to_dict()
    given = options.get("random") or options.get("data_dir")
    if given or options["name"] not in data.DATASETS:
      continue
    if why := _missing(json.dumps(options)):
      with run.data.unlocked():
        run.data.random = max(_LEAST, 2 * run.batch_size)
      changed = True
      _tell(options["name"], why)
  if not changed:
    return config
  with one.unlocked():
    one.name = f"{one.name} (random arrays)"
  return one


def note(configs: Iterable[ml_collections.ConfigDict]) -> str:
  """Returns what a report says of runs on random arrays, "" without any."""
  if any("random" in config.data for config in configs):
    return ", on random arrays, so their numbers mean nothing"
  return ""


def compile_quickly(arg: str) -> None:
  """Has XLA optimize little in a smoke test, and in processes that it starts.

  Nearly all of a smoke test's time is spent on compilation, which takes half as
  long so. To be called before anything is compiled.

  Args:
    arg: The argument that the config file was given.
  """
  if args.SMOKE in arg.split(","):
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)


def _runs(
  config: ml_collections.ConfigDict,
) -> Iterator[ml_collections.ConfigDict]:
  """Yields the configs of runs in a config: those with data and a batch."""
  if "data" in config and "batch_size" in config:
    yield config
  for value in config.values():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _runs(value)


@functools.cache
def _tell(name: str, why: str) -> None:
  """Says, once in a process, what a smoke test runs on."""
  print(
    f"This smoke test runs on random arrays in place of {name}; its numbers "
    f"mean nothing. For the data themselves: {why}",
    file=sys.stderr,  # standard output is for --dry_run's commands
  )


@functools.cache
def _missing(text: str) -> str | None:
  """Returns what is missing of a data set and how to get it, if any is."""
  options = json.loads(text)
  try:
    dataset = parts.dataset(options)
    if dataset.train is None:
      tfds_source.open_split(
        options["name"], "train", data_dir=options.get("data_dir")
      )
  except data.MissingDataError as error:
    return str(error)
  return None
