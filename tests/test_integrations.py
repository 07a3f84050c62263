"""The library in the loops of others: Flax, Equinox, plain trees, optax."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import sparsejax
from sparsejax import distributions, modes
from tests.marks import slow

pytestmark = pytest.mark.core

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (16, 8))
Y = jnp.sin(X[:, :4])


def make(inner=None, **options):
  options = {"key": KEY, "t_end": 100, "delta_t": 2} | options
  return sparsejax.rigl(inner or optax.sgd(0.1, 0.9), 0.7, **options)


def check(params, masks, nnz):
  """Zeros are where the masks say, and as many as at first."""
  pairs = zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)
  for p, mask in pairs:
    assert jnp.isfinite(p).all()
    assert mask.shape in ((), p.shape)
    assert jnp.all(mask | (p == 0))
  assert sparsejax.nnz(masks) == nnz


def differ(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return any(bool((x != y).any()) for x, y in pairs)


def test_linen_train_state():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))

  model, tx = Model(), make()
  params = model.init(KEY, X)["params"]
  params, _ = sparsejax.init(tx, params)
  state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
  first = sparsejax.get_masks(state.opt_state)
  nnz = sparsejax.nnz(first)
  assert nnz == 58  # of 192, to the nearest integer
  check(params, first, nnz)

  @jax.jit
  def train_step(state):
    def loss(params):
      return jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value

  losses = []
  for _ in range(20):
    state, value = train_step(state)
    losses.append(value)
    check(state.params, sparsejax.get_masks(state.opt_state), nnz)
  assert losses[-1] < losses[0]
  assert differ(first, sparsejax.get_masks(state.opt_state))


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(8, 16, rngs=rngs)
    self.last = nnx.Linear(16, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(self.first(x)))


def test_nnx_optimizer():
  model, tx = Nnx(nnx.Rngs(0)), make()
  params, _ = sparsejax.init(tx, nnx.state(model, nnx.Param))
  nnx.update(model, params)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  first = nnx.clone(sparsejax.get_masks(optimizer.opt_state))
  nnz = sparsejax.nnz(first)
  assert nnz == 58
  check(nnx.state(model, nnx.Param), first, nnz)

  @nnx.jit
  def train_step(model, optimizer):
    def loss(model):
      return jnp.mean((model(X) - Y) ** 2)

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value

  losses = []
  for _ in range(20):
    losses.append(train_step(model, optimizer))
    masks = sparsejax.get_masks(optimizer.opt_state)
    check(nnx.state(model, nnx.Param), masks, nnz)
  assert losses[-1] < losses[0]
  assert differ(first, masks)
  # Masks are for a tree of params as they come out of the model.
  dense = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
  masked = sparsejax.apply_masks(dense, masks)
  check(masked, masks, nnz)
  assert sparsejax.density(masks) == pytest.approx(0.3, abs=0.01)


def test_nnx_paths_are_the_same_in_every_tree():
  """Rules by path hold in the optimizer's trees, which are unwrapped."""
  model = Nnx(nnx.Rngs(0))
  tx = sparsejax.gmp(
    optax.sgd(0.1),
    0.5,
    key=KEY,
    begin=0,
    end=1,
    delta_t=1,
    prunable=distributions.matching("kernel$"),
    distribution=distributions.by_path({"last/kernel$": 0.75}),
  )
  params, _ = sparsejax.init(tx, nnx.state(model, nnx.Param))
  plain, state = sparsejax.init(tx, nnx.to_pure_dict(params))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  for _ in range(2):
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, plain), state, plain)
    plain = optax.apply_updates(plain, updates)
  assert int((model.last.kernel[...] != 0).sum()) == 16
  masks = sparsejax.get_masks(optimizer.opt_state)
  assert not differ(masks, sparsejax.get_masks(state))


