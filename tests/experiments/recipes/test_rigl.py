"""The rows of RigL's tables, as grids."""

import math

import jax
import pytest

from experiments import data
from experiments.config import grid, parts
from experiments.config.entry import Entry
from experiments.errors import UserError
from experiments.recipes import rigl
from experiments.runs import programs, train
from tests.marks import slow

CONFIGS = ("dst_fashion_mnist", "dst_mnist1d")
LARGE = (
  "rigl_cifar10",
  "jaxpruner_imagenet",
  # Their small dense nets are sought for each row.
  slow("wrn_fashion_mnist"),
  slow("rigl_imagenet"),
  slow("rigl_mobilenet"),
)


def kernels(config):
  """How many weights the kernels of a config's net have."""
  keys = parts.streams(0)
  params = jax.eval_shape(programs.get(config).draw, keys)["params"]
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params) if x.ndim > 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_have_all_rows(name):
  rows = grid.rows(f"configs/{name}.py")
  assert {len(group) for group in rows.values()} == {5}
  sparsities = (0.8, 0.9, 0.95, 0.98)
  methods = ("static", "SET", "SNFS", "RigL", "RigL 5x", "pruning")
  first = name == "dst_mnist1d"
  titles = ("uniform", "ERK", "first dense")[: 3 if first else 2]
  all_of = [f"{m} ({d})" for m in methods for d in titles]
  wanted = {Entry("dense")} | {
    Entry(m, s) for m in ["small-dense", "SNIP", *all_of] for s in sparsities
  }
  if first:  # at 80 % it is the net of the other row
    wanted |= {Entry("small-dense (first dense)", s) for s in sparsities[1:]}
  assert rows.keys() == wanted
  for low, high in grid.module(f"configs/{name}.py").EXPECTED:
    assert {Entry(low, 0.9), Entry(high, 0.9)} <= rows.keys()


def test_the_first_layer_may_stay_dense():
  """250 and 2 % of 7,500, 7,500 and 2,500: 600 of 17,750 weights."""
  rows = grid.rows("configs/dst_mnist1d.py")
  one = rows[Entry("static (first dense)", 0.98)][0]
  state = train.first_state(one, programs.get(one))
  left = {k: int((v["kernel"] != 0).sum()) for k, v in state.params.items()}
  assert left == {"conv1": 250, "conv2": 150, "conv3": 150, "logits": 50}
  small = rows[Entry("small-dense (first dense)", 0.98)][0]
  assert 338 < kernels(small) <= 600


