"""Grids of runs: their configs, the names of their directories, their rows.

A config file's `sweep(arg)` gives pairs of a table's row, an `Entry`, and of
what to change in the config of `get_config(arg)`, by dotted keys. A config of
the driver `compare` is a grid as it is.
"""

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import pathlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from flax import traverse_util

from experiments.config import (
  calling,
  check,
  comparison,
  defaults,
  describe,
  overrides,
  sections,
  smoke,
)
from experiments.config.entry import Entry
from experiments.errors import UserError, unknown

Rows = dict[Entry, list[ml_collections.ConfigDict]]


class Grid(NamedTuple):
  """Which runs of a config file, and what is changed in their configs.

  Attributes:
    config: The config file, with its argument after a colon.
    changes: Dotted keys and the text of their values, see `overrides`.
    only: A regular expression for the names of the rows that are wanted.
  """

  config: str
  changes: overrides.Changes = ()
  only: str = ""

  def __str__(self) -> str:
    return " ".join([self.config, *self.flags()[1:]])

  def flags(self) -> list[str]:
    """Returns the words of a command line that ask for it."""
    changes = [f"--config.{key}={text}" for key, text in self.changes]
    rows = [f"--rows={self.only}"] if self.only else []
    return [f"--config={self.config}", *changes, *rows]


def of(grid: Grid | str) -> Grid:
  """Returns which runs, if only the config file is given."""
  return grid if isinstance(grid, Grid) else Grid(grid)


def told(grid: Grid | str) -> list[str]:
  """Says of each change that not all runs can have, how many do."""
  grid = of(grid)
  configs = [flat(one) for one in plan(grid).values()]
  lines = []
  for key, text in grid.changes:
    have = sum(any(_under(key, k) for k in one) for one in configs)
    if 0 < have < len(configs):
      lines.append(
        f"config.{key}={text} holds in {have} of {len(configs)} runs; the "
        "others have no such key"
      )
  return lines


def _under(key: str, path: str) -> bool:
  return path == key or path.startswith(f"{key}.")


@functools.cache
def rows(grid: Grid | str) -> Rows:
  """Makes and checks the configs of all runs, by their row of the table.

  Args:
    grid: Which runs; or the config file alone, with its argument after a colon.
      It is read once.

  Returns:
    The configs of each row; they are named after it, and after their seed.

  Raises:
    UserError: If there is no such file, grid, row or key, or two runs are the
      same.
  """
  grid = of(grid)
  file, _, arg = grid.config.partition(":")
  found = module(file)
  if hasattr(found, "sweep"):
    planned = [(e, c) for e, c in found.sweep(arg) if _wanted(grid, e)]
    made = _changed_runs(grid, planned)
  elif (own := base(grid)).get("driver") == "compare":
    made = {e: g for e, g in comparison.runs(own) if _wanted(grid, e)}
  else:
    raise UserError(
      f"{file} has no function sweep(arg), and its config is no comparison: "
      "nothing tells which runs there are"
    )
  if not made and grid.only:
    known = map(str, rows(grid._replace(only="")))
    raise unknown(f"row of {file} that --rows finds", grid.only, known)
  if not made:
    raise UserError(f"the grid of {file} is empty; nothing to run")
  made = {e: [smoke.with_data(c, arg) for c in g] for e, g in made.items()}
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


def base(grid: Grid | str) -> ml_collections.ConfigDict:
  """Makes the config file's own config, with the changes that it can have.

  Args:
    grid: As for `rows`.

  Raises:
    UserError: If a comparison cannot have one. Of a sweep, `rows` says if no
      run can.
  """
  grid = of(grid)
  file, _, arg = grid.config.partition(":")
  made = module(file).get_config(arg)
  if made.get("driver") == "compare":
    overrides.apply(made, grid.changes, sections.COMPARISON)
  else:
    with contextlib.suppress(UserError):
      overrides.apply(made, grid.changes, sections.TRAINING, refused={})
  return made


def _wanted(grid: Grid, entry: Entry) -> bool:
  try:
    return re.search(grid.only, str(entry)) is not None
  except re.error as error:
    raise UserError(
      f"--rows={grid.only} is no regular expression: {error}"
    ) from error


def _changed_runs(
  grid: Grid, planned: Sequence[tuple[Entry, Mapping[str, Any]]]
) -> Rows:
  """Makes the configs of a sweep, each with the changes that it can take.

  Raises:
    UserError: If no run can take a change, or it would make a row be what its
      name does not say.
  """
  # What refers to a changed value in the config file follows it.
  plain, own = base(grid._replace(changes=())), base(grid)
  made: Rows = {}
  refused: dict[str, UserError] = {}
  taken = set()
  for entry, change in planned:
    one, lacking = changed(own, change), {}
    overrides.apply(one, grid.changes, sections.TRAINING, refused=lacking)
    refused |= lacking
    taken.update(key for key, _ in grid.changes if key not in lacking)
    before = changed(plain, change)
    entry = _as_called(grid, entry, change, before, one)
    one.name = f"{entry}, seed {one.seed}"
    made.setdefault(entry, []).append(one)
  for key, _ in grid.changes:
    if made and key not in taken:
      raise refused[key]
  return made


def _as_called(
  grid: Grid,
  entry: Entry,
  change: Mapping[str, Any],
  before: ml_collections.ConfigDict,
  after: ml_collections.ConfigDict,
) -> Entry:
  """Refuses to change what a row sets, or is called by; may rename the row."""
  algorithms = before.algorithm.name, after.algorithm.name
  if algorithms[0] != algorithms[1]:
    if entry.method != algorithms[0]:
      raise UserError(
        f"the row {entry} would be called so with algorithm {algorithms[1]}; "
        f"{grid.config} decides which rows there are"
      )
    entry = entry._replace(method=algorithms[1])
  told = (
    *change,
    *(["algorithm.sparsity"] if entry.sparsity is not None else []),
  )
  old, new = flat(before), flat(after)
  for key, text in grid.changes:
    if key in told and old.get(key) != new.get(key):
      raise UserError(
        f"config.{key} of the row {entry} is {old.get(key)}, by which it is "
        f"called or told from others: it cannot be {text}. --rows chooses rows"
      )
  return entry


@functools.cache
def plan(grid: Grid | str) -> Mapping[str, ml_collections.ConfigDict]:
  """Makes the configs of all runs, by the names of their directories.

  Args:
    grid: As for `rows`.

  Raises:
    UserError: As `rows`.
  """
  configs = [one for group in rows(grid).values() for one in group]
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
    there = (*path.parent.glob("*.py"), *describe.files())
    known = {one.stem: one for one in there}
    error = unknown("config file", path.stem, known)
    if path.stem in known:
      error = f"did you mean {known[path.stem]}?"
    raise UserError(
      f"{error} (looked for {path.absolute()}; the project's lie in "
      f"{describe.FOLDER})"
    )
  spec = importlib.util.spec_from_file_location(path.stem, path)
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  return made


def config(text: str) -> ml_collections.ConfigDict:
  """Makes the config of a config file.

  Args:
    text: The config file, with its argument after a colon.

  Raises:
    UserError: If there is no such file, or it makes no config.
  """
  file, colon, arg = text.partition(":")
  make = getattr(module(file), "get_config", None)
  if make is None:
    raise UserError(f"{file} has no function get_config(arg), so no config")
  given = [arg] if colon else []
  try:
    inspect.signature(make).bind(*given)
  except TypeError as error:
    raise UserError(
      f"--config={text}: get_config of {file}: {error}"
    ) from error
  return make(*given)


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
