"""What `--help` says: which configs there are, and the keys of one."""

import ast
import inspect
import pathlib
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.config import schema
from experiments.config.schema import REQUIRED, Section

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
_ARGUMENT = re.compile(r"^Argument: (.+(?:\n.+)*)", re.M)


def files() -> list[pathlib.Path]:
  """Lists the config files that come with the project."""
  return sorted(FOLDER.glob("*.py"))


def configs() -> str:
  """Returns a line on each config file, and what its argument may be."""
  lines = ["Configs, --config=configs/NAME.py or configs/NAME.py:ARGUMENT:", ""]
  for file in files():
    doc = inspect.cleandoc(ast.get_docstring(ast.parse(file.read_text())) or "")
    lines.append(f"  {file.stem}: {doc.partition(chr(10))[0]}")
    if argument := _ARGUMENT.search(doc):
      lines.append(_wrapped(f"argument: {argument[1]}", 6))
  return "\n".join(
    [*lines, "", "--config=FILE --help lists the keys of a config."]
  )


def keys(config: str, made: Mapping[str, Any], section: Section) -> str:
  """Returns a line on each key that a config has or can have.

  Args:
    config: The config file, with its argument after a colon.
    made: Its config.
    section: What it can have.
  """
  lines = [f"Keys of {config}, --config.KEY=VALUE, with their values."]
  lines += ["Those in parentheses are not set: these are defaults.", ""]
  lines += _lines(made, section)
  return "\n".join(lines)


def _lines(
  made: Mapping[str, Any], section: Section, prefix: str = ""
) -> Iterator[str]:
  for path, key, value, is_set in schema.paths(made, section, prefix):
    shown = "needed" if value is REQUIRED else _shown(value)
    head = f"  {path} = {shown}" if is_set else f"  ({path} = {shown})"
    yield "\n".join(filter(None, (head, _wrapped(key.meaning, 6))))


def _shown(value: Any) -> str:
  """Returns a value as it may be written on a command line."""
  value = value.to_dict() if hasattr(value, "to_dict") else value
  name = getattr(value, "__name__", None)
  return name if name and not isinstance(value, str) else repr(value)


def _wrapped(text: str, indent: int) -> str:
  margin = " " * indent
  return textwrap.fill(
    " ".join(text.split()),
    width=78,
    initial_indent=margin,
    subsequent_indent=margin,
  )
