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
STEPS = {"plain": 8, "inside_multi_steps": 16, "around_multi_steps": 8}
# Compiling takes most of the time of these tests, so most do it with little
# optimization; the plain ones in float32 run what users run.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def _check(algorithm, name, inner, dtype, place, options, tmp_path):
  tx = PLACES[place](algorithm, inner)
  params, state = sparsejax.init(tx, conformance.small_params(dtype))
  first = jax.device_get(sparsejax.get_masks(state))
  assert conformance.inactive_are_zero(params, first)

  def train_step(params, state, noise):
    grads = conformance.gradients(params, noise)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  train_step = jax.jit(train_step, compiler_options=options)
  masks, compiled = first, []
  for step in range(STEPS[place]):
    old = masks
    params, state = train_step(params, state, conformance.noise(params, step))
    masks = jax.device_get(sparsejax.get_masks(state))
    assert conformance.inactive_are_zero(params, masks)
    if name == "gmp":
      assert np.all(masks["kernel"] <= old["kernel"])
    else:
      assert masks["kernel"].sum() == first["kernel"].sum()
    compiled.append(train_step._cache_size())
  # Once; twice where the inner optimizer by itself changes types: optax makes
  # bfloat16 moments float32 by a float32 hyperparameter.
  mixed = hasattr(inner.init(params), "hyperparams") and dtype == jnp.bfloat16
  assert compiled[-1] == compiled[1] <= 1 + mixed
  assert masks["kernel"].sum() == 19  # 40 % of 48, rounded
  assert masks["bias"].shape == ()
  assert masks["bias"]
  moved = np.any(first["kernel"] != masks["kernel"])
  assert moved == (name not in ("static", "fixed"))
  assert conformance.same(
    jax.tree.map(jnp.zeros_like, params),
    jax.tree.map(jnp.zeros_like, conformance.small_params(dtype)),
  )
  for leaf in jax.tree.leaves(jax.device_get(params)):
    assert np.isfinite(leaf.astype("f")).all()

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", state)
  assert conformance.same(restored, state)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("optimizer", conformance.OPTIMIZERS)
@pytest.mark.parametrize("name", conformance.ALGORITHMS)
def test_zeros_budget_compilation_and_round_trip(
  name, optimizer, dtype, place, tmp_path
):
  algorithm = conformance.ALGORITHMS[name]
  inner = conformance.OPTIMIZERS[optimizer]()
  as_users = place == "plain" and dtype == jnp.float32
  options = None if as_users else QUICK
  _check(algorithm, name, inner, dtype, place, options, tmp_path)


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "nadamw"])
@pytest.mark.parametrize("name", conformance.VARIANTS)
def test_options_too(name, optimizer, tmp_path):
  optimizers = conformance.OPTIMIZERS | conformance.MORE_OPTIMIZERS
  _check(
    conformance.VARIANTS[name],
    name,
    optimizers[optimizer](),
    jnp.bfloat16,
    "plain",
    None,
    tmp_path,
  )


@pytest.mark.parametrize("name", ["rigl", "gmp"])
@pytest.mark.parametrize("optimizer", conformance.MORE_OPTIMIZERS)
def test_more_optimizers(name, optimizer, tmp_path):
  _check(
    conformance.ALGORITHMS[name],
    name,
    conformance.MORE_OPTIMIZERS[optimizer](),
    jnp.float32,
    "plain",
    QUICK,
    tmp_path,
  )
