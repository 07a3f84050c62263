"""The record of a run: exact, cut back on resuming, the same every time."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.runs import metrics


def fill(path, steps, after=-1, **kwargs):
  with metrics.writer(path, after=after, tensorboard=False) as write:
    for step in steps:
      write(step, "train", {"loss": np.float32(step / 10)}, **kwargs)


def test_one_line_per_point(tmp_path):
  with metrics.writer(tmp_path, after=-1) as write:
    values = {"loss": np.float32(0.1), "nnz": np.int32(7), "layers": {"a": 1}}
    write(3, "test", values, {"seconds": 1.5})
  assert metrics.read(tmp_path) == [
    {"step": 3, "split": "test", "loss": 0.1, "nnz": 7, "layers": {"a": 1}}
  ]
  assert list((tmp_path / "tensorboard").iterdir())


def test_a_number_survives_bit_for_bit(tmp_path):
  values = np.random.default_rng(0).normal(size=50).astype(np.float32)
  with metrics.writer(tmp_path, after=-1, tensorboard=False) as write:
    write(0, "train", {str(i): v for i, v in enumerate(values)})
  record = metrics.read(tmp_path)[0]
  back = np.array([record[str(i)] for i in range(50)], np.float32)
  np.testing.assert_array_equal(back, values)


def test_what_is_not_finite_is_null(tmp_path):
  with metrics.writer(tmp_path, after=-1, tensorboard=False) as write:
    write(0, "train", {"loss": np.float32("nan")})
  assert metrics.read(tmp_path)[0]["loss"] is None


def test_resuming_ends_in_the_same_file(tmp_path):
  whole, part = tmp_path / "whole", tmp_path / "part"
  for path in (whole, part):
    path.mkdir()
  fill(whole, range(10))
  fill(part, range(7))
  fill(part, range(5, 10), after=4)
  name = "metrics.jsonl"
  assert (whole / name).read_bytes() == (part / name).read_bytes()


@pytest.mark.parametrize(
  "tail", ['{"step": 5, "sp', '{"step": 5}', "\x00\x00\n", "[]\n"]
)
def test_a_line_cut_short_is_dropped(tmp_path, tail):
  fill(tmp_path, range(5))
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(tail)
  fill(tmp_path, [5], after=9)
  assert [r["step"] for r in metrics.read(tmp_path)] == list(range(6))


def test_a_fresh_start_begins_a_fresh_record(tmp_path):
  fill(tmp_path, range(5))
  fill(tmp_path, [])
  assert metrics.read(tmp_path) == []


def test_a_full_disk_is_a_clear_error(tmp_path):
  with metrics.writer(tmp_path, after=-1, tensorboard=False) as write:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no room"):
      write(0, "train", {"loss": 1.0})


def test_no_record_yet(tmp_path):
  metrics.sync(tmp_path)
  assert metrics.read(tmp_path) == []
