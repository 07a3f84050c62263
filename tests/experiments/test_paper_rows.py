"""The rows of RigL's tables, as grids."""

import math

import jax
import pytest

from experiments import build, grid, paper_rows, programs
from experiments.entry import Entry
from experiments.errors import UserError
from tests.experiments import small

CONFIGS = ("dst_fashion_mnist", "dst_mnist1d")


def kernels(config):
  """How many weights the kernels of a config's net have."""
  keys = build.streams(0)
  params = jax.eval_shape(programs.get(config).draw, keys)["params"]
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params) if x.ndim > 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_have_all_rows(name):
  rows = grid.rows(f"configs/{name}.py")
  assert {len(group) for group in rows.values()} == {5}
  sparsities = (0.8, 0.9, 0.95, 0.98)
  methods = ("static", "SET", "SNFS", "RigL", "RigL 5x", "pruning")
  both = [f"{m} ({d})" for m in methods for d in ("uniform", "ERK")]
  assert rows.keys() == {Entry("dense")} | {
    Entry(m, s) for m in ["small-dense", "SNIP", *both] for s in sparsities
  }
  for low, high in grid.module(f"configs/{name}.py").EXPECTED:
    assert {Entry(low, 0.8), Entry(high, 0.8)} <= rows.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_five_times_as_long_is_so_throughout(name):
  rows = grid.rows(f"configs/{name}.py")
  once = rows[Entry("RigL (ERK)", 0.9)][2]
  longer = rows[Entry("RigL 5x (ERK)", 0.9)][2]
  assert longer.steps == 5 * once.steps
  assert longer.algorithm.t_end == longer.steps * 3 // 4
  assert longer.algorithm.delta_t == once.algorithm.delta_t
  assert build.learning_rate(longer, 5000) == pytest.approx(
    build.learning_rate(once, 1000)
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


def test_what_cannot_be_narrower_is_refused():
  config = small.get_config()
  with pytest.raises(UserError, match="no narrower one"):
    paper_rows.narrowed(config, 0.01)
