"""Calls of the functions whose names and keywords stand in configs.

A part of a config is a mapping with a `name` and that function's keywords; a
wrong one raises a UserError.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Set
from typing import Any

import ml_collections

from experiments import names
from experiments.errors import UserError

MAPPINGS = (Mapping, ml_collections.ConfigDict)


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Turns a config into what JSON can hold, its references resolved."""
  return json.loads(json.dumps(config.to_dict()))


def parted(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """Splits a part of a config into its name and its keywords."""
  options = dict(config)
  return options.pop("name"), options


def call(
  kind: str,
  table: Mapping[str, Callable[..., Any]],
  config: Mapping[str, Any],
  *args: Any,
  excluded: Set[str] = frozenset(),
  **fixed: Any,
) -> Any:
  """Calls the function that a part of a config names, with its keywords.

  Args:
    kind: What the functions make, for errors.
    table: The functions by name; others are imported, as by `names.find`.
    config: A name and keywords.
    *args: Its positional arguments.
    excluded: Keywords that only code may set: trees, functions.
    **fixed: Keywords that a config may not set.

  Returns:
    What the function returns.

  Raises:
    UserError: If the name or a keyword is unknown, or a value is wrong.
  """
  name, options = parted(config)
  function = names.find(kind, name, table)
  known, others = names.keywords(function, after=len(args))
  known -= {*fixed, *excluded}
  names.check_options(f"{kind} {name}", excluded & options.keys(), known)
  names.check_options(f"{kind} {name}", options, known, others)
  _check_numbers(f"{kind} {name}", function, options)
  try:
    return function(*args, **fixed, **options)
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise UserError(f"{kind} {name}: {error}") from error


def _check_numbers(
  where: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
  """Refuses text and nothing where a number is wanted, before it is used."""
  parameters = inspect.signature(function).parameters
  for key, value in options.items():
    wanted = parameters[key].annotation if key in parameters else Any
    if wanted in (int, float) and (value is None or isinstance(value, str)):
      raise UserError(
        f"{where}: {key} is {value!r}, wanted a number without quotes"
      )
