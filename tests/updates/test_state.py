"""The state of masks holds few arrays, and reads as whole trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import distributions
from sparsejax.transform.state import SparseState, find
from sparsejax.updates import MaskState
from tests.conformance import table as conformance

KEY = jax.random.key(0)
PARAMS = {
  "dense": jnp.ones((3, 4)),
  "norm": {"bias": jnp.ones(4), "scale": jnp.float32(1)},
  "w": jnp.arange(1.0, 25).reshape(4, 6),
  "z": [jnp.ones((6, 2))],
}
PRUNABLE = distributions.matching("^w|^z")


def rigl():
  return sparsejax.rigl(
    optax.sgd(0.1), 0.5, key=KEY, t_end=100, prunable=PRUNABLE
  )


def test_only_sparse_leaves_have_arrays():
  _, state = sparsejax.init(rigl(), PARAMS)
  paths = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(state)
  ]
  assert paths == [
    f".mask_state.{name}"
    for name in (
      "masks['w']",
      "masks['z'][0]",
      "budget.values",
      "count",
      "key",
      "refused",
    )
  ]


@pytest.mark.parametrize("where", ["outside", "jit", "host"])
def test_it_reads_as_whole_trees(where):
  def read(state):
    return state.masks, state.budget

  state = rigl().init(PARAMS).mask_state
  if where == "host":
    state = jax.device_get(state)
  masks, budget = jax.jit(read)(state) if where == "jit" else read(state)
  assert jax.tree.structure(masks) == jax.tree.structure(PARAMS)
  assert jax.tree.map(np.shape, masks) == {
    "dense": (),
    "norm": {"bias": (), "scale": ()},
    "w": (4, 6),
    "z": [(6, 2)],
  }
  assert all(m.dtype == bool for m in jax.tree.leaves(masks))
  assert masks["dense"]
  assert jax.tree.map(int, budget) == {
    "dense": 12,
    "norm": {"bias": 4, "scale": 1},
    "w": masks["w"].sum(),
    "z": [masks["z"][0].sum()],
  }
  assert all(n.dtype == jnp.int32 for n in jax.tree.leaves(budget))


def test_other_attributes_take_the_place_of_what_is_stored():
  state = rigl().init(PARAMS).mask_state
  masks = {**state.masks, "w": jnp.ones((4, 6), bool)}
  budget = {**state.budget, "w": jnp.int32(24)}
  new = state._replace(masks=masks, budget=budget, count=jnp.int32(7))
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert conformance.same(new.masks, masks)
  assert jax.tree.map(int, new.budget) == jax.tree.map(int, budget)
  assert (new.count, state.count) == (7, 0)
  assert new.key is state.key
  assert new._replace(refused=1)._budget is new._budget
  with pytest.raises(ValueError, match="got \\['mask'\\], wanted attributes"):
    state._replace(mask=masks)


def test_states_that_vmap_stacked():
  """Runs of several budgets and masks are read outside of it, too."""
  tx = rigl()

  def begin(params, budget):
    state = tx.init(params).mask_state
    return state._replace(budget={**state.budget, "w": budget})

  many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), PARAMS)
  states = jax.vmap(begin)(many, jnp.array([3, 4, 5]))
  assert jax.tree.map(np.shape, states.masks) == {
    "dense": (3,),
    "norm": {"bias": (3,), "scale": (3,)},
    "w": (3, 4, 6),
    "z": [(3, 6, 2)],
  }
  assert states.masks["dense"].all()
  np.testing.assert_array_equal(states.budget["w"], [3, 4, 5])
  np.testing.assert_array_equal(states.budget["dense"], [12, 12, 12])
  back = states._replace(masks=states.masks, budget=states.budget)
  assert conformance.same(back, states)
  of_one = jax.tree.map(lambda x: x[1], states)
  assert conformance.same(
    jax.tree.map(lambda x: x[1], states.masks), of_one.masks
  )
  assert of_one.budget["w"] == 4


def test_budgets_of_layers_keep_their_shape():
  budget = {"b": jnp.int32(2), "layers": jnp.arange(3)[:, None, None]}
  state = MaskState(
    masks={"b": jnp.array(True), "layers": jnp.ones((3, 4, 6), bool)},
    budget=budget,
    count=jnp.int32(0),
    key=None,
    refused=jnp.int32(0),
    scores=(),
  )
  assert state._budget.values.shape == (4,)
  assert conformance.same(state.budget, jax.device_get(budget))


def test_any_leaves_go_through():
  """As of shardings, or of what optax puts in the place of params."""
  _, state = sparsejax.init(rigl(), PARAMS)
  named = jax.tree.map(lambda x: str(x.shape), state)
  assert isinstance(named, SparseState)
  (masks,) = find(named, MaskState)
  assert masks.masks["w"] == "(4, 6)"
  assert masks.count == "()"
  nothing = jax.tree.map(lambda _: None, state)
  assert jax.tree.leaves(nothing) == []
  assert len(jax.tree.leaves(jax.eval_shape(lambda: state))) == 6
  assert "MaskState(masks={'dense': Dense(), " in repr(state)


def test_a_step_passes_the_budgets_on():
  """No program takes them apart and joins them again."""
  tx = rigl()
  params, state = sparsejax.init(tx, PARAMS)
  program = jax.make_jaxpr(
    lambda g, s, p: tx.update(g, s, p, update_masks=False)
  )(params, state, params)
  assert "concatenate" not in str(program)


def test_top_kast_has_two_masks_of_each_sparse_leaf():
  tx = sparsejax.top_kast(
    optax.sgd(0.1), 0.5, key=KEY, backward_sparsity=0.2, prunable=PRUNABLE
  )
  _, state = sparsejax.init(tx, PARAMS)
  assert len(jax.tree.leaves(state)) == 6 + 2


def test_thresholds_are_scalars_of_sparse_leaves():
  inner = optax.sgd(0.1)
  tx = sparsejax.str_(inner, key=KEY, optimizer=inner, prunable=PRUNABLE)
  params, state = sparsejax.init(tx, PARAMS)
  assert len(jax.tree.leaves(state)) == 6 + 2
  seen = sparsejax.forward_params(params, state)
  assert conformance.same(seen["dense"], params["dense"])
  _, new = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  assert jax.tree.structure(new) == jax.tree.structure(state)
