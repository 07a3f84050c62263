"""Tables as text: CSV, Markdown, LaTeX, the terminal, templates and README.

A table is a list of lines of cells, the first of which is the header. A CSV
begins with `# ` and the command that makes it.
"""

import csv
import itertools
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import tabulate

from experiments.plots import titles

Line = Sequence[str]
Item = TypeVar("Item")
TEMPLATES = Path(__file__).parent / "templates"

_BLOCK = re.compile(
  r"(<!-- table: (?P<file>\S+)(?: without (?P<hidden>[^>]+))? -->)\n"
  r".*?<!-- end -->",
  re.DOTALL,
)


def cells(
  columns: Mapping[str, Callable[[Item], str]],
  items: Iterable[Item],
  *,
  optional: Collection[str] = (),
) -> list[tuple[str, ...]]:
  """Makes the header and the cells of a table.

  Args:
    columns: By its header, what a column shows of an item.
    items: What the lines are about.
    optional: The columns to leave out if all their cells are `-`.

  Returns:
    The lines.
  """
  lines = [tuple(show(item) for show in columns.values()) for item in items]
  kept = [
    i
    for i, name in enumerate(columns)
    if name not in optional or any(line[i] != "-" for line in lines)
  ]
  return [tuple(line[i] for i in kept) for line in (tuple(columns), *lines)]


