"""Runs that crash in this process or are killed in another, and resume."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from experiments.runs import checkpoints, metrics


class Crash(Exception):
  """What ends a run in this process as a fault would."""


def crash_at(steps):
  """A progress that ends the run at the first such step."""

  def crash():
    raise Crash

  return _progress(steps, crash)


def stop_at(steps):
  """A progress that sends the run a signal to stop at the first such step."""
  return _progress(steps, lambda: signal.raise_signal(signal.SIGTERM))


def _progress(steps, do):
  steps = set(steps)

  def track(name, total, start=0, unit="step"):
    def advance(step, note=""):
      if step in steps:
        do()

    return advance

  return track


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
  """Runs the command to its end: its exit status, stdout and stderr."""
  process = launch(*arguments, **environment)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def stop(number, path, step, *arguments, **environment):
  """Launches the command, and sends a signal at a step of the run in a path.

  Returns:
    What the process wrote to stderr. Its exit status was that of the signal.
  """
  process = launch(*arguments, **environment)
  while process.poll() is None:
    if _recorded_step(path) >= step:
      process.send_signal(number)
      break
    time.sleep(0.01)
  _, err = process.communicate(timeout=300)
  assert process.returncode in (-number, 128 + number), err
  return err


def _recorded_step(path):
  try:
    return metrics.read(path)[-1]["step"]
  except (OSError, ValueError, IndexError):  # a line is being written
    return -1


def last_state(path: pathlib.Path) -> list:
  """The leaves of a finished run's last checkpoint."""
  config = json.loads((path / "config.json").read_text())["config"]
  manager = checkpoints.open_manager(path / "checkpoints")
  step = manager.latest_step()
  assert step == config["steps"]
  state = manager.restore(step)["state"]
  manager.close()
  return jax.tree.leaves(state)


def assert_same_run(a, b):
  """Two workdirs hold the same record and the same last state, bit for bit."""
  name = "metrics.jsonl"
  assert (a / name).read_bytes() == (b / name).read_bytes()
  for x, y in zip(last_state(a), last_state(b), strict=True):
    np.testing.assert_array_equal(x, y)
