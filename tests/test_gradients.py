"""One loop trains masked, packed, by kernels, and fine-tunes."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import finetune, modes, nodes
from sparsejax.finetune import protocols
from sparsejax.finetune.moving import GradientEvolution
from sparsejax.finetune.sm3 import Sm3Evolution
from sparsejax.gradients import Gradient, check_same_step
from sparsejax.packed import Structure

KEY = jax.random.key(0)
STEPS = 12
SHAPE = (12, 16)


def rigl():
  return sparsejax.rigl(optax.adam(0.05), 0.75, key=KEY, t_end=12, delta_t=4)


def deltas(method, **options):
  return method(
    finetune.adamw(0.05), key=KEY, t_end=STEPS, k=20, every=4, **options
  )


TRANSFORMATIONS = {
  "masked": rigl,
  "packed": lambda: modes.packed(rigl()),
  "kernels": lambda: modes.kernels(rigl()),
  "straight through": lambda: sparsejax.ste(optax.adam(0.05), 0.75, key=KEY),
  "seft": lambda: deltas(finetune.seft),
  "spiel": lambda: deltas(finetune.spiel, accumulate=2),
  "fixed": lambda: finetune.fixed(optax.adam(0.05), key=KEY),
  "lora": lambda: finetune.lora(optax.adam(0.05), key=KEY),
}
X = jax.random.normal(jax.random.fold_in(KEY, 1), (64, SHAPE[0]))
Y = jax.random.normal(jax.random.fold_in(KEY, 2), (64, SHAPE[1]))


def params():
  w = jax.random.normal(jax.random.fold_in(KEY, 3), SHAPE) / 4
  return {"w": jnp.where(jnp.abs(w) > 0.15, w, 0), "b": jnp.zeros(SHAPE[1])}


def loss_fn(params, x):
  return jnp.mean((sparsejax.matmul(x, params["w"]) + params["b"] - Y) ** 2)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_same_lines_train_by_every_transformation(name):
  tx = TRANSFORMATIONS[name]()
  values, state = sparsejax.init(tx, params())
  value_and_grad = sparsejax.value_and_grad(loss_fn, tx)

  @functools.partial(jax.jit, static_argnames="now")
  def step(values, state, now):
    loss, grads = value_and_grad(values, state, X, update_masks=now)
    updates, state = tx.update(grads, state, values, update_masks=now)
    return optax.apply_updates(values, updates), state, loss

  losses, kinds = [], set()
  for i in range(STEPS):
    now = tx.moves(i)
    values, state, loss = step(values, state, now=now)
    losses.append(float(loss))
    kinds.add(now)
  assert losses[-1] < losses[0]
  assert False in kinds or name == "straight through"
  if name not in ("fixed", "lora"):
    assert any(kinds)


def test_gradients_hold_what_was_read_where_masks_move_only():
  tx = modes.packed(rigl())
  values, state = sparsejax.init(tx, params())

  def with_aux(params, x):
    return loss_fn(params, x), x.shape

  value_and_grad = sparsejax.value_and_grad(with_aux, tx, has_aux=True)
  (loss, aux), grads = value_and_grad(values, state, X, update_masks=True)
  assert aux == X.shape
  assert isinstance(grads["w"], Gradient)
  assert grads["w"].found.uses == 1
  assert grads["b"].shape == values["b"].shape
  (again, _), plain = value_and_grad(values, state, X)
  assert loss == again
  np.testing.assert_array_equal(plain["w"], grads["w"].values)
  with pytest.raises(ValueError, match=r"w: got update_masks=False .* moves"):
    tx.update(grads, state, values, update_masks=False)
  with pytest.raises(ValueError, match=r"w: got update_masks=True .* ordinary"):
    tx.update(plain, state, values, update_masks=True)


def test_an_update_is_for_the_step_of_its_gradients():
  check_same_step(False, False)
  check_same_step(True, True)
  with pytest.raises(ValueError, match="got update_masks=True with gradients"):
    check_same_step(True, False)


def members(protocol):
  """What a protocol wants to be implemented: its own functions and fields."""
  own = {name for name in vars(protocol) if not name.startswith("_")}
  return own | set(getattr(protocol, "__annotations__", {})) - {"ascending"}


@pytest.mark.parametrize("name", ["seft", "spiel", "fixed", "lora"])
def test_parts_and_what_they_make_are_as_the_protocols_say(name):
  tx = TRANSFORMATIONS[name]()
  values, state = sparsejax.init(tx, params())
  part = state.parts["w"]
  assert all(hasattr(part, member) for member in members(protocols.Part))
  matrix = sparsejax.forward_params(values, state)["w"]
  assert all(hasattr(matrix, member) for member in members(nodes.Matrix))
  assert matrix.shape == SHAPE
  dense = finetune.merge(values, state)["w"]
  np.testing.assert_allclose(matrix.matmul(X), X @ dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [GradientEvolution, Sm3Evolution])
def test_evolutions_are_as_the_protocol_says(kind):
  wanted = members(protocols.Evolution)
  assert wanted >= {"schedule", "empty", "probe", "gathered", "move", "seeds"}
  assert all(hasattr(kind, member) for member in wanted)
  for name in wanted - {"schedule"}:
    ours, theirs = (
      list(inspect.signature(getattr(one, name)).parameters)
      for one in (kind, protocols.Evolution)
    )
    assert ours == theirs


def test_structures_implement_places_and_moved():
  assert Structure.__abstractmethods__ == {"places", "moved"}
  with pytest.raises(TypeError, match="abstract"):
    type("Nowhere", (Structure,), {})()
