"""Names in configs: of a table of ours, or `package.module:attribute`."""

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from experiments.errors import UserError, unknown


def find(
  kind: str,
  name: str,
  table: Mapping[str, Any],
  *,
  instances_of: type | tuple[type, ...] = (),
) -> Any:
  """Finds what a name in a config stands for.

  Args:
    kind: What it is the name of, such as `'model'`, for errors.
    name: A key of the table; or one with a colon, which is imported:
      `my_package.my_module:my_function`.
    table: What there is without importing more.
    instances_of: Classes whose instances serve as well as functions do, where
      the name is imported.

  Returns:
    The table's value, or the attribute.

  Raises:
    UserError: If there is no such name, module or attribute, or the attribute
      is not callable.
  """
  if name in table:
    return table[name]
  if ":" not in name:
    raise unknown(kind, name, table)
  where = f"{kind} {name!r}"
  path, _, attribute = name.partition(":")
  try:
    module = importlib.import_module(path)
  except ModuleNotFoundError as error:
    # What the module itself fails to import is its own fault.
    if not f"{path}.".startswith(f"{error.name}."):
      raise
    raise UserError(
      f"{where}: there is no module {error.name!r}; wanted "
      "package.module:attribute, of a package that is installed, in the "
      "current directory or on PYTHONPATH"
    ) from error
  except (ValueError, TypeError) as error:  # no module's name at all
    raise UserError(
      f"{where} names no module; wanted package.module:attribute"
    ) from error
  if not hasattr(module, attribute):
    public = [key for key in vars(module) if not key.startswith("_")]
    raise unknown(f"{kind} of module {path}", attribute, public)
  found = getattr(module, attribute)
  if not (callable(found) or isinstance(found, instances_of)):
    raise UserError(
      f"{where} is {found!r}, a {type(found).__name__}; wanted a function"
    )
  return found


def keywords(
  function: Callable[..., Any], *, after: int = 0
) -> tuple[set[str], bool]:
  """Lists the keywords of a function.

  Args:
    function: The function, or class.
    after: How many of its arguments are given by position.

  Returns:
    Their names; and whether it takes any others, as `**options`.
  """
  everything = inspect.signature(function).parameters.values()
  others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in everything)
  return {p.name for p in parameters(function, after)}, others


def parameters(
  function: Callable[..., Any], after: int = 0
) -> list[inspect.Parameter]:
  """Lists the parameters of a function that may be given by keyword.

  Args:
    function: The function, or class.
    after: How many of its arguments are given by position.
  """
  kinds = (
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
  )
  found = list(inspect.signature(function).parameters.values())
  return [p for p in found[after:] if p.kind in kinds]


def check_options(
  kind: str,
  options: Iterable[str],
  known: Collection[str],
  others: bool = False,
) -> None:
  """Checks that options in a config are known.

  Args:
    kind: What they are options of, such as `'model wrn'`, for errors.
    options: Their names.
    known: The names that are right.
    others: Whether any others are.

  Raises:
    UserError: If one is unknown; the near ones are listed.
  """
  for option in options:
    if option not in known and not others:
      raise unknown(f"option of {kind}", option, known)
