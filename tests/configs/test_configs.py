"""Every config that is shipped, with every argument it documents."""

import ast
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorflow_datasets as tfds

import sparsejax
from experiments import data, models
from experiments.config import branches, calling, check, comparison, parts
from experiments.data.sets import DEBIAN_FASHION_MNIST
from experiments.drivers import lottery
from experiments.errors import UserError
from experiments.recipes import vision
from experiments.runs import train
from sparsejax import distributions, instruments
from sparsejax.masks import path_name
from tests.configs.shipped import CONFIGS, load, photo


def moves_of(config):
  """The steps at which masks move."""
  moves = parts.transformation(config, jax.random.key(0)).moves
  return [step for step in range(config.steps) if moves(step)]


def test_all_configs_are_in_the_docs():
  pages = (CONFIGS.parent / "docs" / "howto").glob("*.md")
  text = "".join(page.read_text() for page in pages)
  for file in CONFIGS.glob("*.py"):
    assert f"`{file.name}`" in text
    assert f"--config=configs/{file.name}" in file.read_text()


def constants(text):
  """Values of all expressions in a program that are made of numbers alone."""
  values = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Constant | ast.BinOp):
      names = {n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Call)}
      if not names:
        values.add(eval(ast.unparse(node)))
  return values


@pytest.mark.parametrize(
  "file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem
)
def test_config_files_show_their_papers_values(file):
  """They stand on the file's own page, not in recipes that it calls."""
  if file.stem in ("prune_llm", "quantize_llm", "shrink_function"):
    pytest.skip("trains nothing")
  config = load(file.stem)
  config = calling.plain(config.get("base", config))
  shown = {
    "batch_size": config["batch_size"],
    "label_smoothing": config.get("label_smoothing") or None,
    "learning_rate": config["schedule"]["learning_rate"],
    "weight_decay": config["optimizer"].get("weight_decay"),
    "momentum": config["optimizer"].get("momentum"),
    "fraction": config.get("algorithm", {}).get("fraction"),
  }
  if file.stem in ("seft_llm", "squarehead_llm", "reasoning_llm"):
    del shown["learning_rate"], shown["weight_decay"]  # one for each method
  found = constants(file.read_text())
  for key, value in shown.items():
    assert value is None or value in found, (key, value)


@pytest.mark.parametrize("smoke", ["", ",smoke"])
@pytest.mark.parametrize("algorithm", vision.COMMON)
@pytest.mark.parametrize(
  "name", ["rigl_mnist1d", "rigl_fashion_mnist", "rigl_cifar10"]
)
def test_every_common_algorithm_is_a_valid_config(name, algorithm, smoke):
  config = load(name, algorithm + smoke)
  check.training_run(config)
  assert config.algorithm.name == algorithm
  assert (config.steps < 100) == bool(smoke)


def test_cifar_is_the_papers_recipe():
  config = load("rigl_cifar10")
  assert config.steps == 97_656 == 250 * 50_000 // 128
  rate = parts.SCHEDULES["piecewise"](
    steps=config.steps,
    **{k: v for k, v in config.schedule.items() if k != "name"},
  )
  assert [round(float(rate(t)), 6) for t in (0, 30_001, 60_001, 90_001)] == [
    0.1, 0.02, 0.004, 0.0008,
  ]  # fmt: skip
  steps = moves_of(config)
  assert (steps[0], steps[1], steps[-1]) == (100, 200, 74_900)


def test_an_unknown_argument_names_the_near_ones():
  with pytest.raises(UserError, match="rigl"):
    load("rigl_mnist1d", "rigll")


def test_quickstart_compares_six_methods_with_three_seeds():
  config = load("quickstart")
  runs = {e.method: list(group) for e, group in comparison.runs(config)}
  assert list(runs) == ["dense", "static", "set", "rigl", "seft", "gmp"]
  assert {len(group) for group in runs.values()} == {3}
  sparse = [c.algorithm for n, g in runs.items() if n != "dense" for c in g]
  assert {c.sparsity for c in sparse} == {0.9}


