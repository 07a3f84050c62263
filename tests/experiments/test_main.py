"""The command line: one clear message for what is wrong, and no traceback."""

import json
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
    (["--config.steps=abc"], "config.steps is 'abc'; wanted a whole number"),
    (["--config.algorithm.name=sett"], "did you mean 'set'"),
    (
      ["--config=configs/rigl_mnst1d.py"],
      "did you mean 'rigl_mnist1d'.*looked for /.*/configs/rigl_mnst1d.py",
    ),
    (["--config=rigl_mnist1d"], "did you mean /.*/configs/rigl_mnist1d.py"),
    (["--config=tests/experiments/small_llama.py"], "no function get_config"),
    (["--config.keep_steps=5"], "wanted a list .* write 5, with the comma"),
    (["--config.model.path=FOLDER"], "no key .* 'model.path'"),
  ],
)
def test_what_is_wrong_is_told(tmp_path, arguments, message):
  workdir = tmp_path / "run"
  code, out, err = finish(*SMALL, f"--workdir={workdir}", *arguments)
  assert code != 0
  assert "Traceback" not in err + out
  assert re.search(message, err), err
  assert not workdir.exists()


def test_help_lists_configs_and_keys():
  code, out, _ = finish("--help")
  assert code == 0
  assert "--workdir" in out
  assert "\n  rigl_mnist1d: RigL on MNIST-1D: a small convolutional net" in out
  assert "argument: an algorithm (`rigl`, `set`," in out
  code, out, _ = finish(*SMALL, "--config.algorithm.name=granet", "--help")
  assert code == 0
  assert "\n  steps = 24\n      Training steps.\n" in out
  assert "\n  algorithm.name = 'granet'\n" in out
  # An optional keyword: its default, and what its docstring says.
  said = "The sparsity of the random initial masks."
  assert f"\n  (algorithm.initial_sparsity = 0.5)\n      {said}" in out
  assert "\n  (model.dtype = float32)\n" in out


@pytest.mark.slow
def test_every_key_can_be_set(tmp_path):
  """Of what the config leaves out, and of an algorithm of its own."""
  changes = (
    *("--config.algorithm=srigl", "--config.algorithm.ablation=0.1"),
    *("--config.model.dtype=bfloat16", "--config.steps", "12"),
    *("--config.optimizer.clip=1", "--config.algorithm.grown_values=he_normal"),
  )
  code, _, err = finish(*SMALL, f"--workdir={tmp_path}", *changes)
  assert code == 0, err
  assert "config.algorithm is srigl in place of set; keeps delta_t=4" in err
  config = json.loads((tmp_path / "config.json").read_text())["config"]
  assert config["algorithm"] == {
    "name": "srigl",
    "sparsity": 0.8,
    "delta_t": 4,
    "t_end": 18,
    "fraction": 0.3,
    "ablation": 0.1,
    "never_ablate": "^logits",
    "grown_values": {"name": "he_normal"},
  }
  assert config["model"]["dtype"] == "bfloat16"
  assert config["optimizer"] == {"name": "adam", "clip": 1.0}
  assert config["steps"] == 12
