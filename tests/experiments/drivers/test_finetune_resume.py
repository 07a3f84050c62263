"""Fine-tuning in a real process, really killed: the same bits at the end."""

import random
import signal

import pytest

from tests.experiments.interrupted import finish, stop

RUN = ("--config=tests/experiments/small_finetune.py",)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
  whole, part = tmp_path / "whole", tmp_path / "part"
  code, out, err = finish(*RUN, f"--workdir={whole}")
  assert code == 0, err
  assert "is finished: perplexity" in out
  command = [*RUN, f"--workdir={part}"]
  stop(signal.SIGKILL, part, random.Random().randrange(4, 60), *command)
  code, _, err = finish(*command)
  assert code == 0, err
  for name in ("metrics.jsonl", "model/model.safetensors"):
    assert (part / name).read_bytes() == (whole / name).read_bytes()
  assert not (part / "checkpoints").exists()
