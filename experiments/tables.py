"""Tables as CSV and Markdown; the README's, from the CSVs in results/.

`python -m experiments.tables` rewrites them; a test fails when they differ. A
CSV begins with `# ` and the command that made it.
"""

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
) -> None:
  """Writes a header and rows as a CSV, below the command that runs now."""
  command = shlex.join(["python", "-m", module, *sys.argv[1:]])
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


def main() -> None:
  """Rewrites README.md."""
  root = Path(__file__).parents[1]
  readme = root / "README.md"
  readme.write_text(fill(readme.read_text(), root))


if __name__ == "__main__":
  main()
