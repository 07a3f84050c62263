"""Tables as text."""

import csv
from pathlib import Path

import jinja2
import pytest

from experiments.tables import text

COLUMNS = {"name": str, "half": lambda n: "-" if n % 2 else str(n // 2)}


def test_columns_show_items_and_empty_ones_are_left_out_if_they_may_be():
  lines = [("name", "half"), ("1", "-"), ("4", "2")]
  assert text.cells(COLUMNS, [1, 4], optional=("half",)) == lines
  assert text.cells(COLUMNS, [1, 3], optional=("half",)) == [
    ("name",), ("1",), ("3",)
  ]  # fmt: skip
  assert text.cells(COLUMNS, [1])[1] == ("1", "-")


def test_latex_is_escaped():
  found = text.latex([("a_b", "%"), ("50 %", "x & y")])
  assert "\\toprule" in found
  assert "a\\_b" in found
  assert "50 \\%" in found
  assert "x \\& y" in found


def test_columns_without_room_are_left_out_in_their_order_and_named(
  capsys, monkeypatch
):
  lines = [("name", "mean", "of papers", "runs"), ("seft", "5.1", "-", "3")]
  for columns, names in ((20, "of papers"), (12, "of papers, runs")):
    monkeypatch.setenv("COLUMNS", str(columns))
    text.print_table("title", lines, last=("of papers",), rest="a.csv")
    printed = capsys.readouterr().out
    assert all(len(line) <= columns for line in printed.splitlines())
    words = " ".join(printed.split())
    assert words.startswith("title name mean ")
    assert words.endswith(f"No room for: {names}. They are in a.csv.")
  monkeypatch.setenv("COLUMNS", "80")
  text.print_table("title", lines, last=("of papers",))
  assert "No room" not in capsys.readouterr().out


COMMITTED = sorted((Path(__file__).parents[3] / "results").glob("*.csv"))


def test_committed_tables_fit_a_terminal_without_breaking_numbers():
  assert len(COMMITTED) > 30
  for file in COMMITTED:
    header, *lines = csv.reader(file.read_text().splitlines()[1:])
    lines = [header, *lines[:40]]
    printed = text.terminal(lines, 80)
    assert max(map(len, printed)) <= 80, file
    rule = next(line for line in printed if line.startswith("--"))
    shown = [
      i
      for i, _ in enumerate(header)
      # Text of more than 24 characters may be broken between words.
      if all(any(line[i] in row for row in printed) or len(line[i]) > 24
             for line in lines[1:])
    ]  # fmt: skip
    assert len(shown) >= len(rule.split()) >= min(3, len(header)), file


def test_templates_render_tables_and_escape_html_only(tmp_path):
  for name in ("a.md", "a.html"):
    (tmp_path / name).write_text("{{ title }}\n{{ table | markdown }}\n")
  table = [("a", "b"), ("1", "2")]
  markdown = "| a | b |\n| --- | ---: |\n| 1 | 2 |"
  for name, title in (("a.md", "x < y"), ("a.html", "x &lt; y")):
    page = text.render(tmp_path / name, title="x < y", table=table)
    assert page == f"{title}\n{markdown}"
  with pytest.raises(jinja2.UndefinedError, match="title"):
    text.render(tmp_path / "a.md", table=table)
