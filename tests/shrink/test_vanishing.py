"""Units that masks have turned off, and the constants they leave behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import sparsejax
from sparsejax import shrink
from tests.shrink import zoo


def dense(params, x):
  x = jax.nn.relu(x @ params["a"] + params["b"])
  return x @ params["c"] + params["d"]


@pytest.fixture
def params():
  shapes = {"a": (3, 8), "b": (8,), "c": (8, 2), "d": (2,)}
  params = zoo.randomized(zoo.arrays(shapes))
  return {**params, "a": params["a"].at[:, 2:5].set(0)}


@pytest.fixture
def plan(params):
  return shrink.trace(dense, params, zoo.images(4, 3))


def test_a_bias_keeps_a_unit_alive(plan, params):
  assert not plan.zeroed(params).keep
  rest = {**params, "b": params["b"].at[3].set(0)}
  assert np.flatnonzero(~plan.zeroed(rest).keep["a", 1]).tolist() == [3]


def test_either_factor_of_a_product_may_be_zero():
  def gated(params, x):
    return (jax.nn.sigmoid(x @ params["g"]) * (x @ params["u"])) @ params["d"]

  shapes = {"g": (3, 6), "u": (3, 6), "d": (6, 2)}
  masks = {name: np.ones(shape, bool) for name, shape in shapes.items()}
  masks["g"][:, 0] = masks["u"][:, 1] = masks["d"][2] = False
  plan = shrink.trace(gated, zoo.arrays(shapes), zoo.images(4, 3))
  gone = ~plan.zeroed(masks).keep["d", 0]
  assert np.flatnonzero(gone).tolist() == [1, 2]  # sigmoid(0) is not 0


def test_heads_of_a_pattern_leave_without_loss():
  apply, params, inputs = zoo.decoder()
  plan = shrink.trace(apply, params, *inputs)
  masks = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
  masks["blocks"][0]["v"].reshape(-1, zoo.H, zoo.D)[:, 1] = False
  masks["blocks"][1]["o"].reshape(zoo.H, zoo.D, -1)[2:] = False
  masks["blocks"][1]["q"].reshape(-1, zoo.H, zoo.D)[:, 0] = False
  masked = sparsejax.apply_masks(params, masks)
  remove = plan.zeroed(masks)
  gone = {cut: np.flatnonzero(~keep) for cut, keep in remove.keep.items()}
  assert gone["blocks/0/o", 0].tolist() == [4, 5, 6, 7]
  # A head without queries still attends to everything alike.
  assert gone["blocks/1/o", 0].tolist() == list(range(8, 16))
  got = jax.jit(plan.apply_fn(remove))(plan.take(masked, remove), *inputs)
  np.testing.assert_allclose(got, jax.jit(apply)(masked, *inputs), atol=1e-5)


def test_one_unit_stays_of_a_group_of_zeros(plan, params):
  zeros = jax.tree.map(jnp.zeros_like, params)
  assert plan.zeroed(zeros).keep["a", 1].sum() == 1


def test_constants_go_into_the_next_bias(plan, params):
  x = zoo.images(4, 3)
  folded, remove = plan.fold(params)
  assert np.flatnonzero(~remove.keep["a", 1]).tolist() == [2, 3, 4]
  constants = np.maximum(params["b"][2:5], 0)
  wanted = params["d"] + constants @ params["c"][2:5]
  np.testing.assert_allclose(folded["d"], wanted, atol=1e-6)
  got = plan.apply_fn(remove)(plan.take(folded, remove), x)
  np.testing.assert_allclose(got, dense(params, x), atol=1e-6)


def test_a_unit_that_varies_is_not_folded(plan, params):
  with pytest.raises(ValueError, match="none of its slices are zero"):
    plan.fold(params, plan.remove([0]))


def test_a_bias_that_is_used_twice_takes_nothing(params):
  def shared(params, x):
    return dense(params, x) * params["d"]

  plan = shrink.trace(shared, params, zoo.images(4, 3))
  folded, remove = plan.fold(params)
  assert not remove.keep
  np.testing.assert_array_equal(folded["d"], params["d"])
  with pytest.raises(ValueError, match="no bias or running mean of its own"):
    plan.fold(params, plan.remove([2]))


def test_a_bias_of_two_axes_is_no_constant():
  """It differs from place to place, also where it is stored as one axis."""

  def apply(params, x):
    y = jnp.einsum("bi,io->bo", x, params["a"])[:, None]
    y = jax.nn.relu(y + params["b"].reshape(3, 8))
    return jnp.einsum("bto,oe->bte", y, params["c"]) + params["d"]

  shapes = {"a": (3, 8), "b": (24,), "c": (8, 2), "d": (2,)}
  params = zoo.randomized(zoo.arrays(shapes))
  params = {**params, "a": params["a"].at[:, :3].set(0)}
  x = zoo.images(4, 3)
  for split in (None, lambda sizes, line: 1):
    plan = shrink.trace(apply, params, x, split=split)
    folded, remove = plan.fold(params)
    got = plan.apply_fn(remove)(plan.take(folded, remove), x)
    np.testing.assert_allclose(got, apply(params, x), atol=1e-6)


class Net(nn.Module):
  """Convolutions whose filters of zeros leave relu(BN(0))."""

  @nn.compact
  def __call__(self, x):
    for padding in ("VALID", "SAME", "VALID"):
      x = nn.Conv(6, (3, 3), padding=padding, use_bias=False)(x)
      x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    return nn.Dense(3)(nn.max_pool(x, (2, 2)).mean((1, 2)))


def test_constants_go_into_means_unless_they_meet_padding():
  apply, variables, (x,) = zoo.linen(Net(), zoo.images(2, 8, 8, 3))
  for name in ("Conv_0", "Conv_1", "Conv_2"):
    kernel = variables["params"][name]["kernel"]
    variables["params"][name]["kernel"] = kernel.at[..., :2].set(0)
  plan = shrink.trace(apply, variables, x)
  assert not plan.zeroed(variables).keep
  folded, remove = plan.fold(variables)
  kept = {
    name: remove.keep.get((f"params/{name}/kernel", 3), np.ones(6)).sum()
    for name in ("Conv_0", "Conv_1", "Conv_2")
  }
  # What Conv_0 leaves is summed by Conv_1, which pads.
  assert kept == {"Conv_0": 6, "Conv_1": 4, "Conv_2": 4}
  got = jax.jit(plan.apply_fn(remove))(plan.take(folded, remove), x)
  np.testing.assert_allclose(got, jax.jit(apply)(variables, x), atol=1e-5)
  (unit,) = [
    group.units[0]
    for group in plan.groups.values()
    if ("params/Conv_0/kernel", 3) in group.cuts
  ]
  with pytest.raises(ValueError, match=r"meets padding.*conv_general_dilated"):
    plan.fold(variables, plan.remove([unit]))
