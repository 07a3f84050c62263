"""Grids of runs: their configs, the names of their directories, their rows.

A config file's `sweep(arg)` gives pairs of a table's row, an `Entry`, and of
what to change in the config of `get_config(arg)`, by dotted keys. A config of
the driver `compare` is a grid as it is.
"""

import functools
import hashlib
import importlib.util
import json
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from experiments.config import calling, check, comparison, defaults
from experiments.config.entry import Entry
from experiments.errors import UserError, unknown

Rows = dict[Entry, list[ml_collections.ConfigDict]]


@functools.cache
def rows(config: str) -> Rows:
  """Makes and checks the configs of all runs, by their row of the table.

  Args:
    config: The config file, with its argument after a colon; it is read once.

  Returns:
    The configs of each row; they are named after it, and after their seed.

  Raises:
    UserError: If there is no such file or grid, or two runs are the same.
  """
  file, _, arg = config.partition(":")
  found = module(file)
  base = found.get_config(arg)
  if hasattr(found, "sweep"):
    made: Rows = {}
    for entry, change in found.sweep(arg):
      one = changed(base, change)
      one.name = f"{entry}, seed {one.seed}"
      made.setdefault(entry, []).append(one)
  elif base.get("driver") == "compare":
    made = dict(comparison.runs(base))
  else:
    raise UserError(
      f"{file} has no function sweep(arg), and its config is no comparison: "
      "nothing tells which runs there are"
    )
  if not made:
    raise UserError(f"the grid of {file} is empty; nothing to run")
  seen = {}
  for entry, group in made.items():
    for one in group:
      check.training_run(one)
      if seen.setdefault(name_of(one), one) is not one:
        raise UserError(
          f"{file}: two runs are the same, the second of row {entry}: "
          f"{differences(one)}"
        )
  return made


@functools.cache
def plan(config: str) -> Mapping[str, ml_collections.ConfigDict]:
  """Makes the configs of all runs, by the names of their directories.

  Args:
    config: As for `rows`.

  Raises:
    UserError: As `rows`.
  """
  configs = [one for group in rows(config).values() for one in group]
  return types.MappingProxyType({name_of(one): one for one in configs})


def module(file: str) -> types.ModuleType:
  """Imports a config file.

  Args:
    file: Its path.

  Raises:
    UserError: If there is none.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise UserError(f"there is no config file {path}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  return made


def changed(
  base: ml_collections.ConfigDict, change: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Changes a config at some dotted keys.

  Args:
    base: The config.
    change: The values; keys of mappings with a name may be new.

  Returns:
    Another config.

  Raises:
    UserError: If there is no such key.
  """
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
    if isinstance(value, Mapping) and last in inner:
      del inner[last]  # or the keywords of two functions would mix
    inner[last] = value
  return one


def replaced(
  base: ml_collections.ConfigDict, other: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Lists what to change in a config to have another, but for its name."""
  ours, theirs = calling.plain(base), calling.plain(other)
  values = other.to_dict()
  return {
    key: values[key]
    for key in theirs
    if key != "name" and ours[key] != theirs[key]
  }


def differences(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Lists the values of a run's config that are not defaults, but its name."""
  usual, nothing = flat(defaults.training_run()), object()
  return {
    key: value
    for key, value in sorted(flat(config).items())
    if key != "name" and usual.get(key, nothing) != value
  }


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Flattens a config into one mapping, by dotted keys."""
  return traverse_util.flatten_dict(calling.plain(config), sep=".")


def name_of(config: ml_collections.ConfigDict) -> str:
  """Names the directory of a run: twelve hexadecimal digits of a hash."""
  text = json.dumps(differences(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
