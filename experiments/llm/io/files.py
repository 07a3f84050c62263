"""JSON read with errors that name the file, and files replaced as a whole."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.errors import UserError


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that holds one object.

  Args:
    path: the file.

  Returns:
    The object.

  Raises:
    UserError: the file is missing, or holds something else.
  """
  try:
    content = path.read_bytes()
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UserError(
      f"{path}: there is no such file; name the folder that holds it."
    ) from error
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  return parsed_json(content, where=path)


def parsed_json(content: bytes, *, where: Any) -> dict[str, Any]:
  """Parses a JSON file that holds one object.

  Args:
    content: the file's.
    where: its path, for errors.

  Returns:
    The object.

  Raises:
    UserError: it is damaged, or holds something else.
  """
  try:
    value = json.loads(content.decode("utf-8"))
  except ValueError as error:
    raise UserError(f"{where}: not a JSON file: {error}") from error
  if not isinstance(value, dict):
    raise UserError(
      f"{where}: wanted a JSON object, got {type(value).__name__}."
    )
  return value


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write to, renamed to `path` on success.

  Args:
    path: the file to replace, which stays as it is when writing fails. Its
      folder is made if need be.

  Yields:
    A path in the same folder.

  Raises:
    UserError: a folder is there, or a file where its folder should be.
  """
  if path.is_dir():
    raise UserError(f"{path} is a folder; name a file to write.")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as error:
    raise UserError(
      f"{path.parent} is no folder, but a file or below one; name another."
    ) from error
  part = path.with_name(path.name + ".part")
  try:
    part.touch()
    mode = part.stat().st_mode
    yield part
    part.chmod(mode)  # safetensors makes a file that only its owner may read
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
