"""Plans: groups, what is frozen, and the smaller model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import shrink


def mlp(params, x):
  x = jax.nn.relu(x @ params["a"] + params["b"])
  return x @ params["c"]


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  shapes = {"a": (3, 8), "b": (8,), "c": (8, 2)}
  return {k: np.float32(rng.normal(size=s)) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def x():
  return np.float32(np.random.default_rng(1).normal(size=(5, 3)))


@pytest.fixture(scope="module")
def plan(params, x):
  return shrink.trace(mlp, params, x)


def test_hidden_units_are_the_only_group(plan):
  (group,) = plan.groups.values()
  assert group.cuts == (("a", 1), ("b", 0), ("c", 0))
  assert len(group) == 8
  assert group.params == 3 + 1 + 2


def test_the_lowest_leave(plan, params, x):
  scores = {
    "a": np.zeros((3, 8)),
    "b": np.array([5, 1, 7, 2, 8, 3, 9, 4.0]),
    "c": np.zeros((8, 2)),
  }
  remove = plan.lowest(scores, 0.5)
  assert remove.keep["b", 0].tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
  assert shrink.verify(plan, params, remove, x, tolerance=1e-6) <= 1e-6
  small = plan.take(params, remove)
  np.testing.assert_array_equal(small["b"], params["b"][::2])


def test_other_batch_sizes_may_follow(plan, params):
  remove = plan.remove([0, 3])
  for batch in (1, 2, 9):
    x = jnp.ones((batch, 3))
    assert shrink.verify(plan, params, remove, x) <= 1e-6


def test_what_is_frozen_is_said(plan):
  frozen = {(f.path, f.axis): f.why for f in plan.frozen}
  assert frozen == {
    ("a", 0): "it meets an input",
    ("c", 1): "it is an output",
  }
