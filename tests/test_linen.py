"""Linen models on packed params: outputs and gradients of the dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sparsejax
from experiments import models
from sparsejax import modes, packed
from sparsejax.linen import packed_layers
from tests.marks import slow


def masks_of(params):
  tx = sparsejax.static(optax.identity(), 0.8, key=jax.random.key(0))
  return sparsejax.get_masks(sparsejax.init(tx, params)[1])


@pytest.mark.parametrize(
  ("name", "shape", "options"),
  [
    ("lenet_300_100", (4, 28, 28, 1), {}),
    ("lenet_300_100", (4, 28, 28, 1), {"dtype": jnp.bfloat16}),
    ("small_conv", (4, 28, 28, 1), {}),
    ("resnet", (2, 16, 16, 3), {"depth": 8}),
  ],
)
@pytest.mark.slow
def test_models_give_the_bits_of_dense_params(name, shape, options):
  model = models.create(name, 10, **options)
  x = jax.random.normal(jax.random.key(1), shape)
  variables = model.init(jax.random.key(2), x, False)
  rest = {k: v for k, v in variables.items() if k != "params"}
  masks = masks_of(variables["params"])
  dense = sparsejax.apply_masks(variables["params"], masks)
  values, structure = packed.split(packed.pack(dense, masks))

  def loss(params):
    y, _ = model.apply(
      {"params": params, **rest}, x, True, mutable=["batch_stats"]
    )
    return jnp.sum(y**2)

  def packed_loss(values):
    with nn.intercept_methods(packed_layers):
      return loss(packed.join(values, structure))

  wanted, gradient = jax.jit(jax.value_and_grad(loss))(dense)
  got, found = jax.jit(jax.value_and_grad(packed_loss))(values)
  assert got == wanted
  unpacked = packed.unpack(packed.join(found, structure))
  same = np.testing.assert_array_equal
  if name == "resnet":  # each program adds up BatchNorm's sums its own way
    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(
    same,
    unpacked,
    sparsejax.apply_masks(gradient, masks),
  )


def test_what_is_not_packed_runs_as_ever():
  model = nn.Sequential([nn.Dense(4), nn.Dense(3)])
  variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
  params = dict(variables["params"])
  kernel = params["layers_1"]["kernel"]
  mask = np.asarray(kernel) > 0
  params["layers_1"] = {
    **params["layers_1"],
    "kernel": packed.pack(jnp.where(mask, kernel, 0), mask),
  }
  dense = packed.unpack(params)
  x = jnp.ones((2, 5))
  with nn.intercept_methods(packed_layers):
    got = model.apply({"params": params}, x)
  np.testing.assert_array_equal(got, model.apply({"params": dense}, x))


class Tied(nn.Module):
  """An embedding that is used by both of its methods, and read."""

  def setup(self):
    self.table, self.layer = nn.Embed(11, 8), nn.Dense(8)

  def __call__(self, x, train):
    hidden = self.layer(self.table(jnp.arange(4) % 3)) + x
    return self.table.attend(hidden) + hidden @ self.table.embedding.T


class Positions(nn.Module):
  """A module with a matrix of its own beside layers that have a state."""

  @nn.compact
  def __call__(self, x, train):
    x = x + self.param("positions", nn.initializers.normal(1.0), x.shape)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(8)(nn.BatchNorm(use_running_average=not train)(x))


class Own(nn.Module):
  def setup(self):
    self.w = self.param("w", nn.initializers.normal(1.0), (8, 8))
    self.layer = nn.Dense(8)

  def encoded(self, x):
    return self.layer(x) @ self.w

  def __call__(self, x, train):
    return self.encoded(x)


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return jnp.tanh(nn.Dense(8)(x)), None


def scan(layer):
  return nn.scan(
    layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
  )


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(8)(scan(Layer)()(x, None)[0])


class ScannedFunction(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x, _ = scan(lambda layer, x, _: layer(x, None))(Layer(), x, None)
    return nn.Dense(8)(x)


class Mapped(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    layers = nn.vmap(
      nn.Dense,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=None,
      axis_size=3,
    )
    return nn.Dense(8)(layers(8)(x).sum(0))


X = jax.random.normal(jax.random.key(1), (4, 8))


def matrices(path, leaf):
  return leaf.ndim > 1


def trained(model, mode, prunable=matrices):
  """The last loss, what the model writes, and the masks after two moves."""
  variables = model.init(jax.random.key(0), X, False)
  rest = {k: v for k, v in variables.items() if k != "params"}
  algorithm = sparsejax.rigl(
    optax.sgd(0.1),
    0.5,
    key=jax.random.key(1),
    t_end=50,
    delta_t=1,
    prunable=prunable,
  )
  tx = mode(algorithm)
  values, state = sparsejax.init(tx, variables["params"])

  def loss(params):
    with nn.intercept_methods(packed_layers):
      y, written = model.apply(
        {"params": params, **rest},
        X,
        True,
        rngs={"dropout": jax.random.key(7)},
        mutable=["batch_stats"],
      )
    return jnp.mean((y - 1) ** 2), written

  value_and_grad = sparsejax.value_and_grad(loss, tx, has_aux=True)

  @jax.jit
  def step(values, state):
    result, grads = value_and_grad(values, state, update_masks=True)
    updates, state = tx.update(grads, state, values, update_masks=True)
    return optax.apply_updates(values, updates), state, result

  for _ in range(2):
    values, state, result = step(values, state)
  return result, sparsejax.get_masks(state)


def masked(tx):
  return tx


def agree(got, wanted):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got[0], wanted[0]
  )
  jax.tree.map(np.testing.assert_array_equal, got[1], wanted[1])


@pytest.mark.parametrize("kind", [slow(Tied), slow(Positions), Own])
def test_layers_with_matrices_of_their_own_have_the_masks_of_masked_mode(kind):
  agree(trained(kind(), modes.packed), trained(kind(), masked))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Scanned, ScannedFunction, Mapped])
def test_stacks_of_layers_have_the_masks_of_masked_mode(kind):
  with pytest.warns(UserWarning, match=r"_0/kernel .* dense for as long"):
    got = trained(kind(), modes.packed)
  agree(got, trained(kind(), masked))


def test_packed_layers_that_are_normalized_are_refused():
  class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.WeightNorm(nn.Dense(8))(x)

  with pytest.raises(ValueError, match=r"/kernel: .*WeightNorm.*prunable"):
    trained(Normalized(), modes.packed)


def test_what_a_model_itself_refuses_is_told_as_ever():
  class Broken(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      if train:
        raise ValueError("what the user meets")
      return scan(Layer)()(x, None)[0]

  with pytest.raises(ValueError, match="what the user meets"):
    trained(Broken(), modes.packed)