def markdown(lines: Iterable[Line]) -> str:
  """Renders a table as Markdown, without a newline at its end."""
  header, *body = (
    [cell.replace("|", "\\|") for cell in line] for line in lines
  )
  rule = ("---", *["---:"] * (len(header) - 1))
  return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def render(template: Path, **values: Any) -> str:
  """Fills in a template of Jinja.

  Args:
    template: The file. If it ends in .html, values are escaped.
    **values: By name what it shows. The filter `named` writes the methods of a
      table as papers do, `published` those of a text; `markdown` renders
      tables.

  Returns:
    The text, without a newline at its end.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(template.parent),
    autoescape=jinja2.select_autoescape(),
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {
    "markdown": markdown,
    "named": titles.table,
    "published": titles.published,
  }
  return environment.get_template(template.name).render(values)


def latex(lines: Sequence[Line]) -> str:
  """Renders a table as LaTeX, of its package booktabs."""
  header, *body = lines
  return tabulate.tabulate(
    body,
    header,
    tablefmt="latex_booktabs",
    disable_numparse=True,
    colalign=("left", *["right"] * (len(header) - 1)),
  )


def print_table(
  title: str,
  lines: Sequence[Line],
  *,
  last: Sequence[str] = (),
  left: int = 1,
  rest: str = "table.csv",
) -> None:
  """Prints a table on the terminal, as wide as that is, numbers unbroken.

  Args:
    title: What to print above.
    lines: The table.
    last: Headers of the columns to leave out first where there is no room, in
      that order; then columns are left out from the right.
    left: How many columns are aligned left.
    rest: What holds the columns that are left out.
  """
  width = shutil.get_terminal_size().columns
  print("\n".join(["", title, *terminal(lines, width, last=last, left=left)]))
  shown = _that_fit(lines, width, last)
  if gone := [name for i, name in enumerate(lines[0]) if i not in shown]:
    said = f"No room for: {', '.join(gone)}. They are in {rest}."
    print(textwrap.fill(said, width))


def terminal(
  lines: Sequence[Line],
  width: int,
  *,
  last: Sequence[str] = (),
  left: int = 1,
) -> list[str]:
  r"""Formats a table for a terminal.

  Args:
    lines: The table.
    width: Of the terminal, in characters.
    last: As for `print_table`.
    left: As for `print_table`.

  Returns:
    The lines to print, none longer than `width`.

  Example:
    >>> table = [("method", "test accuracy"), ("rigl", "88.7"), ("set", "9.9")]
    >>> print("\n".join(terminal(table, 80)))
    method  test accuracy
    ------  -------------
    rigl             88.7
    set               9.9
    >>> print("\n".join(terminal(table, 16)))
    method      test
            accuracy
    ------  --------
    rigl        88.7
    set          9.9
  """
  shown = _that_fit(lines, width, last)
  columns = [[str(line[i]) for line in lines] for i in shown]
  least = [_least(column) for column in columns]
  spare = width - sum(least) - len(_GAP) * (len(least) - 1)
  widths = []
  for column, at_least in zip(columns, least, strict=True):
    more = min(spare, max(map(len, column)) - at_least)
    spare -= more
    widths.append(at_least + more)
  made = []
  for number, line in enumerate(zip(*columns, strict=True)):
    cells = [_broken(c, w) for c, w in zip(line, widths, strict=True)]
    for row in itertools.zip_longest(*cells, fillvalue=""):
      padded = (
        cell.ljust(w) if i < left else cell.rjust(w)
        for i, cell, w in zip(shown, row, widths, strict=True)
      )
      made.append(_GAP.join(padded).rstrip())
    if not number:
      made.append(_GAP.join("-" * w for w in widths))
  return made


_GAP = "  "
_TEXT = 24  # characters from which a cell is text, and may be broken


def _that_fit(
  lines: Sequence[Line], width: int, last: Sequence[str]
) -> list[int]:
  """The columns that there is room for."""
  columns = [
    [str(cell) for cell in column] for column in zip(*lines, strict=True)
  ]
  least = [_least(column) + len(_GAP) for column in columns]
  shown = list(range(len(columns)))
  for name in (*last, *reversed(lines[0])):
    if sum(least[i] for i in shown) - len(_GAP) <= width:
      break
    left = [i for i in shown if lines[0][i] != name]
    shown = left or shown
  return shown


def _least(column: Sequence[str]) -> int:
  """How narrow a column can be: a header is broken, and text, but no number."""
  header, *cells = column
  widest = max((len(c) for c in cells if len(c) <= _TEXT), default=0)
  texts = [piece for c in cells if len(c) > _TEXT for piece in _pieces(c)]
  pieces = [len(piece.rstrip()) for piece in (*_pieces(header), *texts)]
  return max(widest, *pieces, _TEXT if texts else 0)


def _pieces(text: str) -> list[str]:
  return re.split(r"(?<=[\s_/-])(?=\S)", text)


def _broken(cell: str, width: int) -> list[str]:
  """Breaks a cell between its pieces."""
  if len(cell) <= width:
    return [cell]
  rows = [""]
  for piece in _pieces(cell):
    if rows[-1] and len((rows[-1] + piece).rstrip()) > width:
      rows.append("")
    rows[-1] += piece
  return [row.rstrip() for row in rows]


def write_csv(
  file: Path,
  lines: Iterable[Line],
  *,
  module: str = "experiments.main",
  command: str = "",
) -> None:
  """Writes a table as CSV, below the command that makes it.

  Args:
    file: The CSV.
    lines: The table.
    module: The module of the command that is running.
    command: The command, if it is another.
  """
  command = command or shlex.join(["python", "-m", module, *sys.argv[1:]])
  with file.open("w", newline="") as out:
    out.write(f"# {command}\n")
    csv.writer(out, lineterminator="\n").writerows(lines)


def fill(text: str, root: Path) -> str:
  """Replaces the tables in a text by those of today's CSVs.

  Args:
    text: Markdown with `<!-- table: FILE -->` and `<!-- end -->` around each or
      `<!-- table: FILE without COLUMN, COLUMN -->`.
    root: What the files are relative to.

  Returns:
    The text.
  """

  def filled(block: re.Match[str]) -> str:
    hidden = (block["hidden"] or "").split(", ")
    table = _markdown_of_csv(root / block["file"], hidden)
    return f"{block[1]}\n\n{table}\n<!-- end -->"

  return _BLOCK.sub(filled, text)


def _markdown_of_csv(file: Path, hidden: Collection[str]) -> str:
  comment, *lines = file.read_text().splitlines()
  command = comment.removeprefix("# ")
  header, *body = csv.reader(lines)
  shown = [name not in hidden for name in header]
  table = [list(itertools.compress(line, shown)) for line in (header, *body)]
  return f"{markdown(table)}\n\nMade by `{command}`.\n"
