"""The README's tables, written from the CSVs in results/.

`python -m experiments.tables` rewrites them; a test fails when they differ. A
CSV begins with `# ` and the command that made it.
"""

import csv
import re
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
  header, *rows = csv.reader(lines)
  rule = ["---", *["---:"] * (len(header) - 1)]
  table = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
  command = comment.removeprefix("# ")
  return "\n".join([*table, "", f"Made by `{command}`.", ""])


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
