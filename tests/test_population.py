"""Many networks in one program: bit for bit what each would be alone."""

import jax
import jax.extend
import jax.numpy as jnp
import optax
import pytest

import sparsejax
from tests import bits

MEMBERS, STEPS = 3, 5
PARAMS = {"w": jax.random.normal(jax.random.key(9), (12, 8)), "b": jnp.ones(8)}
OVER = {
  "seeds": [(jax.random.key(i), 0.75) for i in range(MEMBERS)],
  "sparsities": [(jax.random.key(0), s) for s in (0.5, 0.75, 0.9)],
}
ALGORITHMS = {
  "rigl": sparsejax.rigl,
  "set": sparsejax.set_,
  "seft": sparsejax.seft,
}


def make(algorithm, key, sparsity):
  return algorithm(optax.sgd(0.1, 0.9), sparsity, key=key, t_end=100, delta_t=2)


def population(algorithm, over):
  """One transformation, and the stacked params and states of all members.

  Budgets and keys are in the states, so that any member's update serves all.
  """
  txs = [make(algorithm, *member) for member in OVER[over]]
  pairs = [sparsejax.init(tx, PARAMS) for tx in txs]
  params, states = jax.tree.map(lambda *xs: jnp.stack(xs), *pairs)
  return txs, params, states


def gradients(member, step):
  key = jax.random.fold_in(jax.random.key(step), member)
  return jax.tree.map(lambda p: jax.random.normal(key, p.shape), PARAMS)


def stacked(step):
  members = [gradients(i, step) for i in range(MEMBERS)]
  return jax.tree.map(lambda *xs: jnp.stack(xs), *members)


def alone(tx, member):
  params, state = sparsejax.init(tx, PARAMS)
  update = jax.jit(tx.update)
  for step in range(STEPS):
    updates, state = update(gradients(member, step), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@pytest.mark.parametrize(
  ("algorithm", "over"),
  [("set", "seeds"), ("rigl", "sparsities"), ("seft", "seeds")],
)
def test_a_population_is_its_members(algorithm, over):
  txs, params, states = population(ALGORITHMS[algorithm], over)
  first = sparsejax.get_masks(states)["w"]
  update = jax.jit(jax.vmap(txs[0].update))
  for step in range(STEPS):
    updates, states = update(stacked(step), states, params)
    params = optax.apply_updates(params, updates)
  masks = sparsejax.get_masks(states)["w"]
  for i, tx in enumerate(txs):
    wanted = alone(tx, i)
    got = jax.tree.map(lambda x, i=i: x[i], (params, states))
    bits.assert_same(got, wanted)
    assert (masks[i] != first[i]).any()
    assert masks[i].sum() == round(96 * (1 - OVER[over][i][1]) + 1e-6)


@pytest.mark.parametrize("update_masks", [None, True, False])
def test_what_a_population_runs(update_masks):
  """Members may be at different steps, so that their own schedule, batched,
  becomes a select; a predicate that all share stays a condition, and a Python
  bool leaves none.
  """
  txs, params, states = population(sparsejax.rigl, "seeds")

  def traced(flag):
    def update(grads, state, params):
      return txs[0].update(grads, state, params, update_masks=flag)

    return jax.vmap(update)(stacked(0), states, params)

  shared = jax.make_jaxpr(traced)(jnp.array(True))
  assert conditions(shared.jaxpr)
  settled = jax.make_jaxpr(lambda: traced(update_masks))()
  assert not conditions(settled.jaxpr)
  assert ("top_k_mask" in names(settled.jaxpr)) == (update_masks is not False)


def test_a_shared_predicate_is_a_condition_in_the_compiled_program():
  txs, params, states = population(sparsejax.rigl, "seeds")
  update = jax.vmap(
    lambda g, s, p, flag: txs[0].update(g, s, p, update_masks=flag),
    in_axes=(0, 0, 0, None),
  )
  arguments = (stacked(0), states, params, jnp.array(True))
  text = jax.jit(update).lower(*arguments).compile().as_text()
  assert " conditional(" in text


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def names(jaxpr):
  return {equation.primitive.name for equation in equations(jaxpr)}


def conditions(jaxpr):
  """The conditions on only one side of which there is a selection."""
  found = []
  for equation in equations(jaxpr):
    if equation.primitive.name == "cond":
      sides = [names(b.jaxpr) for b in equation.params["branches"]]
      # On all sides: one program for each kind of device.
      found += [sides] if len({"top_k_mask" in s for s in sides}) > 1 else []
  return found
