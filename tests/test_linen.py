"""Linen models on packed params: outputs and gradients of the dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sparsejax
from experiments import models
from sparsejax import packed
from sparsejax.linen import packed_layers


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
  jax.tree.map(
    np.testing.assert_array_equal,
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
