"""Instruments, by numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import distributions, instruments, masks

DENSE = jnp.array(True)


def bools(*rows):
  return jnp.array(rows, bool)


# Sensitivity of the layers.

PARAMS = {
  "a": {"kernel": jnp.array([[1.0, -4.0], [3.0, -2.0]]), "bias": jnp.ones(2)},
  "b": {"kernel": jnp.array([[0.0, 5.0, 0.0, 0.0, -1.0]])},
}


def missing(params, batch):
  """How much |w| is missing, times what the batch says."""
  return batch * (16 - sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))


def test_one_leaf_at_a_time_loses_its_smallest_weights():
  loss, losses = instruments.layer_sensitivity(
    missing, PARAMS, [1.0, 3.0], [0.15, 0.5, 0.75]
  )
  assert loss == 2 * -2
  assert losses.keys() == {"a/kernel", "b/kernel"}
  # Of 1, 2, 3, 4 the first, the first two, the first three are lost; 3.4 are
  # rounded to 3, whatever is left to the other leaf.
  np.testing.assert_array_equal(losses["a/kernel"], [-2, 2, 8])
  # 3 of the 5 are zero already; of 5 weights, 4, 3 (2.5 rounded up), 1 stay.
  np.testing.assert_array_equal(losses["b/kernel"], [-4, -4, -2])
  assert losses["a/kernel"].dtype == jnp.float32


def test_the_loss_is_compiled_once_whatever_the_layers_and_sparsities():
  traced = []

  def loss_fn(params, batch):
    traced.append(1)
    return missing(params, batch)

  instruments.layer_sensitivity(loss_fn, PARAMS, [1.0, 3.0], [0.25, 0.5, 0.75])
  assert len(traced) == 1


def test_prunable_says_which_leaves_are_looked_at():
  _, losses = instruments.layer_sensitivity(
    missing, PARAMS, [1.0], [0.5], prunable=distributions.matching("bias|^b")
  )
  assert losses.keys() == {"a/bias", "b/kernel"}
  np.testing.assert_array_equal(losses["a/bias"], [-1])


@pytest.mark.parametrize(
  ("batches", "sparsities", "message"),
  [
    ([], [0.5], "0 batches and 1 sparsities"),
    ([1.0], [], "1 batches and 0 sparsities"),
    ([1.0], [0.5, 1.0], "got 1.0, wanted the share of zeros"),
  ],
)
def test_sensitivity_to_nothing_is_refused(batches, sparsities, message):
  with pytest.raises(ValueError, match=message):
    instruments.layer_sensitivity(missing, PARAMS, batches, sparsities)


# Overlap of many masks.


def test_overlaps_count_all_leaves_together():
  trees = [
    {"a": bools([1, 1, 0, 0]), "b": bools([1], [1]), "c": DENSE},
    {"a": bools([0, 1, 1, 0]), "b": bools([1], [1]), "c": DENSE},
    {"a": DENSE, "b": bools([0], [1]), "c": DENSE},
  ]
  # 1 + 2 of 3 + 2; 2 + 1 of 4 + 2 twice: a dense leaf is active everywhere.
  wanted = [[1, 3 / 5, 1 / 2], [3 / 5, 1, 1 / 2], [1 / 2, 1 / 2, 1]]
  found = instruments.overlaps(trees)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted)
  np.testing.assert_allclose(jax.jit(instruments.overlaps)(trees), wanted)


def test_overlaps_of_nothing():
  empty = bools([0, 0])
  np.testing.assert_array_equal(instruments.overlaps([empty] * 2), 1)
  np.testing.assert_array_equal(instruments.overlaps([DENSE] * 2), 1)
  assert instruments.overlaps([]).shape == (0, 0)


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"a": jnp.ones((3, 2), bool), "b": DENSE}, r"a: .*\(3, 2\).*\(2, 3\)"),
    ({"a": jnp.ones(3, bool), "b": DENSE}, r"a: .*\(3,\).*\(2, 3\)"),
    ({"a": jnp.ones((2, 3), bool)}, "b: masks lack a leaf"),
  ],
)
def test_overlaps_need_masks_of_the_same_params(other, message):
  tree = {"a": jnp.ones((2, 3), bool), "b": DENSE}
  with pytest.raises(ValueError, match=message):
    instruments.overlaps([tree, other])


# In-time over-parametrisation.


def test_what_was_ever_active_only_grows():
  ever = {"a": bools([1, 1, 0, 0, 0]), "b": DENSE}
  rates = []
  for moved in ([1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]):
    ever = instruments.explored(ever, {"a": bools(moved), "b": DENSE})
    rates.append(masks.density(ever))
  assert rates == [3 / 5, 3 / 5, 1]
  assert ever["b"].shape == ()
  with pytest.raises(ValueError, match=r"a: .*\(1, 2\).*\(1, 5\)"):
    instruments.explored(ever, {"a": bools([1, 0]), "b": DENSE})


# Gradient flow.


def test_gradient_norms_of_active_and_inactive_weights():
  grads = {"a": jnp.array([3.0, -4, 6, 8]), "b": jnp.array([[12.0]])}
  tree = {"a": jnp.array([1, 1, 0, 0], bool), "b": DENSE}
  flow = instruments.gradient_flow
  for function in (flow, jax.jit(flow)):
    total, leaves = function(grads, tree)
    assert leaves == {"a": (5, 10), "b": (12, 0)}
    assert total == (13, 10)


def test_small_gradients_in_half_precision_do_not_vanish():
  grads = jnp.full((4,), 2.0**-14, jnp.float16)
  total, _ = instruments.gradient_flow(grads, jnp.array([1, 1, 1, 1], bool))
  assert total.active == 2.0**-13
  assert total.active.dtype == jnp.float32


def test_gradient_flow_needs_masks_that_fit():
  with pytest.raises(ValueError, match=r"the array: .*\(3,\).*\(4,\)"):
    instruments.gradient_flow(jnp.ones(4), jnp.ones(3, bool))


# Dead units.

MASK = bools([1, 0, 1], [0, 0, 0])


def test_dead_units_of_a_matrix():
  dead = jax.jit(instruments.dead_units)({"w": MASK, "b": DENSE})
  assert dead.keys() == {"w"}
  assert dead["w"].inputs.tolist() == [False, True]
  assert dead["w"].outputs.tolist() == [False, True, False]


def test_a_kernel_position_is_enough_to_live():
  kernel = jnp.stack([MASK, bools([0, 0, 0], [0, 1, 0])])[:, None]
  dead = instruments.dead_units(kernel)[""]
  assert kernel.shape == (2, 1, 2, 3)
  assert dead.inputs.tolist() == [False, False]
  assert dead.outputs.tolist() == [False, False, False]


def test_axes_tell_where_inputs_and_outputs_lie():
  torch = jnp.moveaxis(MASK[None, None], (2, 3), (1, 0))
  assert torch.shape == (3, 2, 1, 1)
  dead = instruments.dead_units(torch, axes=(1, 0))[""]
  assert dead.inputs.tolist() == [False, True]
  assert dead.outputs.tolist() == [False, True, False]


def test_a_vector_is_one_row():
  dead = instruments.dead_units(jnp.array([1, 0, 1], bool))[""]
  assert dead.inputs.tolist() == [False]
  assert dead.outputs.tolist() == [False, True, False]


def test_units_left_are_those_that_something_flows_through():
  rng = np.random.default_rng(0)
  first, second = rng.random((9, 7)) < 0.2, rng.random((7, 5)) < 0.3
  left = instruments.units_left([first, second])
  # By hand: unit by unit.
  inputs = [i for i in range(9) if any(first[i])]
  hidden = [
    j for j in range(7) if any(first[i][j] for i in inputs) and any(second[j])
  ]
  outputs = [k for k in range(5) if any(second[j][k] for j in hidden)]
  assert left == (len(inputs), len(hidden), len(outputs))
  assert left != (9, 7, 5)


def test_a_unit_that_dies_takes_its_weights_with_it():
  first = np.array([[True, False]])
  second = np.array([[True, False], [False, True]])  # of a unit without input
  assert instruments.units_left([first, second]) == (1, 1, 1)


def test_layers_that_do_not_follow_are_refused():
  with pytest.raises(ValueError, match="in a row"):
    instruments.units_left([np.ones((2, 3), bool), np.ones((2, 3), bool)])