# The published recipes: their variants; the algorithm; which layers stay dense.
RECIPES = {
  "ste_imagenet": (("",), "ste", {"conv1"}),
  "sr_ste_imagenet": (
    ("", "2of4", "4of8", "1of4", "2of8"),
    "sr_ste",
    {"logits"},
  ),
  "top_kast_imagenet": (("",), "top_kast", {"conv1"}),
  "str_imagenet": (("",), "str", set()),
  "ac_dc_imagenet": (("",), "ac_dc", set()),
  "rigl_imagenet": (("", "rigl", "5x"), "rigl", {"conv1"}),
  "rigl_mobilenet": (("", "rigl", "1x"), "rigl", {"conv1", "depthwise"}),
  "dst_ee_cifar10": (("", "resnet50", "vgg19"), "dst_ee", set()),
  "granet_cifar10": (("", "resnet50", "vgg19"), "granet", set()),
  "itop_cifar10": (("", "rigl", "set"), "rigl", set()),
  "mest_cifar10": (("", "em", "ems"), "mest", {"conv1", "shortcut", "logits"}),
  "srigl_cifar10": (("",), "srigl", set()),
  "movement_fashion_mnist": (("", "hard", "soft"), "movement", set()),
  "rigl_mnist": (("",), "rigl", {"logits"}),
  "rigl_wikitext103": (("",), "rigl", {"embedding"}),
  "jaxpruner_imagenet": (("",), "gmp", {"conv1"}),
}
SHAPES = {
  "imagenet2012": (1000, (32, 32, 3)),
  "cifar10": (10, (32, 32, 3)),
  "fashion_mnist": (10, (28, 28, 1)),
  "mnist": (10, (28, 28, 1)),
  "wikitext103": (256, (16,)),
}


@functools.cache
def params_of(text):
  data_name, model = json.loads(text)
  num_classes, shape = SHAPES[data_name]
  net = models.create(num_classes=num_classes, **model)
  shapes = jax.eval_shape(
    lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape)), False)
  )
  return shapes["params"]


def abstract(config):
  """The shapes of a run's parameters, without its data."""
  plain = calling.plain(config)
  return params_of(json.dumps([plain["data"]["name"], plain["model"]]))


@pytest.mark.parametrize(
  ("name", "arg"), [(n, a) for n, r in RECIPES.items() for a in r[0]]
)
def test_every_recipe_is_a_valid_config(name, arg):
  _, _, dense = RECIPES[name]
  for words in (arg, ",".join(filter(None, (arg, "smoke")))):
    config = load(name, words)
    check.training_run(config)
    assert (config.steps <= 100) == ("smoke" in words)
    params = abstract(config)
    given = parts.algorithm_functions(config)
    sparse = distributions.budgets(
      params,
      0.5,
      distributions.uniform,
      given.get("prunable", distributions.matrices),
    )
    kernels = {
      path_name(path)
      for path, p in jax.tree_util.tree_leaves_with_path(params)
      if p.ndim > 1
    }
    assert sparse.keys() <= kernels
    left = {path.removesuffix("/kernel") for path in kernels - sparse.keys()}
    assert {path.split("/")[-1] for path in left} == dense
    if "conv1" in dense:  # The first one; blocks have others.
      assert [path for path in left if path.endswith("conv1")] == ["conv1"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_of_a_recipe_is_another(name):
  variants, algorithm, _ = RECIPES[name]
  assert load(name).algorithm.name == algorithm
  made = [calling.plain(load(name, variant)) for variant in variants]
  texts = [json.dumps({**plain, "name": ""}) for plain in made]
  assert len(set(texts)) == max(1, len(texts) - 1)
  assert texts[0] == texts[min(1, len(texts) - 1)]  # the default
  with pytest.raises(UserError, match="argument of the config"):
    load(name, "smokee")


def rates_of(config, *steps):
  return [parts.learning_rate(config, int(step)) for step in steps]


def near(*rates):
  return pytest.approx(rates, rel=1e-4, abs=1e-12)


def test_ste_is_jaxpruners_row():
  config = load("ste_imagenet")
  epoch = 1_281_167 // 4096
  assert config.steps == 100 * epoch == 31_200
  rates = rates_of(config, 0, 2.5 * epoch, 5 * epoch, 52.5 * epoch, 31_200)
  assert rates == near(0, 0.8, 1.6, 0.8, 0)
  assert config.algorithm.sparsity == 0.8
  assert (config.algorithm.begin, config.algorithm.end) == (10_000, 25_000)
  assert config.label_smoothing == 0
  assert len(moves_of(config)) == config.steps


@pytest.mark.parametrize(
  ("arg", "n", "m"),
  [("2of4", 2, 4), ("4of8", 4, 8), ("1of4", 1, 4), ("2of8", 2, 8)],
)
def test_sr_ste_is_the_papers_recipe(arg, n, m):
  config = load("sr_ste_imagenet", arg)
  epoch = -(-1_281_167 // 256)
  assert config.steps == 120 * epoch
  rates = rates_of(config, 0, 5 * epoch, 62.5 * epoch, 120 * epoch)
  assert rates == near(0, 0.1, 0.05, 0)
  assert (config.optimizer.weight_decay, config.algorithm.decay) == (5e-5, 2e-4)
  assert calling.plain(config)["algorithm"]["pattern"] == {
    "name": "n_of_m", "n": n, "m": m,
  }  # fmt: skip
  assert config.algorithm.sparsity == 1 - n / m
  assert len(moves_of(config)) == config.steps


@pytest.mark.slow
def test_mnist_begins_as_sparse_as_in_the_paper():
  config = load("rigl_mnist")
  tx = parts.transformation(config, jax.random.key(0))
  net = models.create(num_classes=10, **config.model.to_dict())
  params = net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), False)
  masks = sparsejax.get_masks(sparsejax.init(tx, params["params"])[1])
  assert masks["dense1"]["kernel"].sum() == 784 * 300 // 100
  assert masks["dense2"]["kernel"].sum() == 30_000 * 109 // 1000
  assert jnp.ndim(masks["logits"]["kernel"]) == 0
  steps = moves_of(config)
  assert (steps[0], steps[-1], config.steps) == (100, 49_900, 120_000)


