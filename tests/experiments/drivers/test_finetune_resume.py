"""Fine-tuning in real processes, really killed: the same bits at the end."""

import random
import signal
import time

import pytest

from tests.experiments.runs.test_resume import wait_for
from tests.experiments.test_main import finish, launch

RUN = ("--config=tests/experiments/small_finetune.py",)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
  whole, part = tmp_path / "whole", tmp_path / "part"
  code, out, err = finish(*RUN, f"--workdir={whole}")
  assert code == 0, err
  assert "is finished: perplexity" in out
  command = [*RUN, f"--workdir={part}"]
  rng = random.Random()
  process = launch(*command)
  wait_for(part, rng.randrange(4, 40), process)
  time.sleep(rng.uniform(0, 0.2))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  process = launch(*command)
  wait_for(part, 60, process)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM, err
  assert "stopped by SIGTERM after step" in err
  code, _, err = finish(*command)
  assert code == 0, err
  for name in ("metrics.jsonl", "model/model.safetensors"):
    assert (part / name).read_bytes() == (whole / name).read_bytes()
  assert not (part / "checkpoints").exists()
