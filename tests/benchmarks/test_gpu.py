"""The benchmark of GPUs runs on a CPU, and no item stops the others."""

import time

import jax
import pytest

from benchmarks import gpu, measure
from tests.marks import few


def run(names, minutes=8.0):
  written = []
  lines = gpu.run(names, written.append, minutes=minutes, rounds=1, tiny=True)
  assert written[-1] == lines
  for line in lines:
    assert len(line) == len(gpu.COLUMNS)
    assert line[-2] == jax.__version__
  return lines


def one_row(tiny, rounds):
  assert (tiny, rounds) == (True, 1)
  yield measure.row("fine", 2.0, most=3)


def fails(tiny, rounds):
  yield measure.row("before it fails", 1.0)
  raise ValueError("no such kernel\nand a long trace")


def lasts(tiny, rounds):
  time.sleep(20)
  yield


# Sweeps and quickstarts of their own, and whole nets, take too long.
@pytest.mark.parametrize("name", few(gpu.ITEMS, ["selection"]))
def test_an_item_runs(name):
  lines = run([name])
  assert lines
  for line in lines:
    assert line[0] == name
    float(line[2])


def test_an_item_that_fails_says_why_and_the_next_one_runs(monkeypatch):
  items = {"a": gpu.Item(1, fails), "b": gpu.Item(1, one_row)}
  monkeypatch.setattr(gpu, "ITEMS", items)
  before, failed, fine = run(["a", "b"])
  assert before[:3] == ("a", "before it fails", "1")
  assert failed[:3] == ("a", "a: ValueError: no such kernel", "-")
  assert fine[:5] == ("b", "fine", "2", "<= 3", "yes")


def test_an_item_that_takes_too_long_is_stopped(monkeypatch):
  items = {"a": gpu.Item(1, lasts), "b": gpu.Item(20, one_row)}
  monkeypatch.setattr(gpu, "ITEMS", items)
  begin = time.monotonic()
  late, fine = run(["a", "b"], minutes=0.35)
  assert time.monotonic() - begin < 10
  assert "took longer than its share" in late[1]
  assert fine[1] == "fine"


def test_a_table_has_the_card_in_its_name():
  file = gpu.results_file("NVIDIA H100 80GB HBM3")
  assert file.name == "gpu_nvidia_h100_80gb_hbm3.csv"
  assert file.parent.name == "results"
