"""Products with blocks, compiled for an H100 down to its machine code."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import sparsejax
import sparsejax.linen
from sparsejax import packed
from sparsejax.kernels import blocks, hopper, tiles
from tests.compiled.harness import compile_for_h100, counts

INDICES = jax.ShapeDtypeStruct((40,), jnp.int32)


def tables(rows):
  pointers = jax.ShapeDtypeStruct((rows + 1,), jnp.int32)
  order = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return blocks.Columns(order, pointers, INDICES)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("side", blocks.HOPPER_SIDES)
def test_a_layer_is_three_kernels_and_no_copies(side, dtype):
  there = np.random.default_rng(0).random((8, 8)) < 0.3
  mask = np.kron(there, np.ones((side, side), bool))
  w = packed.pack(mask.astype(dtype), mask, formats=packed.blocks(side))
  x = jax.ShapeDtypeStruct((1000, len(mask)), dtype)

  def layer(values, structure, x, g):
    def product(values, x):
      return sparsejax.matmul(x, packed.Packed(values, structure))

    y, pull = jax.vjp(product, values, x)
    return y, *pull(g)

  compiled = compile_for_h100(layer, w.values, w.structure, x, x)
  found = counts(compiled)
  assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 3
  assert (found.kernels, found.copies, found.whiles) == (3, 0, 0)
  assert found.temporary_bytes < 2**20


@pytest.mark.parametrize("side", blocks.HOPPER_SIDES)
@pytest.mark.parametrize("product", tiles.PRODUCTS)
def test_the_largest_candidates_compile(product, side):
  # Of each size, the one of most stages: others need less shared memory.
  largest = {t.size: t for t in tiles.candidates(product, side)}
  x = jax.ShapeDtypeStruct((4096, 16 * side), jnp.bfloat16)
  values = jax.ShapeDtypeStruct((40, side, side), jnp.bfloat16)
  for tiling in largest.values():
    if product == "weight":
      run = functools.partial(
        hopper.sample, side=side, dtype=jnp.float32, tiling=tiling
      )
      args = x, x, INDICES, tables(16), INDICES
    else:
      run = functools.partial(hopper.multiply, tiling=tiling)
      slots = None if product == "forward" else INDICES
      args = x, tables(16), values, slots
    assert counts(compile_for_h100(run, *args)).kernels == 1


class Equinox(eqx.Module):
  kernel: packed.Packed

  def __call__(self, x):
    return sparsejax.matmul(x, self.kernel)


class Nnx(nnx.Module):
  def __init__(self, kernel):
    self.kernel = nnx.Param(kernel)

  def __call__(self, x):
    return sparsejax.matmul(x, self.kernel.get_value())


def linen_layer(kernel, x):
  layer = nn.Dense(kernel.structure.sizes[1], use_bias=False, dtype=x.dtype)
  with nn.intercept_methods(sparsejax.linen.packed_layers):
    return layer.apply({"params": {"kernel": kernel}}, x)


@pytest.mark.parametrize(
  "layer",
  [
    pytest.param(linen_layer, id="linen"),
    pytest.param(lambda kernel, x: Nnx(kernel)(x), id="nnx"),
    pytest.param(lambda kernel, x: Equinox(kernel)(x), id="equinox"),
  ],
)
def test_layers_of_libraries_use_the_kernels(layer):
  mask = np.kron(np.eye(4, 2, dtype=bool), np.ones((64, 64), bool))
  w = packed.pack(mask.astype(jnp.bfloat16), mask, formats=packed.blocks(64))
  x = jax.ShapeDtypeStruct((2, 512, 256), jnp.bfloat16)

  def loss(values, x):
    y = layer(packed.Packed(values, w.structure), x)
    return jnp.sum(y.astype(jnp.float32) ** 2)

  compiled = compile_for_h100(jax.grad(loss, (0, 1)), w.values, x)
  assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 3
  assert counts(compiled).copies == 0


def training_step(**update):
  """A step of RigL on blocks of two matrices, compiled."""
  tx = sparsejax.modes.kernels(
    sparsejax.rigl(
      optax.adamw(1e-3),
      0.75,
      key=jax.random.key(0),
      t_end=100,
      pattern=sparsejax.patterns.blocks((64, 64)),
    ),
    formats=packed.blocks(64),  # What a GPU's default is, from the pattern.
  )
  weights = {"up": jnp.ones((256, 512)), "down": jnp.ones((512, 256))}
  values, state = sparsejax.init(tx, weights)

  def loss(weights, x):
    y = jax.nn.relu(sparsejax.matmul(x, weights["up"]))
    y = sparsejax.matmul(y, weights["down"])
    return jnp.mean((x - y).astype(jnp.float32) ** 2)

  def step(values, state, x):
    value_and_grad = sparsejax.value_and_grad(loss, tx)
    _, grads = value_and_grad(values, state, x, **update)
    updates, state = tx.update(grads, state, values, **update)
    return optax.apply_updates(values, updates), state

  x = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16)
  return compile_for_h100(step, values, state, x, donate_argnums=(0, 1))


def test_a_training_step_of_blocks_has_no_copies():
  compiled = training_step(update_masks=False)
  found = counts(compiled)
  # The first matrix has no gradient of its input to compute.
  assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 5
  assert (found.copies, found.whiles, found.conditionals) == (0, 0, 0)
  assert found.kernels <= 5 + 9


def test_blocks_move_without_loops():
  found = counts(training_step(update_masks=True))
  assert (found.whiles, found.conditionals) == (0, 0)


@pytest.mark.filterwarnings("ignore:The Pallas Triton:DeprecationWarning")
@pytest.mark.parametrize(
  ("side", "dtype"), [(16, jnp.bfloat16), (16, jnp.float32), (64, jnp.float32)]
)
def test_triton_takes_what_hopper_does_not(side, dtype):
  mask = np.ones((2 * side, 2 * side), bool)
  w = packed.pack(mask.astype(dtype), mask, formats=packed.blocks(side))
  x = jax.ShapeDtypeStruct((64, len(mask)), dtype)

  def loss(values, x):
    y = sparsejax.matmul(x, packed.Packed(values, w.structure))
    return jnp.sum(y.astype(jnp.float32) ** 2)

  compiled = compile_for_h100(jax.grad(loss, (0, 1)), w.values, x)
  calls = compiled.as_text().count('custom_call_target="__gpu$xla.gpu.triton"')
  assert calls == 3, compiled.as_text()
