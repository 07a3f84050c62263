"""Pictures that are drawn from CSVs, and those that are committed."""

import numpy as np
import pytest
from PIL import Image

from experiments.errors import UserError
from experiments.plots import titles
from experiments.tables import pictures
from experiments.tables.__main__ import draw_pictures
from experiments.tables.pictures import ROOT, Table, accuracies

RESULTS = ROOT / "results"
COMMITTED = sorted(RESULTS.glob("*.png"))


@pytest.mark.parametrize("png", COMMITTED, ids=lambda png: png.stem)
def test_a_committed_picture_is_of_todays_table_and_names_its_methods(png):
  file = pictures.csv_of(png)
  said = Image.open(png).text
  assert said["Source"] == pictures.source(file), (
    "the picture is of another table. Draw it again: python -m "
    f"experiments.tables --pictures=results/{file.name}"
  )
  table = pictures.read(file)
  words = said["Description"] + "\n" + said["Title"]
  lines = table.lines
  if png.stem.endswith("_barriers"):
    lines = [line for line in lines if line["error barrier [%]"] != "-"]
  named = {line.get("method") or line.get("branch") for line in lines}
  for name in named - {None}:
    shown = titles.published(name.partition(", ")[0])
    parts = shown.removesuffix(")").split(" (")
    # In small multiples a panel names the method, the legend its variant.
    assert all(part in words for part in parts) or any(
      shown.startswith(word) for word in words.split("\n")
    ), name
  assert any(count in said["Title"] for count in ("one seed", " seeds"))


def test_rows_of_a_comparison_are_read_as_they_were_written():
  table = pictures.read(RESULTS / "families_fashion_mnist.csv")
  rows = {row.label: row for row in accuracies(table)}
  assert len(rows) == 1 + 16 * 4
  row = rows["mest_s, 80 %"]
  assert (row.method, row.setting, row.runs) == ("mest_s", 0.8, "3")
  assert row.spread == "89.27 ± 0.10"
  low, high = row.interval
  assert (f"{low:.2f}", f"{high:.2f}") == ("89.02", "89.52")
  assert rows["dense"].setting is None
  table = pictures.read(RESULTS / "init_pruning.csv")
  rows = {row.label: row for row in accuracies(table)}
  assert len(rows) == 1 + 14 * 4
  assert rows["rigl from snip, 98 %"].spread == "63.87 ± 10.86"
  assert rows["dense"].setting is None


def test_seeds_that_diverged_and_cells_without_a_number_are_read(tmp_path):
  cells = {"method": "a, 90 %", "test accuracy [%]": "50.00 (1 of 2 diverged)"}
  lost = {"method": "b", "test accuracy [%]": "- (2 of 2 diverged)"}
  lines = [{**one, "runs": "2"} for one in (cells, lost)]
  found = accuracies(Table(tmp_path, "", lines, tmp_path))
  assert [list(row.values.values()) for row in found] == [
    pytest.approx([50, np.nan], nan_ok=True),
    pytest.approx([np.nan, np.nan], nan_ok=True),
  ]


def test_the_dense_model_is_told_by_its_column_or_by_ratios():
  read, measure = pictures.read, pictures.Measure("perplexity", True)
  table = read(RESULTS / "t5_sotu.csv")
  assert pictures.dense(table, measure) == 9.70
  table = read(RESULTS / "oneshot_bytes.csv")
  assert pictures.dense(table, measure) == pytest.approx(4.66, abs=0.01)


def test_a_table_is_drawn_by_a_command(tmp_path, capsys):
  draw_pictures(str(RESULTS / "quickstart.csv"), tmp_path)
  assert capsys.readouterr().out == f"{tmp_path / 'quickstart.png'}\n"
  said = Image.open(tmp_path / "quickstart.png").text
  assert said["Title"].startswith("Convolutional net on MNIST-1D\nmeans of 3")
  with pytest.raises(UserError, match="no picture is known of a table with"):
    draw_pictures(str(RESULTS / "flops.csv"), tmp_path)
  with pytest.raises(UserError, match="cannot be read"):
    draw_pictures("absent.csv", tmp_path)
