"""Every algorithm with every optimizer: what has to hold for all of them."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sparsejax

PLACES = {
  "plain": lambda algorithm, inner: algorithm(inner),
  "inside_multi_steps": lambda algorithm, inner: optax.MultiSteps(
    algorithm(inner), 2
  ).gradient_transformation(),
  "around_multi_steps": lambda algorithm, inner: algorithm(
    optax.MultiSteps(inner, 2).gradient_transformation()
  ),
}


def _bits(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("optimizer", conformance.OPTIMIZERS)
@pytest.mark.parametrize("algorithm", conformance.ALGORITHMS)
def test_zeros_budget_compilation_and_round_trip(
  algorithm, optimizer, dtype, place, tmp_path
):
  tx = PLACES[place](
    conformance.ALGORITHMS[algorithm], conformance.OPTIMIZERS[optimizer]()
  )
  params, state = sparsejax.init(tx, conformance.params(dtype))
  first = sparsejax.get_masks(state)
  assert conformance.inactive_are_zero(params, first)

  @jax.jit
  def train_step(params, state, step):
    grads = conformance.gradients(params, step)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  compiled = []
  for step in range(8 if place != "inside_multi_steps" else 16):
    old = sparsejax.get_masks(state)
    params, state = train_step(params, state, jnp.int32(step))
    masks = sparsejax.get_masks(state)
    assert conformance.inactive_are_zero(params, masks)
    if algorithm == "gmp":
      assert all(
        jax.tree.leaves(jax.tree.map(lambda a, b: (b <= a).all(), old, masks))
      )
    else:
      assert sparsejax.nnz(masks) == sparsejax.nnz(first)
    compiled.append(train_step._cache_size())
  assert compiled[-1] == compiled[1]
  assert sparsejax.density(masks) == pytest.approx(0.4, abs=0.01)
  moved = not all(
    jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), first, masks))
  )
  assert moved == (algorithm != "static")
  for leaf in jax.tree.leaves(params):
    assert leaf.dtype == dtype
    assert jnp.isfinite(leaf).all()

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert _bits(restored) == _bits(state)
