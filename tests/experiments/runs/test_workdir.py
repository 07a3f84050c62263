"""Who may write to a run's directory, and which run it holds."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.runs import workdir

CONFIG = {"seed": 0, "optimizer": {"name": "sgd", "boundaries": (1, 2)}}


def test_the_same_config_is_let_in_again(tmp_path):
  workdir.ensure_config(tmp_path, CONFIG)
  workdir.ensure_config(tmp_path, CONFIG)
  head = json.loads((tmp_path / "config.json").read_text())
  assert head["config"]["optimizer"]["boundaries"] == [1, 2]
  assert head["sparsejax"] == workdir.VERSION
  assert head["format"] == workdir.FORMAT


def test_another_config_is_refused_with_the_difference(tmp_path):
  workdir.ensure_config(tmp_path, CONFIG)
  before = (tmp_path / "config.json").read_text()
  other = {"optimizer": {"name": "adam", "boundaries": (1, 2)}, "new": 0.5}
  with pytest.raises(UserError) as error:
    workdir.ensure_config(tmp_path, other)
  message = str(error.value)
  assert 'optimizer.name: "sgd" -> "adam"' in message
  assert "seed: 0 -> (not set)" in message
  assert "new: (not set) -> 0.5" in message
  assert "boundaries" not in message
  assert (tmp_path / "config.json").read_text() == before


def test_what_is_free_may_change(tmp_path):
  workdir.ensure_config(tmp_path, CONFIG, free=("seed",))
  workdir.ensure_config(tmp_path, {**CONFIG, "seed": 1}, free=("seed",))
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["config"]["seed"] == 1
  other = {"seed": 2, "optimizer": {"name": "adam", "boundaries": (1, 2)}}
  with pytest.raises(UserError) as error:
    workdir.ensure_config(tmp_path, other, free=("seed",))
  assert "optimizer.name" in str(error.value)
  assert "seed:" not in str(error.value)


def test_a_config_of_another_format_is_refused(tmp_path):
  workdir.ensure_config(tmp_path, CONFIG)
  file = tmp_path / "config.json"
  head = json.loads(file.read_text()) | {"format": 99, "sparsejax": "7.0"}
  file.write_text(json.dumps(head))
  with pytest.raises(UserError, match=r"another version: format 99 .* 7\.0"):
    workdir.ensure_config(tmp_path, CONFIG)


def test_another_release_is_let_in_with_a_warning(tmp_path, caplog):
  workdir.ensure_config(tmp_path, CONFIG)
  file = tmp_path / "config.json"
  head = json.loads(file.read_text()) | {"sparsejax": "7.0"}
  file.write_text(json.dumps(head))
  workdir.ensure_config(tmp_path, CONFIG)
  assert "begun by sparsejax 7.0" in caplog.text


@pytest.mark.parametrize("text", ["", '{"format": 1, "conf', "[]", "\x00\x01"])
def test_a_broken_config_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json"):
    workdir.ensure_config(tmp_path, CONFIG)


@pytest.mark.parametrize(
  "text", ['{"format": 1}', '{"format": 1, "config": 3}']
)
def test_an_incomplete_config_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json"):
    workdir.ensure_config(tmp_path, CONFIG)


def test_a_run_without_its_config_is_refused(tmp_path):
  (tmp_path / "metrics.jsonl").touch()
  with pytest.raises(UserError, match=r"no config\.json"):
    workdir.ensure_config(tmp_path, CONFIG)


def test_a_second_owner_is_refused_and_told_of_the_first(tmp_path):
  with workdir.locked(tmp_path / "run") as path:
    with (
      pytest.raises(UserError, match=rf"process {os.getpid()} on .+ since 20"),
      workdir.locked(path),
    ):
      pytest.fail("two owners")
    assert (path / "lock").read_text()
  with workdir.locked(path):
    pass


HOLD = """
import sys, time
from experiments.runs import workdir
with workdir.locked(sys.argv[1]):
  print("in", flush=True)
  time.sleep(60)
"""


def test_a_killed_owner_leaves_no_lock(tmp_path):
  command = [sys.executable, "-c", HOLD, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout.readline() == "in\n"
    try:
      with (
        pytest.raises(UserError, match=f"process {child.pid} "),
        workdir.locked(tmp_path),
      ):
        pytest.fail("two owners")
    finally:
      child.send_signal(signal.SIGKILL)
    child.wait()
  with workdir.locked(tmp_path):
    assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_an_impossible_directory_is_a_clear_error():
  with (
    pytest.raises(UserError, match="cannot write in /dev/null/run"),
    workdir.locked("/dev/null/run"),
  ):
    pytest.fail("a directory in /dev/null")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  file = tmp_path / "a.json"
  workdir.write_json(file, {"a": 1})

  def full(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="no room"):
    workdir.write_json(file, {"a": 2})
  assert json.loads(file.read_text()) == {"a": 1}


def test_a_finished_run_says_so(tmp_path):
  assert workdir.finished(tmp_path) is None
  workdir.finish(tmp_path, 10, {"accuracy": 0.5})
  assert workdir.finished(tmp_path) == {"accuracy": 0.5}
  assert [p.name for p in Path(tmp_path).iterdir()] == ["finished.json"]


def test_of_each_keeps_the_order_and_raises_the_first_error():
  assert workdir.of_each(pow, [2, 3, 4], [5, 4, 3]) == [32, 81, 64]
  with pytest.raises(ValueError, match="'b'"):
    workdir.of_each(int, ["1", "b", "c"])
