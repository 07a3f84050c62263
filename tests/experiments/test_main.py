"""The command line: one clear message for what is wrong, and no traceback."""

import os
import re
import subprocess
import sys

import pytest

SMALL = ("--config=tests/experiments/small.py:set",)


def launch(*arguments, **environment):
  """Starts the command, on one device, compiled as users have it."""
  environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.main", *arguments],
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(*arguments, **environment):
  process = launch(*arguments, **environment)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


@pytest.mark.slow
def test_a_run_and_the_same_command_again(tmp_path):
  for words in ("is finished", "was already finished"):
    code, out, err = finish(*SMALL, f"--workdir={tmp_path}")
    assert code == 0, err
    assert words in out
  assert (tmp_path / "finished.json").exists()
  code, _, err = finish(*SMALL, f"--workdir={tmp_path}", "--config.seed=1")
  assert code != 0
  assert "seed: 0 -> 1" in err
  assert "Traceback" not in err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.lerning_rate=1"], "did you mean 'schedule.learning_rate'"),
    (
      ["--config.optimizer.momentun=1"],
      "called 'optimizer.momentun'; did you mean",
    ),
    (["--config.steps=abc"], "invalid literal for int"),
    (["--config.algorithm.name=sett"], "did you mean 'set'"),
    (["--config=configs/nowhere.py"], "No such file .* 'configs/nowhere.py'"),
  ],
)
def test_what_is_wrong_is_told(tmp_path, arguments, message):
  workdir = tmp_path / "run"
  code, out, err = finish(*SMALL, f"--workdir={workdir}", *arguments)
  assert code != 0
  assert "Traceback" not in err + out
  assert re.search(message, err), err
  assert not workdir.exists()
