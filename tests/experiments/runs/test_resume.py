"""Real processes, really killed: they resume to the same bits."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from experiments.runs import checkpoints, metrics
from tests.experiments.test_main import SMALL, finish, launch

STEPS = 400
RUN = (
  *SMALL,
  f"--config.steps={STEPS}",
  "--config.algorithm.t_end=300",
  "--config.checkpoint_every=20",
  "--config.eval_every=40",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nobody stopped."""
  path = tmp_path_factory.mktemp("whole")
  code, _, err = finish(*RUN, f"--workdir={path}")
  assert code == 0, err
  return path


def last_state(path):
  manager = checkpoints.open_manager(path / "checkpoints")
  state = manager.restore(manager.latest_step())["state"]
  manager.close()
  return jax.tree.leaves(state)


def assert_same_run(a, b):
  name = "metrics.jsonl"
  assert (a / name).read_bytes() == (b / name).read_bytes()
  for x, y in zip(last_state(a), last_state(b), strict=True):
    np.testing.assert_array_equal(x, y)


def wait_for(path, step, process):
  """Waits until the record holds a step."""
  while process.poll() is None:
    lines = (path / "metrics.jsonl").exists() and metrics_so_far(path)
    if lines and lines[-1]["step"] >= step:
      return
    time.sleep(0.01)
  pytest.fail(process.communicate()[1])


def metrics_so_far(path):
  try:
    return metrics.read(path)
  except ValueError:  # a line that is being written
    return []


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, whole):
  command = [*RUN, f"--workdir={tmp_path}"]
  rng = random.Random()
  for step in (10, 110, 230, 320):
    process = launch(*command)
    wait_for(tmp_path, step, process)
    time.sleep(rng.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert process.returncode == -signal.SIGKILL
  code, _, err = finish(*command)
  assert code == 0, err
  assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_saves_first(tmp_path, whole, number):
  command = [*RUN, f"--workdir={tmp_path}", "--config.checkpoint_every=0"]
  process = launch(*command)
  wait_for(tmp_path, 90, process)
  process.send_signal(number)
  _, err = process.communicate()
  assert process.returncode == 128 + number
  assert f"stopped by {signal.Signals(number).name} after step" in err
  assert "Traceback" not in err
  manager = checkpoints.open_manager(tmp_path / "checkpoints")
  saved = manager.latest_step()
  manager.close()
  assert saved >= 90
  assert f"after step {saved} of" in err
  assert metrics.read(tmp_path)[-1]["step"] <= saved
  code, _, err = finish(*command)
  assert code == 0, err
  assert_same_run(whole, tmp_path)


TICKETS = ("--config=tests/experiments/small_lottery.py",)


def runs_of(path):
  files = path.rglob("metrics.jsonl")
  return {str(file.parent.relative_to(path)) for file in files}


@pytest.mark.slow
def test_lottery_tickets_killed_at_any_moment(tmp_path):
  """Within levels and between them; every run ends in the same bits."""
  whole, part = tmp_path / "whole", tmp_path / "part"
  code, _, err = finish(*TICKETS, f"--workdir={whole}")
  assert code == 0, err
  rng = random.Random()
  seed = part / "seed-0"
  for run, step in (
    (seed / "dense", 90),
    (seed / "rewound/level-02-child", rng.randrange(10, 190)),
    (seed / "learning_rate/level-02", rng.randrange(10, 190)),
    (seed / "random/level-01", 200),
  ):
    process = launch(*TICKETS, f"--workdir={part}")
    wait_for(run, step, process)
    time.sleep(rng.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  code, _, err = finish(*TICKETS, f"--workdir={part}")
  assert code == 0, err
  assert len(runs_of(whole)) == 1 + 3 * 2 + 2
  assert runs_of(part) == runs_of(whole)
  for run in runs_of(whole):
    assert_same_run(whole / run, part / run)
  tables = [(p / "table.csv").read_text().split("\n", 1) for p in (whole, part)]
  assert tables[0][1] == tables[1][1]
