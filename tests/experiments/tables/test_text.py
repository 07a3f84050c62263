"""Tables as text."""

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


def test_hidden_columns_are_not_printed(capsys):
  lines = [("name", "published"), ("seft", "5.1")]
  text.print_table("title", lines, hidden=("published",))
  printed = capsys.readouterr().out
  assert "title" in printed
  assert "seft" in printed
  assert "5.1" not in printed


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