def test_equinox():
  model = eqx.nn.MLP(8, 4, 16, 1, key=KEY)
  tx = make(
    distribution=lambda shapes, s: distributions.erdos_renyi(
      shapes, s, axes=(0, 1)
    )
  )
  params, static = eqx.partition(model, eqx.is_inexact_array)
  params, state = sparsejax.init(tx, params)
  model = eqx.combine(params, static)
  first = sparsejax.get_masks(state)
  nnz = sparsejax.nnz(first)
  check(params, first, nnz)

  @eqx.filter_jit
  def train_step(model, state):
    def loss(model):
      return jnp.mean((jax.vmap(model)(X) - Y) ** 2)

    value, grads = eqx.filter_value_and_grad(loss)(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = tx.update(grads, state, params)
    return eqx.apply_updates(model, updates), state, value

  losses = []
  for _ in range(20):
    model, state, value = train_step(model, state)
    losses.append(value)
    params = eqx.filter(model, eqx.is_inexact_array)
    check(params, sparsejax.get_masks(state), nnz)
  assert losses[-1] < losses[0]
  assert differ(first, sparsejax.get_masks(state))


W = jax.random.normal(jax.random.key(2), (12, 10))
TREES = {
  "tuple": (W, jnp.ones(10)),
  "list": [jnp.ones(10), W],
  "nested": {"a": [(W, {"b": jnp.ones(3)})], "c": None},
  "array": W,
}


def noise(params, step):
  return jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(step), p.shape, p.dtype), params
  )


def loop(tx, params, steps, init=sparsejax.init):
  """A plain optax loop, checked at every step."""
  params, state = init(tx, params)
  first = sparsejax.get_masks(state)
  nnz = sparsejax.nnz(first)
  check(params, first, nnz)
  update = jax.jit(tx.update)
  for t in range(steps):
    updates, state = update(noise(params, t), state, params)
    params = optax.apply_updates(params, updates)
    check(params, sparsejax.get_masks(state), nnz)
  assert differ(first, sparsejax.get_masks(state))
  return params, state


@pytest.mark.parametrize("name", TREES)
def test_any_tree(name):
  params, state = loop(make(), TREES[name], 4)
  wanted = jax.tree.structure(TREES[name])
  assert jax.tree.structure(sparsejax.get_masks(state)) == wanted
  assert jax.tree.structure(params) == wanted


@pytest.mark.parametrize("dtype", [slow(jnp.float16), jnp.bfloat16])
def test_half_precision(dtype):
  params = jax.tree.map(lambda x: x.astype(dtype), TREES["list"])
  params, _ = loop(make(), params, 6)
  assert params[1].dtype == dtype


@pytest.mark.parametrize(
  "algorithm", [sparsejax.rigl, sparsejax.set_, sparsejax.snfs, sparsejax.seft]
)
def test_in_a_scan(algorithm):
  """The carry keeps its types, and the masks are those of a Python loop."""
  tx = algorithm(optax.sgd(0.1), 0.7, key=KEY, t_end=100, delta_t=2)
  params, state = sparsejax.init(tx, W.astype(jnp.bfloat16))

  def step(carry, t):
    params, state = carry
    grads = noise(params, t)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), sparsejax.nnz(sparsejax.get_masks(state))

  (last, end), nnz = jax.jit(
    lambda carry: jax.lax.scan(step, carry, jnp.arange(5))
  )((params, state))
  carry, one = (params, state), jax.jit(step)
  for t in range(5):
    carry, _ = one(carry, t)
  np.testing.assert_array_equal(nnz, 36)
  np.testing.assert_array_equal(
    sparsejax.get_masks(end), sparsejax.get_masks(carry[1])
  )
  check(last, sparsejax.get_masks(end), 36)
  assert differ(sparsejax.get_masks(state), sparsejax.get_masks(end))


@pytest.mark.parametrize("update_masks", [None, True, False])
def test_donated_buffers(update_masks):
  """Every buffer is used anew; one that is not would warn, hence fail."""
  tx = make()
  params, state = sparsejax.init(tx, {"w": W + 0, "b": jnp.ones(10)})

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, update_masks=update_masks)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step, donate_argnums=(0, 1))
  for t in range(3):
    old = jax.tree.leaves((params, state))
    params, state = step(params, state, noise(params, t))
    assert all(x.is_deleted() for x in old)
  check(params, sparsejax.get_masks(state), 36)


# Wrapped in optax.

MODEL = {"conv": W.reshape(3, 4, 10), "dense": W, "bias": jnp.ones(10)}


