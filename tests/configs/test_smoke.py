"""`:smoke` runs every config, on a machine without any data set."""

import importlib
import json
import re

import pytest

from experiments.config import grid, smoke
from experiments.main import DRIVERS
from tests.configs.shipped import CONFIGS, load
from tests.marks import few

QUICK = ("rigl_mnist1d",)
NAMES = sorted(file.stem for file in CONFIGS.glob("*.py"))


@pytest.fixture(autouse=True)
def nowhere(no_data_sets, monkeypatch, tmp_path):
  """No data set is there, nor what earlier runs have made."""
  monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
  "name",
  few(NAMES, QUICK),
)
def test_every_config_has_a_smoke_test_that_needs_no_data(name, tmp_path):
  if name == "shrink_function":
    pytest.importorskip("flatbuffers")
  config = smoke.with_data(load(name, "smoke"), "smoke")
  driver = importlib.import_module(DRIVERS[config.driver])
  driver.run(config, str(tmp_path / "run"))
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["config"]["name"] == config.name
  report = (tmp_path / "run" / "report.md").read_text()
  for picture in re.findall(r"\((\S+\.png)\)", report):
    assert (tmp_path / "run" / picture).is_file()


@pytest.mark.slow
def test_every_grid_has_a_smoke_test_of_a_few_runs():
  for name in NAMES:
    file = CONFIGS / f"{name}.py"
    if "def sweep" in file.read_text():
      runs = grid.plan(f"{file}:smoke")
      assert 1 <= len(runs) <= 42, name
      assert max(one.steps for one in runs.values()) <= 200, name