@pytest.mark.slow
def test_mnist_smoke_on_idx_files(tmp_path):
  config = load("rigl_mnist", "smoke")
  if not Path(DEBIAN_FASHION_MNIST).exists():
    pytest.skip("no IDX files of 28 x 28 images")
  config.data.data_dir = DEBIAN_FASHION_MNIST
  result = train.train(config, tmp_path)
  layers = [result.masks[name]["kernel"] for name in ("dense1", "dense2")]
  pixels, first, second = instruments.units_left(layers)
  assert 100 < pixels < 784
  assert 100 < first <= 300
  assert second <= 100


@pytest.mark.parametrize("times", [1, 5])
def test_rigl_on_imagenet_is_the_papers_recipe(times):
  config = load("rigl_imagenet", "5x" if times == 5 else "")
  assert (config.steps, config.batch_size) == (32_000 * times, 4096)
  epoch = 1_281_167 / 4096
  at = [t * epoch * times for t in (29.9, 30.1, 70.1, 90.1)]
  rates = rates_of(config, 0, 2.5 * epoch, 5.01 * epoch, *at)
  assert rates == pytest.approx((0, 0.8, 1.6, 1.6, 0.16, 0.016, 0.0016), 1e-3)
  steps = moves_of(config)
  assert (steps[0], steps[1]) == (100, 200)
  assert steps[-1] == 25_000 * times - 100
  assert config.label_smoothing == 0.1
  assert config.algorithm.distribution == "uniform"


def test_mobilenet_keeps_depthwise_convolutions_dense():
  for words in ("1x", "erk,smoke"):
    config = load("rigl_mobilenet", words)
    check.training_run(config)
    given = parts.algorithm_functions(config)
    sparse = distributions.budgets(
      abstract(config), 0.5, distributions.uniform, given["prunable"]
    )
    assert {path.split("/")[-2] for path in sparse} == {"pointwise", "logits"}
  config = load("rigl_mobilenet", "set")
  assert config.algorithm.name == "set"
  epoch = 1_281_167 / 4096
  steps = (8.01 * epoch, 200.1 * epoch, 375.1 * epoch, 475.1 * epoch)
  assert rates_of(config, *steps) == pytest.approx(
    (1.6, 0.16, 0.016, 0.0016), 1e-3
  )


def test_erk_on_imagenet_leaves_no_layer_out():
  given = parts.algorithm_functions(load("rigl_imagenet", "erk"))
  assert "prunable" not in given


def test_top_kast_has_rigls_recipe_but_no_momentum():
  config = load("top_kast_imagenet")
  assert (config.steps, config.batch_size) == (32_000, 4096)
  epoch = 1_281_167 / 4096
  steps = (5 * epoch, 29.9 * epoch, 30.1 * epoch, 70.1 * epoch, 90.1 * epoch)
  assert rates_of(config, *steps) == near(1.6, 1.6, 0.16, 0.016, 0.0016)
  assert config.optimizer.momentum == 0
  assert (config.algorithm.sparsity, config.algorithm.backward_sparsity) == (
    0.9, 0.8,
  )  # fmt: skip