def test_partition_around_for_kernels_only():
  labels = {"conv": "sparse", "dense": "sparse", "bias": "dense"}
  tx = optax.partition({"sparse": make(), "dense": optax.sgd(0.1)}, labels)
  params, state = loop(tx, MODEL, 4)
  assert sparsejax.get_masks(state)["bias"].shape == ()
  assert (params["bias"] != 1).all()


def test_partition_around_two_sparse_parts():
  labels = {"conv": "less", "dense": "more", "bias": "less"}
  tx = optax.partition(
    {
      "less": sparsejax.rigl(
        optax.sgd(0.1), 0.5, key=KEY, t_end=100, delta_t=2
      ),
      "more": sparsejax.set_(
        optax.adam(0.1), 0.9, key=KEY, t_end=100, delta_t=3
      ),
    },
    labels,
  )
  _, state = loop(tx, MODEL, 7)
  masks = sparsejax.get_masks(state)
  assert (int(masks["conv"].sum()), int(masks["dense"].sum())) == (60, 12)


def test_masked_around():
  keep = {"conv": True, "dense": False, "bias": False}
  tx = optax.masked(make(), keep)
  _, state = loop(tx, MODEL, 6)
  masks = sparsejax.get_masks(state)
  assert jax.tree.map(jnp.ndim, masks) == {"conv": 3, "dense": 0, "bias": 0}


def test_apply_if_finite_around():
  tx = optax.apply_if_finite(make(delta_t=2), 5)
  params, state = loop(tx, MODEL, 5)
  bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
  updates, after = jax.jit(tx.update)(bad, state, params)
  assert not differ(optax.apply_updates(params, updates), params)
  assert not differ(sparsejax.get_masks(after), sparsejax.get_masks(state))
  assert after.total_notfinite == 1
  updates, after = jax.jit(tx.update)(noise(params, 9), after, params)
  masks = sparsejax.get_masks(after)
  check(optax.apply_updates(params, updates), masks, sparsejax.nnz(masks))


class NnxLinear(nnx.Linear):
  def __call__(self, x):
    return sparsejax.matmul(x, self.kernel.get_value()) + self.bias


class EquinoxLinear(eqx.Module):
  kernel: Any
  bias: jax.Array

  def __call__(self, x):
    return sparsejax.matmul(x, self.kernel) + self.bias


def nnx_model():
  rngs = nnx.Rngs(0)
  model = nnx.Sequential(
    NnxLinear(8, 16, rngs=rngs), nnx.relu, NnxLinear(16, 4, rngs=rngs)
  )
  graph, params = nnx.split(model, nnx.Param)
  return params, lambda params, x: nnx.merge(graph, params)(x)


def equinox_model():
  keys = jax.random.split(KEY)
  model = tuple(
    EquinoxLinear(jax.random.normal(key, shape) / 3, jnp.zeros(shape[1]))
    for key, shape in zip(keys, ((8, 16), (16, 4)), strict=True)
  )
  return model, lambda model, x: model[1](jax.nn.relu(model[0](x)))


@pytest.mark.parametrize("make_model", [nnx_model, equinox_model])
@pytest.mark.slow
def test_the_non_zeros_alone(make_model):
  model, apply = make_model()

  def loss(model, x):
    return jnp.mean((apply(model, x) - Y) ** 2)

  def trained(tx):
    params, state = sparsejax.init(tx, model)
    grad = sparsejax.value_and_grad(loss, tx)
    first = sparsejax.get_masks(state)
    for step in range(8):
      now = tx.moves(step)
      _, grads = grad(params, state, X, update_masks=now)
      updates, state = tx.update(grads, state, params, update_masks=now)
      params = optax.apply_updates(params, updates)
    assert differ(first, sparsejax.get_masks(state))
    return params, state

  wanted, state = trained(make())
  tx = modes.kernels(make())
  params, packed_state = trained(tx)
  assert sum(p.size for p in jax.tree.leaves(params)) < 100
  found, _ = tx.unpack(params, packed_state)
  same = (sparsejax.get_masks(state), sparsejax.get_masks(packed_state))
  jax.tree.map(np.testing.assert_array_equal, *same)
  for got, want in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
