"""The page of all options: one row per keyword.

Everything comes from signatures and docstrings, at build.
"""

import importlib
import inspect
import re
from typing import NamedTuple

# The module, and the names of functions.
MARK = re.compile(r"^<!-- options of (\S+): ([\w\s]+) -->$", re.M)
BAR = r"\|"  # one that ends no cell


class Option(NamedTuple):
  """A keyword of a function: a link to it, the default and the meaning."""

  function: str
  default: str
  meaning: str


def meanings(function) -> dict[str, str]:
  """Reads what each argument means off a Google-style docstring.

  Args:
    function: The function.

  Returns:
    The text of each argument, on one line.
  """
  _, _, section = inspect.getdoc(function).partition("\nArgs:\n")
  section = re.split(r"\n\n(?=\S)", section)[0]
  entries = re.findall(
    r"^  \*{0,2}(\w+): (.*?)(?=^  \S|\Z)", section, re.M | re.S
  )
  return {name: " ".join(text.split()) for name, text in entries}


def default_of(parameter: inspect.Parameter) -> str:
  """Writes a default as a user would: functions by their names."""
  value = parameter.default
  if value is inspect.Parameter.empty:
    return "required"
  if callable(value):
    return f"`{getattr(value, '__name__', value)}`"
  return f"`{value!r}`"


def options(module: str, functions: list[str]) -> dict[str, list[Option]]:
  """Collects the keywords of several functions.

  Args:
    module: Where the functions are public.
    functions: Their names.

  Returns:
    For each keyword, in the order in which they first come up, what it is in
    each function that has it.
  """
  found = {}
  for name in functions:
    function = getattr(importlib.import_module(module), name)
    texts = meanings(function)
    for keyword, parameter in inspect.signature(function).parameters.items():
      link = f"{{py:obj}}`{name} <{module}.{name}>`"
      option = Option(link, default_of(parameter), texts[keyword])
      found.setdefault(keyword, []).append(option)
  return found


def told(options: list[Option], values: list[str]) -> str:
  """Writes what most have, and then what others have instead."""
  by_value = {}
  for option, value in zip(options, values, strict=True):
    by_value.setdefault(value, []).append(option.function)
  most = max(by_value, key=lambda value: len(by_value[value]))
  others = [
    f"{', '.join(names)}: {value}"
    for value, names in by_value.items()
    if value != most
  ]
  return "<br>".join([most, *others])


def table(module: str, functions: list[str]) -> str:
  """Writes all keywords as a Markdown table, the most common first."""
  lines = [
    "| keyword | default | of | meaning |",
    "| --- | --- | --- | --- |",
  ]
  found = options(module, functions)
  for keyword in sorted(found, key=lambda name: -len(found[name])):
    rows = found[keyword]
    missing = len(functions) - len(rows)
    having = {row.function for row in rows}
    if missing == 0:
      which = "all"
    elif missing < len(rows):
      which = "all but " + ", ".join(
        f"`{name}`"
        for name in functions
        if f"{{py:obj}}`{name} <{module}.{name}>`" not in having
      )
    else:
      which = ", ".join(row.function for row in rows)
    cells = [
      f"`{keyword}`",
      told(rows, [row.default for row in rows]),
      which,
      told(rows, [row.meaning for row in rows]).replace("*", r"\*"),
    ]
    lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
  return "\n".join(lines)


def fill(app, docname, source):
  """Sphinx's hook: puts tables in place of marks."""
  source[0] = MARK.sub(lambda mark: table(mark[1], mark[2].split()), source[0])


def setup(app):
  """Connect what is above to Sphinx."""
  app.connect("source-read", fill)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