def test_str_moves_its_thresholds_by_the_weights_own_decay():
  config = load("str_imagenet")
  epoch = 5005
  assert config.steps == 100 * epoch
  rates = rates_of(config, 0, 1.5 * epoch, 4 * epoch, 52.9 * epoch)
  half = 0.128 * (1 + math.cos(math.pi * 47 / 95))
  assert rates == near(0.256 / 5, 0.256 * 2 / 5, 0.256, half)
  own = calling.plain(config)["algorithm"]["optimizer"]
  assert own == calling.plain(config)["optimizer"]
  config.optimizer.weight_decay = 1e-5
  assert config.algorithm.optimizer.weight_decay == 1e-5
  assert config.algorithm.initial == -3200
  assert float(jax.nn.sigmoid(jnp.float32(config.algorithm.initial))) == 0


def test_ac_dc_alternates_by_epochs():
  config = load("ac_dc_imagenet")
  epoch = 5005
  assert config.steps == 100 * epoch
  starts = [step // epoch for step in moves_of(config)]
  assert starts == [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
  assert all(step % epoch == 0 for step in moves_of(config))
  assert config.optimizer.weight_decay == 2**-15
  # Sparse at last, for 15 epochs; the smoke test has the same phases.
  assert len(moves_of(load("ac_dc_imagenet", "smoke"))) == len(starts)


def test_granet_prunes_until_half_of_training_and_regrows_to_its_end():
  config = load("granet_cifar10")
  epoch = -(-50_000 // 128)
  assert config.steps == 160 * epoch
  rates = rates_of(config, 80 * epoch - 1, 80 * epoch, 120 * epoch)
  assert rates == near(0.1, 0.01, 0.001)
  assert moves_of(config) == list(range(1000, 62_001, 1000))
  end = config.algorithm.end
  assert end <= 80 * epoch < end + 1000
  assert config.algorithm.initial_sparsity == 0.5


@pytest.mark.parametrize(("arg", "every"), [("rigl", 4000), ("set", 1500)])
def test_itop_updates_seldom_and_to_the_end(arg, every):
  config = load("itop_cifar10", arg)
  assert config.algorithm.name == arg
  assert config.steps == 250 * 391
  steps = moves_of(config)
  assert steps == list(range(every, config.steps, every))
  assert config.algorithm.step_on_update
  rates = rates_of(config, 0, 125 * 391, 187 * 391)
  assert rates == near(0.1, 0.01, 0.001)
  assert config.algorithm.sparsity == 0.95


@pytest.mark.parametrize("arg", ["em", "ems"])
def test_mest_moves_every_five_epochs_in_stages(arg):
  config = load("mest_cifar10", arg)
  epoch = -(-50_000 // 64)
  assert config.steps == 160 * epoch
  assert [t / epoch for t in moves_of(config)] == list(range(5, 121, 5))
  rates = rates_of(config, 0.9 * epoch, 80 * epoch, 159.9 * epoch)
  last = 4e-8 + (0.1 - 4e-8) / 2 * (1 + math.cos(math.pi * 159 / 160))
  assert rates == near(0.1, 0.05, last)
  share = config.algorithm.fraction if arg == "em" else config.algorithm.surplus
  assert share == {"em": 0.2, "ems": 0.5}[arg]
  assert config.initial.name == "magnitude"


def test_srigl_is_the_papers_recipe():
  config = load("srigl_cifar10")
  epoch = 391
  assert config.steps == 250 * epoch
  steps = moves_of(config)
  assert (steps[0], steps[1]) == (100, 200)
  assert steps[-1] == config.steps * 3 // 4 // 100 * 100 == 73_300
  rates = rates_of(config, 0, 77 * epoch, 154 * epoch, 231 * epoch)
  assert rates == near(0.1, 0.02, 0.004, 0.0008)
  ablated = parts.algorithm_functions(config)["never_ablate"]
  assert ablated("logits/kernel", None)


@pytest.mark.parametrize("arg", ["hard", "soft"])
def test_movement_prunes_between_the_tenths_of_its_paper(arg):
  config = load("movement_fashion_mnist", arg)
  steps = config.steps
  assert (config.algorithm.begin, config.algorithm.end) == (
    steps // 10, steps * 4 // 5,
  )  # fmt: skip
  rates = rates_of(config, 0, 0.1 * steps, 0.55 * steps, steps)
  assert rates == near(0, 1e-3, 0.5e-3, 0)
  assert config.algorithm.optimizer.rate_factor * 1e-3 == 1e-2


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
  branches.check_config(config)
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
  rates = [parts.learning_rate(base, t * 391 + 1) for t in (0, 79, 80, 120)]
  assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
  assert config.branches.rewound.step == step
  assert base.model.norm_scale == "uniform"
  assert branches.dense_run(config, 0).keep_steps == (0, step)
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
    entry: list(group) for entry, group in comparison.runs(load("init_pruning"))
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
def test_tickets_on_cifar_smoke_on_mock_data(tmp_path):
  with tfds.testing.mock_data(num_examples=24):
    lottery.run(load("imp_resnet20_cifar10", "smoke"), str(tmp_path))
  done = {p.parent.name for p in (tmp_path / "seed-0").rglob("finished.json")}
  assert {"dense", "level-01", "level-02", "level-02-child"} <= done
  assert "| rewound ticket | 2 |" in (tmp_path / "report.md").read_text()


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


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["smoke", "soft,smoke"])
def test_movement_smoke(arg, tmp_path):
  try:
    result = train.train(load("movement_fashion_mnist", arg), tmp_path / "run")
  except data.MissingDataError as error:
    pytest.skip(str(error))
  if arg == "smoke":
    assert result.metrics["density"] == pytest.approx(0.15, abs=1e-3)


@pytest.mark.slow
def test_granet_smoke_on_mock_data(tmp_path):
  with tfds.testing.mock_data(num_examples=24):
    config = load("granet_cifar10", "vgg19,smoke")
    result = train.train(config, tmp_path / "run")
  tests = [r for r in result.history if "density" in r]
  assert tests[0]["density"] == pytest.approx(0.5, abs=0.01)
  assert tests[-1]["density"] == pytest.approx(0.05, abs=0.01)
  assert tests[-1]["explored"] > 0.5


@pytest.mark.slow
def test_dst_ee_smoke_on_mock_data(tmp_path):
  with tfds.testing.mock_data(num_examples=24):
    config = load("dst_ee_cifar10", "vgg19,smoke")
    result = train.train(config, tmp_path / "run")
  density = [r["density"] for r in result.history if "density" in r]
  assert density == pytest.approx([0.05] * len(density), abs=0.01)
  assert result.history[-1]["explored"] > 0.07


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "arg"),
  [
    ("ac_dc_imagenet", "smoke"),
    ("sr_ste_imagenet", "1of4,smoke"),
    ("rigl_mobilenet", "erk,smoke"),
  ],
)
def test_recipes_for_imagenet_smoke_on_mock_data(name, arg, tmp_path):
  """A net of two blocks: no ResNet-50 is compiled in tests."""
  config = load(name, arg)
  assert len(config.model.blocks) == 2
  photos = [photo(i) for i in range(10)]
  with tfds.testing.mock_data(as_data_source_fn=lambda *_, **__: photos):
    result = train.train(config, tmp_path / "run")
  densities = [r["density"] for r in result.history if "density" in r]
  if name == "ac_dc_imagenet":
    assert densities == pytest.approx([1, 1, 0.1], abs=1e-3)
  elif name == "rigl_mobilenet":
    assert densities == pytest.approx([0.25] * 3, abs=1e-3)
    assert jnp.ndim(result.masks["block1"]["depthwise"]["kernel"]) == 0
    assert result.history[-1]["explored"] > 0.25
  else:
    masks = result.masks["stage1_block1"]["conv2"]["kernel"]
    assert masks.shape[2] % 4 == 0
    assert (masks.sum(2) == masks.shape[2] // 4).all()


@pytest.mark.parametrize("name", ["rigl_fashion_mnist", "rigl_cifar10"])
def test_the_folder_that_an_error_asks_for_is_a_flag(name, tmp_path):
  config = load(name, "smoke")
  config.data.data_dir = str(tmp_path / "nowhere")
  with pytest.raises(data.MissingDataError, match=r"--config\.data\.data_dir"):
    train.train(config, tmp_path / "run")
