"""What trains loads neither plots, statistics nor other people's frameworks."""

import subprocess
import sys

import pytest

# Each takes as long to load as all of sparsejax, or loads torch.
HEAVY = {
  *("grain", "matplotlib", "orbax", "scipy.stats", "sklearn"),
  *("tensorboardX", "tensorflow_datasets", "torch"),
}


@pytest.mark.parametrize(
  "module",
  [
    "experiments.runs.train",
    "experiments.drivers.compare",
    "experiments.drivers.lottery",
    "experiments.drivers.single",
    "experiments.sweep.launchers",
  ],
)
def test_what_trains_loads_nothing_heavy(module):
  code = f"import sys, {module}; print(*sys.modules)"
  loaded = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  ).stdout.split()
  assert module in loaded
  assert not HEAVY & set(loaded)
