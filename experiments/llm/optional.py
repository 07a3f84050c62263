"""Packages of the extra `llm`, imported when a function needs one."""

import importlib
import types

from experiments.errors import UserError


def load(name: str) -> types.ModuleType:
  """Imports a module of a package of the extra `llm`.

  Args:
    name: the module's.

  Returns:
    The module.

  Raises:
    UserError: its package, or one that it needs, is not installed.
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise UserError(
      f"language models need {name}, but there is no module {error.name!r}; "
      "install what they need with `pip install -e '.[llm]'`."
    ) from error
