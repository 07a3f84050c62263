"""The command line: one clear message for what is wrong, and no traceback."""

import re

import pytest

from tests.experiments.interrupted import finish

SMALL = ("--config=tests/experiments/small.py:set",)


def test_a_run(tmp_path):
  code, out, err = finish(*SMALL, f"--workdir={tmp_path}")
  assert code == 0, err
  assert "is finished" in out
  assert (tmp_path / "finished.json").exists()


@pytest.mark.slow
def test_the_same_command_again_and_another(tmp_path):
  for words in ("is finished", "was already finished"):
    code, out, err = finish(*SMALL, f"--workdir={tmp_path}")
    assert code == 0, err
    assert words in out
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
