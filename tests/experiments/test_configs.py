"""Every config that is shipped, with every argument it documents."""

import runpy
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from experiments import build, compare, data, train
from experiments.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
ALGORITHMS = tuple(build.ALGORITHMS)


def load(name, arg=""):
  return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arg)


def test_all_configs_are_in_the_readme():
  readme = (CONFIGS.parent / "README.md").read_text()
  for file in CONFIGS.glob("*.py"):
    assert f"`{file.name}`" in readme
    assert f"--config=configs/{file.name}" in file.read_text()


@pytest.mark.parametrize("smoke", ["", ",smoke"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
  "name", ["rigl_mnist1d", "rigl_fashion_mnist", "rigl_cifar10"]
)
def test_every_algorithm_is_a_valid_config(name, algorithm, smoke):
  config = load(name, algorithm + smoke)
  build.check(config)
  assert config.algorithm.name == algorithm
  assert (config.steps < 100) == bool(smoke)


def test_cifar_is_the_papers_recipe():
  config = load("rigl_cifar10")
  assert config.steps == 97_656 == 250 * 50_000 // 128
  rate = build.SCHEDULES["piecewise"](
    steps=config.steps,
    **{k: v for k, v in config.schedule.items() if k != "name"},
  )
  assert [round(float(rate(t)), 6) for t in (0, 30_001, 60_001, 90_001)] == [
    0.1, 0.02, 0.004, 0.0008,
  ]  # fmt: skip
  moves = build.mask_steps(config)
  steps = [t for t in range(config.steps) if moves(t)]
  assert (steps[0], steps[1], steps[-1]) == (100, 200, 74_900)


def test_an_unknown_argument_names_the_near_ones():
  with pytest.raises(UserError, match="rigl"):
    load("rigl_mnist1d", "rigll")


def test_quickstart_compares_six_methods_with_three_seeds():
  config = load("quickstart")
  runs = {e.method: list(group) for e, group in compare._plan(config)}
  assert list(runs) == ["dense", "static", "set", "rigl", "seft", "gmp"]
  assert {len(group) for group in runs.values()} == {3}
  sparse = [c.algorithm for n, g in runs.items() if n != "dense" for c in g]
  assert {c.sparsity for c in sparse} == {0.9}


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["smoke", "conv,set,smoke"])
def test_fashion_mnist_smoke(arg, tmp_path):
  config = load("rigl_fashion_mnist", arg)
  try:
    result = train.train(config, tmp_path / "run")
  except data.MissingDataError as error:
    pytest.skip(str(error))
  assert result.metrics["accuracy"] > 0.2
  assert result.metrics["density"] == pytest.approx(0.05, abs=1e-3)


@pytest.mark.slow
def test_mnist1d_smoke(tmp_path):
  result = train.train(load("rigl_mnist1d", "smoke"), tmp_path / "run")
  assert result.metrics["density"] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.slow
def test_cifar_smoke_on_mock_data(tmp_path):
  with tfds.testing.mock_data(num_examples=24):
    result = train.train(load("rigl_cifar10", "smoke"), tmp_path / "run")
  assert result.batch_stats
  assert result.metrics["density"] == pytest.approx(0.1, abs=1e-3)
  churn = [r["churn_since_start"] for r in result.history if "density" in r]
  assert churn[-1] > 0


@pytest.mark.parametrize("name", ["rigl_fashion_mnist", "rigl_cifar10"])
def test_the_folder_that_an_error_asks_for_is_a_flag(name, tmp_path):
  config = load(name, "smoke")
  config.data.data_dir = str(tmp_path / "nowhere")
  with pytest.raises(data.MissingDataError, match=r"--config\.data\.data_dir"):
    train.train(config, tmp_path / "run")
