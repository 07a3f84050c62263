"""Every config that is shipped, with every argument it documents."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorflow_datasets as tfds

from experiments import build, compare, data, lottery, models, train
from experiments.errors import UserError
from sparsejax import distributions

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


TICKETS = (
  "imp_fashion_mnist",
  "imp_rewinding",
  "imp_resnet20_cifar10",
  "imp_vgg16_cifar10",
)


@pytest.mark.parametrize("arg", ["", "smoke"])
@pytest.mark.parametrize("name", TICKETS)
def test_lottery_tickets_are_a_valid_config(name, arg):
  config = load(name, arg)
  lottery._check(config)
  assert config.name == name
  assert (config.base.steps < 100) == (arg == "smoke")


@pytest.mark.parametrize(
  ("name", "step", "pruned"),
  [
    ("imp_resnet20_cifar10", 500, {"conv1", "logits", "shortcut"}),
    ("imp_vgg16_cifar10", 1000, {"conv1"}),
  ],
)
def test_tickets_on_cifar_are_the_papers_recipe(name, step, pruned):
  config = load(name)
  base = config.base
  assert (base.steps, base.batch_size) == (160 * 391, 128)
  rates = [build.learning_rate(base, t * 391 + 1) for t in (0, 79, 80, 120)]
  assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
  assert config.branches.rewound.step == step
  assert base.model.norm_scale == "uniform"
  assert lottery._dense_config(config, 0).keep_steps == (0, step)
  model = models.create(num_classes=10, **base.model)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)
  )["params"]
  budgets = distributions.budgets(
    params,
    0.5,
    distributions.uniform,
    distributions.matching(base.algorithm.get("prunable", "kernel")),
  )
  layers = {path.split("/")[-2] for path in budgets}
  assert pruned <= layers
  assert ("logits" in layers) == ("logits" in pruned)


def test_init_pruning_compares_every_start_at_four_sparsities():
  runs = {
    entry: list(group) for entry, group in compare._plan(load("init_pruning"))
  }
  methods = dict.fromkeys(e.method for e in runs)
  assert {e.sparsity for e in runs} == {None, 0.8, 0.9, 0.95, 0.98}
  assert len(runs) == 1 + 4 * (len(methods) - 1)
  for entry, group in runs.items():
    names = {c.initial.name for c in group}
    start = entry.method.removeprefix("rigl from ")
    wanted = {"dense": "drawn", "random": "drawn", "gradient": "snip"}
    assert names == {wanted.get(start, start)}
    if entry.sparsity:
      assert {c.algorithm.sparsity for c in group} == {entry.sparsity}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imp_resnet20_cifar10", "imp_vgg16_cifar10"])
def test_tickets_on_cifar_smoke_on_mock_data(name, tmp_path):
  with tfds.testing.mock_data(num_examples=24):
    lottery.run(load(name, "smoke"), str(tmp_path))
  done = {p.parent.name for p in (tmp_path / "seed-0").rglob("finished.json")}
  assert {"dense", "level-01", "level-02", "level-02-child"} <= done
  assert "| rewound | 2 |" in (tmp_path / "report.md").read_text()


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
