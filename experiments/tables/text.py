"""Tables as text: CSV, Markdown, LaTeX, the terminal, templates and README.

A table is a list of lines of cells, the first of which is the header. A CSV
begins with `# ` and the command that makes it.
"""

import csv
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import rich.console
import rich.table
import tabulate

Line = Sequence[str]
Item = TypeVar("Item")
TEMPLATES = Path(__file__).parent / "templates"

_BLOCK = re.compile(
  r"(<!-- table: (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL
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
    **values: By name what it shows; its filter `markdown` renders tables.

  Returns:
    The text, without a newline at its end.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(template.parent),
    autoescape=jinja2.select_autoescape(),
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["markdown"] = markdown
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
  hidden: Collection[str] = (),
  left: int = 1,
  no_wrap: bool = False,
) -> None:
  """Prints a table on the terminal.

  Args:
    title: What to print above.
    lines: The table.
    hidden: Headers of columns that there is no room for.
    left: How many columns are aligned left.
    no_wrap: Whether to keep the numbers of other columns in one line.
  """
  header, *body = lines
  shown = [i for i, name in enumerate(header) if name not in hidden]
  printed = rich.table.Table(title=title)
  for i in shown:
    options = {"justify": "left"}
    if i >= left:
      options = {"justify": "right", "no_wrap": no_wrap}
    printed.add_column(header[i], overflow="fold", **options)
  for line in body:
    printed.add_row(*(line[i] for i in shown))
  rich.console.Console().print(printed)


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
    text: Markdown with `<!-- table: FILE -->` and `<!-- end -->` around each.
    root: What the files are relative to.

  Returns:
    The text.
  """
  return _BLOCK.sub(
    lambda m: f"{m[1]}\n{_markdown_of_csv(root / m['file'])}\n{m[3]}", text
  )


def _markdown_of_csv(file: Path) -> str:
  comment, *lines = file.read_text().splitlines()
  command = comment.removeprefix("# ")
  return f"{markdown(csv.reader(lines))}\n\nMade by `{command}`.\n"
