"""`:smoke` runs every config, on a machine without any data set."""

import importlib
import json

import pytest

from experiments.config import grid, parts, smoke
from experiments.data import sets
from experiments.main import DRIVERS
from tests.configs.shipped import CONFIGS, load

QUICK = ("rigl_mnist1d", "rigl_mnist")
NAMES = sorted(file.stem for file in CONFIGS.glob("*.py"))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
  """No data set is there, nor what earlier runs have made."""
  monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", str(tmp_path / "none"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  monkeypatch.chdir(tmp_path)
  cached = (parts._load, smoke._missing, smoke._tell, grid.rows, grid.plan)
  for function in cached:
    function.cache_clear()
  yield
  for function in cached:
    function.cache_clear()


@pytest.mark.parametrize(
  "name",
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
  ],
)
def test_every_config_has_a_smoke_test_that_needs_no_data(name, tmp_path):
  config = smoke.with_data(load(name, "smoke"), "smoke")
  driver = importlib.import_module(DRIVERS[config.driver])
  driver.run(config, str(tmp_path / "run"))
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["config"]["name"] == config.name
  assert (tmp_path / "run" / "report.md").is_file()


def test_every_grid_has_a_smoke_test_of_a_few_runs():
  for name in NAMES:
    file = CONFIGS / f"{name}.py"
    if "def sweep" in file.read_text():
      runs = grid.plan(f"{file}:smoke")
      assert 1 <= len(runs) <= 42, name
      assert max(one.steps for one in runs.values()) <= 200, name
