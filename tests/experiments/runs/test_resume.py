"""Real processes, really killed: they resume to the same bits."""

import random
import re
import signal
import time

import jax
import pytest

from experiments.runs import checkpoints, metrics
from tests.experiments.interrupted import assert_same_run, finish, launch, stop

SMALL = (
  "--config=tests/experiments/small.py:set",
  "--config.steps=400",
  "--config.algorithm.t_end=300",
  "--config.checkpoint_every=20",
  "--config.eval_every=40",
)
TICKETS = ("--config=tests/experiments/small_lottery.py",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nobody stopped."""
  path = tmp_path_factory.mktemp("whole")
  code, _, err = finish(*SMALL, f"--workdir={path}")
  assert code == 0, err
  return path


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, whole):
  command = [*SMALL, f"--workdir={tmp_path}"]
  stop(signal.SIGKILL, tmp_path, random.Random().randrange(10, 330), *command)
  code, _, err = finish(*command)
  assert code == 0, err
  assert_same_run(whole, tmp_path)


@pytest.mark.gpu
@pytest.mark.slow
def test_killed_on_the_device_at_hand(tmp_path):
  """A net with convolutions, of which a GPU's compiler times algorithms."""
  on_gpu = jax.default_backend() == "gpu"
  environment = {
    "JAX_PLATFORMS": "cuda" if on_gpu else "cpu",
    "JAX_COMPILATION_CACHE_DIR": "",
    "XDG_CACHE_HOME": str(tmp_path / "cache"),
  }
  command = [
    "--config=configs/rigl_mnist1d.py",
    *("--config.steps=600", "--config.algorithm.t_end=450"),
    *("--config.eval_every=200", "--config.checkpoint_every=100"),
  ]
  whole, part = tmp_path / "whole", tmp_path / "part"
  code, _, err = finish(*command, f"--workdir={whole}", **environment)
  assert code == 0, err
  command.append(f"--workdir={part}")
  step = random.Random().randrange(150, 500)
  stop(signal.SIGKILL, part, step, *command, **environment)
  code, _, err = finish(*command, **environment)
  assert code == 0, err
  assert_same_run(whole, part)
  assert (tmp_path / "cache" / "sparsejax").exists() == on_gpu


@pytest.mark.slow
def test_a_request_to_stop_saves_first(tmp_path, whole):
  command = [*SMALL, f"--workdir={tmp_path}", "--config.checkpoint_every=0"]
  for number, step in ((signal.SIGTERM, 90), (signal.SIGINT, 230)):
    err = stop(number, tmp_path, step, *command)
    assert f"stopped by {number.name} after step" in err
    assert "Traceback" not in err
    manager = checkpoints.open_manager(tmp_path / "checkpoints")
    saved = manager.latest_step()
    manager.close()
    assert saved >= step
    assert f"after step {saved} of" in err
    assert metrics.read(tmp_path)[-1]["step"] <= saved
  code, _, err = finish(*command)
  assert code == 0, err
  assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_does_not_wait_for_a_log_point(tmp_path, number):
  """Long before the first: the run would go on for half a minute."""
  steps = 300_000
  never = [f"--config.{key}={steps}" for key in ("log_every", "eval_every")]
  command = [*SMALL, *never, f"--config.steps={steps}"]
  command += ["--config.checkpoint_every=0", "--config.keep_steps=(5,)"]
  process = launch(*command, f"--workdir={tmp_path}")
  while not (tmp_path / "checkpoints" / "5").exists():  # it trains
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.1)
  time.sleep(2)
  begin = time.monotonic()
  process.send_signal(number)
  _, err = process.communicate(timeout=120)
  seconds = time.monotonic() - begin
  assert process.returncode == 128 + number, err
  saved = int(re.search(r"after step (\d+) of", err)[1])
  assert 5 < saved < steps
  assert (tmp_path / "checkpoints" / str(saved)).exists()
  # A second for steps; the rest is to write and to end, on a machine that may
  # be twenty times slower for other work.
  assert seconds < 40


@pytest.mark.slow
def test_lottery_tickets_killed_at_any_moment(tmp_path):
  """Within a level; every run ends in the same bits."""
  whole, part = tmp_path / "whole", tmp_path / "part"
  code, _, err = finish(*TICKETS, f"--workdir={whole}")
  assert code == 0, err
  command = [*TICKETS, f"--workdir={part}"]
  run = part / "seed-0/learning_rate/level-02"
  stop(signal.SIGKILL, run, random.Random().randrange(10, 190), *command)
  code, _, err = finish(*command)
  assert code == 0, err
  names = {
    path: {f.parent.relative_to(path) for f in path.rglob("metrics.jsonl")}
    for path in (whole, part)
  }
  assert len(names[whole]) == 1 + 3 * 2 + 2
  assert names[part] == names[whole]
  for run in names[whole]:
    assert_same_run(whole / run, part / run)
  tables = [(p / "table.csv").read_text().split("\n", 1) for p in (whole, part)]
  assert tables[0][1] == tables[1][1]
