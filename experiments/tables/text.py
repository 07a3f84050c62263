"""Tables as CSV and Markdown. A CSV begins with `# ` and what made it."""

import csv
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_BLOCK = re.compile(
  r"(<!-- table: (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def markdown(file: Path) -> str:
  """Renders a CSV as a Markdown table, with its command below.

  Args:
    file: The CSV: a comment with the command, a header, and rows.

  Returns:
    The Markdown, with a newline at its end.
  """
  comment, *lines = file.read_text().splitlines()
  command = comment.removeprefix("# ")
  return f"{table(csv.reader(lines))}\n\nMade by `{command}`.\n"


def table(lines: Iterable[Sequence[str]]) -> str:
  """Renders a header and rows of cells as a Markdown table."""
  header, *rows = (
    [cell.replace("|", "\\|") for cell in line] for line in lines
  )
  rule = ("---", *["---:"] * (len(header) - 1))
  return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def write(
  file: Path,
  lines: Iterable[Sequence[str]],
  *,
  module: str = "experiments.main",
  command: str = "",
) -> None:
  """Writes a header and rows as a CSV, below the command that makes it.

  Args:
    file: The CSV.
    lines: The header and the rows.
    module: Which is run now, with the arguments that it has got.
    command: The command, if it is another.
  """
  command = command or shlex.join(["python", "-m", module, *sys.argv[1:]])
  with file.open("w", newline="") as out:
    out.write(f"# {command}\n")
    csv.writer(out, lineterminator="\n").writerows(lines)


def fill(text: str, root: Path) -> str:
  """Puts the tables that a text asks for into it.

  Args:
    text: Markdown with `<!-- table: FILE -->` and `<!-- end -->` around each.
    root: What the files are relative to.

  Returns:
    The text with the tables of today.
  """
  return _BLOCK.sub(
    lambda m: m[1] + "\n" + markdown(root / m["file"]) + "\n" + m[3], text
  )
