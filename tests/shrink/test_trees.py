"""What is cut: params, optimizer states, files."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import shrink


def apply(params, x):
  x = jnp.tanh(x @ params["a"] + params["b"])
  return x @ params["c"]


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  shapes = {"a": (3, 8), "b": (8,), "c": (8, 2)}
  return {k: jnp.float32(rng.normal(size=s)) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def x():
  return jnp.float32(np.random.default_rng(1).normal(size=(5, 3)))


@pytest.fixture(scope="module")
def plan(params, x):
  return shrink.trace(apply, params, x)


@pytest.fixture(scope="module")
def remove(plan):
  return plan.remove([1, 4, 5])


def train(apply, params, x, tx, state, steps, mask=lambda tree: tree):
  def loss(params):
    return jnp.mean(apply(params, x) ** 2)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(mask(jax.grad(loss)(params)), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = step(params, state)
  return params, state


def test_training_goes_on_with_the_optimizers_state(plan, remove, params, x):
  tx = optax.chain(
    optax.clip_by_global_norm(0.1),
    optax.adamw(optax.linear_schedule(0.1, 0, 9)),
  )
  masked = plan.mask(params, remove)
  masked, state = train(
    apply,
    masked,
    x,
    tx,
    tx.init(params),
    3,
    lambda tree: plan.mask(tree, remove),
  )
  small, small_state = plan.take((masked, state), remove)
  assert (
    int(
      optax.tree.get(
        small_state,
        "count",
        filtering=lambda p, _: "ScaleByAdam" in str(p),
      )
    )
    == 3
  )
  got, _ = train(plan.apply_fn(remove), small, x, tx, small_state, 3)
  wanted, _ = train(
    apply, masked, x, tx, state, 3, lambda tree: plan.mask(tree, remove)
  )
  for a, b in zip(
    jax.tree.leaves(got),
    jax.tree.leaves(plan.take(wanted, remove)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_masks_and_what_optax_leaves_out_are_taken_too(plan, remove):
  masks = {
    "a": np.ones((3, 8), bool),
    "b": np.bool_(True),
    "c": optax.MaskedNode(),
  }
  small = plan.take(masks, remove)
  assert small["a"].shape == (3, 5)
  assert small["b"].shape == ()
  assert small["c"] == optax.MaskedNode()


def test_shapes_are_enough(plan, remove, params):
  small = plan.take(jax.eval_shape(lambda: params), remove)
  assert small["c"].shape == (5, 2)


def test_masks_with_budgets_are_refused(plan, remove, params):
  tx = sparsejax.static(optax.sgd(0.1), 0.5, key=jax.random.key(0))
  sparse, state = sparsejax.init(tx, params)
  with pytest.raises(ValueError, match="masks with budgets"):
    plan.take(state, remove)
  small = plan.take((sparse, state.inner_state), remove)
  masks = plan.take(sparsejax.get_masks(state), remove)
  assert small[0]["a"].shape == masks["a"].shape == (3, 5)


def test_what_has_other_shapes_is_refused(plan, remove, params):
  with pytest.raises(ValueError, match=r"a: got shape \(8,\), wanted \(3, 8\)"):
    plan.take({**params, "a": np.ones(8)}, remove)
  with pytest.raises(ValueError, match="wanted a tree of the params"):
    plan.take({"a": params["a"]}, remove)


def test_a_removal_is_stored(plan, remove, params, x):
  file = io.BytesIO()
  np.savez(file, **remove.to_arrays())
  file.seek(0)
  again = shrink.Removal.from_arrays(np.load(file))
  small = plan.take(params, again)
  got = plan.apply_fn(again)(small, x)
  np.testing.assert_array_equal(got, plan.apply_fn(remove)(small, x))
  with pytest.raises(ValueError, match="'a': got bool"):
    shrink.Removal.from_arrays({"a": np.ones(3, bool)})


def test_two_removals_become_one(plan, params):
  both = plan.remove([0, 1]) | plan.remove([1, 2])
  assert plan.take(params, both)["b"].shape == (5,)


def test_a_smaller_model_is_exported(plan, remove, params, x):
  pytest.importorskip("flatbuffers")
  from jax import export

  small = plan.take(params, remove)
  exported = export.export(jax.jit(plan.apply_fn(remove)))(small, x)
  again = export.deserialize(exported.serialize())
  np.testing.assert_allclose(
    again.call(small, x), plan.apply_fn(remove)(small, x), atol=1e-6
  )


@pytest.mark.parametrize(
  ("cut", "words"),
  [
    (("a", 1), "have to leave with others"),
    (("a", 0), "cannot remove a part of it: it meets an input"),
    (("d", 0), "there is no such axis"),
  ],
)
def test_half_a_unit_is_refused(plan, params, x, cut, words):
  size = {"a": params["a"].shape}.get(cut[0], (4, 4))[cut[1]]
  odd = shrink.Removal({cut: np.arange(size) > 0})
  with pytest.raises(ValueError, match=words):
    plan.apply_fn(odd)(params, x)


def test_params_have_to_be_cut_as_told(plan, remove, params, x):
  with pytest.raises(ValueError, match=r"a: got shape \(3, 8\), wanted"):
    plan.apply_fn(remove)(params, x)


def test_a_smaller_model_becomes_smaller_again(plan, remove, params, x):
  small = plan.take(params, remove)
  second = shrink.trace(plan.apply_fn(remove), small, x)
  (group,) = second.groups.values()
  assert len(group) == 5
  more = second.remove(group.units[:2])
  shrink.verify(second, small, more, x, tolerance=1e-6)


def test_the_smaller_function_is_transformed(plan, remove, params, x):
  small, apply_small = plan.take(params, remove), plan.apply_fn(remove)
  each = jax.vmap(apply_small, (None, 0))(small, x)
  np.testing.assert_allclose(each, apply_small(small, x), atol=1e-6)
  grads = jax.grad(lambda p: apply_small(p, x).sum())(small)
  whole = jax.grad(lambda p: apply(p, x).sum())(plan.mask(params, remove))
  for name, grad in plan.take(whole, remove).items():
    np.testing.assert_allclose(grads[name], grad, atol=1e-6)


def test_half_precision_stays(plan, remove, params, x):
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  x = x.astype(jnp.bfloat16)
  out = plan.apply_fn(remove)(plan.take(half, remove), x)
  assert out.dtype == jnp.bfloat16
  assert shrink.verify(plan, half, remove, x) <= 0.05