@pytest.mark.parametrize("name", CONFIGS)
def test_five_times_as_long_is_so_throughout(name):
  rows = grid.rows(f"configs/{name}.py")
  once = rows[Entry("RigL (ERK)", 0.9)][2]
  longer = rows[Entry("RigL 5x (ERK)", 0.9)][2]
  assert longer.steps == 5 * once.steps
  assert longer.algorithm.t_end == longer.steps * 3 // 4
  assert longer.algorithm.delta_t == once.algorithm.delta_t
  assert parts.learning_rate(longer, 5000) == pytest.approx(
    parts.learning_rate(once, 1000)
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_small_dense_is_the_widest_that_fits(name):
  rows = grid.rows(f"configs/{name}.py:smoke")
  dense = rows[Entry("dense")][0]
  for sparsity in (0.8, 0.98):
    one = rows[Entry("small-dense", sparsity)][0]
    left = kernels(one) / kernels(dense)
    assert 0.6 * (1 - sparsity) < left <= 1 - sparsity
    assert one.algorithm.name == "dense"


@pytest.mark.parametrize("name", [*CONFIGS, *LARGE])
def test_published_numbers_and_orders_are_of_rows(name):
  module = grid.module(f"configs/{name}.py")
  rows = grid.rows(f"configs/{name}.py")
  methods = {entry.method for entry in rows}
  if name == "wrn_fashion_mnist":
    tenth = grid.rows(f"configs/{name}.py:tenth")
    methods |= {entry.method for entry in tenth}
  assert module.PUBLISHED.keys() <= rows.keys()
  assert {method for pair in module.EXPECTED for method in pair} <= methods
  assert all(50 < value < 100 for value, _ in module.PUBLISHED.values())


def test_twice_the_steps_of_cifar_are_so_throughout():
  rows = grid.rows("configs/rigl_cifar10.py")
  once = rows[Entry("RigL (ERK)", 0.9)][0]
  twice = rows[Entry("RigL 2x (ERK)", 0.9)][0]
  assert twice.steps == 2 * once.steps == 195_312
  assert twice.algorithm.t_end == 150_000
  assert list(twice.schedule.boundaries) == [60_000, 120_000, 180_000]
  assert twice.algorithm.delta_t == 100
  assert once.algorithm.distribution == "erdos_renyi_kernel"


@pytest.mark.slow
def test_the_wide_resnet_has_the_recipe_of_cifar():
  rows = grid.rows("configs/wrn_fashion_mnist.py")
  assert {len(group) for group in rows.values()} == {3}
  one = rows[Entry("RigL 5x (ERK)", 0.98)][1]
  other = grid.rows("configs/rigl_cifar10.py")[Entry("RigL (ERK)", 0.9)][1]
  assert one.steps == 5 * other.steps
  assert (one.optimizer, one.model) == (other.optimizer, other.model)
  assert one.augment
  assert (one.data.name, one.data.normalize) == ("fashion_mnist", "image")
  assert one.algorithm.t_end == 375_000


def test_a_tenth_of_the_wide_resnet_is_so_throughout():
  rows = grid.rows("configs/wrn_fashion_mnist.py:tenth")
  assert len(rows) == 9
  assert {len(group) for group in rows.values()} == {3}
  for runs in rows.values():
    assert {one.steps for one in runs} == {9_766}
    assert {one.schedule.boundaries for one in runs} == {(3000, 6000, 9000)}
  grown = rows[Entry("RigL 0.1x (ERK)", 0.95)][0].algorithm
  pruned = rows[Entry("pruning 0.1x (ERK)", 0.95)][0].algorithm
  assert (grown.sparsity, grown.t_end, grown.delta_t) == (0.95, 7500, 100)
  assert grown.distribution == "erdos_renyi_kernel"
  assert (pruned.begin, pruned.end, pruned.delta_t) == (2000, 7500, 100)


@pytest.mark.slow
def test_the_wide_resnet_trains(tmp_path):
  rows = grid.rows("configs/wrn_fashion_mnist.py:smoke")
  one = rows[Entry("SET (uniform)", 0.8)][0]
  try:
    result = train.train(one, tmp_path)
  except data.MissingDataError as error:
    pytest.skip(str(error))
  for path, layer in result.history[-1]["layers"].items():
    wanted = 0.2 * layer["size"]
    assert layer["nnz"] == pytest.approx(wanted, abs=1), path
  assert result.history[-1]["churn_since_start"] > 0


@pytest.mark.slow
def test_rows_of_imagenet_are_what_their_words_are():
  rows = grid.rows("configs/rigl_imagenet.py")
  uniform = rows[Entry("RigL 5x (uniform)", 0.95)][0]
  assert uniform.steps == 160_000
  assert uniform.algorithm.prunable == "^(stage|logits).*kernel"
  assert uniform.algorithm.sparsity == 0.95
  erk = rows[Entry("pruning (ERK)", 0.8)][0]
  assert "prunable" not in erk.algorithm
  snip = rows[Entry("SNIP", 0.8)][0]
  assert (snip.algorithm.name, snip.initial.name) == ("static", "snip")
  assert "distribution" not in snip.algorithm
  with pytest.raises(UserError, match="resnet101"):
    grid.rows("configs/rigl_imagenet.py:resnet101")


@pytest.mark.slow
def test_rows_of_mobilenet_have_as_many_weights():
  """4,209,088 weights, of which conv1 and depthwise have 45,504."""
  rows = grid.rows("configs/rigl_mobilenet.py")
  assert {len(group) for group in rows.values()} == {3}
  assert {group[0].steps for group in rows.values()} == {160_000}
  for sparsity in (0.75, 0.9):
    sparse = rows[Entry("RigL (ERK)", sparsity)][0]
    assert sparse.algorithm.sparsity == sparsity
    small = kernels(rows[Entry("small-dense", sparsity)][0])
    limit = 45_504 + (1 - sparsity) * (4_209_088 - 45_504)
    assert 0.9 * limit < small <= limit
  wide = rows[Entry("wide RigL (uniform)", 0.75)][0]
  dense = kernels(rows[Entry("dense")][0])
  assert dense == 4_209_088
  assert kernels(wide) / 4 == pytest.approx(dense, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_grids_have_a_small_twin(name):
  """Runs that a sweep takes seconds for; all are checked as they are made."""
  large = grid.rows(f"configs/{name}.py")
  small = grid.rows(f"configs/{name}.py:smoke")
  assert {e.method for e in small} == {e.method for e in large}
  assert {len(group) for group in small.values()} == {1}
  assert all(group[0].steps <= 100 for group in small.values())


def test_rows_of_jaxpruner_are_its_own_methods():
  rows = {
    e.method: g for e, g in grid.rows("configs/jaxpruner_imagenet.py").items()
  }
  assert rows["saliency"][0].algorithm.score == "sensitivity"
  assert rows["random"][0].algorithm.score == "random"
  assert rows["global magnitude"][0].algorithm.scope == "global"
  assert rows["magnitude STE"][0].algorithm.name == "ste"
  assert rows["RigL"][0].algorithm.fraction == 0.1
  assert {len(group) for group in rows.values()} == {3}


def test_what_cannot_be_narrower_is_refused():
  options = {"name": "lenet_300_100", "hidden": (8,)}
  with pytest.raises(UserError, match="no narrower one"):
    rigl.narrow_model(options, 0.01, shape=(8, 8), num_classes=10)
