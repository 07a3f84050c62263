"""Layers of blocks on a GPU, for benchmarks/gpu.py."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax
from benchmarks import blocks as layers
from benchmarks import measure
from sparsejax import modes, packed, patterns

# Wanted of forward and backward pass, dense / ours, by side and sparsity.
WANTED = {
  128: {0.8: 2.5, 0.9: 4, 0.95: 6},
  64: {0.8: 2, 0.9: 3, 0.95: 5},
  32: {0.8: None, 0.9: None, 0.95: None},
}


class Sizes(NamedTuple):
  """Sizes of a transformer's block.

  Attributes:
    width: Features of a token.
    hidden: Features within the perceptron.
    heads: Of attention.
    batch: Sequences.
    length: Tokens of each.
    side: Of a block of weights.
  """

  width: int = 2048
  hidden: int = 8192
  heads: int = 16
  batch: int = 4
  length: int = 1024
  side: int = 64


TINY = Sizes(width=64, hidden=128, heads=2, batch=2, length=16, side=16)


def transformer(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Compares RigL's step of a transformer's block with the dense step."""
  sizes = TINY if tiny else Sizes()
  dense, ours = transformer_steps(sizes)
  yield measure.row(
    f"transformer block, d {sizes.width}, hidden {sizes.hidden}, "
    f"{sizes.batch * sizes.length} tokens, AdamW, blocks of {sizes.side}, "
    "90 %: dense / ours",
    measure.gain(ours, dense, rounds),
    least=2,
  )


def transformer_steps(sizes: Sizes) -> list[Callable[[], Any]]:
  """Makes the steps to time: dense, and RigL's on blocks with kernels.

  Weights and moments are float32, products bfloat16. The forward pass of blocks
  is compared with that of a dense product first.

  Args:
    sizes: The block's.
  """
  inner = optax.adamw(1e-4)
  tx = modes.kernels(
    sparsejax.rigl(
      inner,
      0.9,
      key=jax.random.key(0),
      t_end=75_000,
      pattern=patterns.blocks((sizes.side, sizes.side)),
      distribution=sparsejax.distributions.uniform,
    ),
    formats=packed.blocks(sizes.side),
  )
  weights = _weights(sizes)
  x = jax.random.normal(
    jax.random.key(1), (sizes.batch, sizes.length, sizes.width), jnp.bfloat16
  )
  forward = jax.jit(functools.partial(_block, heads=sizes.heads))

  def loss(weights, x):
    return jnp.mean(forward(weights, x).astype(jnp.float32) ** 2)

  def dense(weights, state):
    grads = jax.grad(loss)(weights, x)
    updates, state = inner.update(grads, state, weights)
    return optax.apply_updates(weights, updates), state

  value_and_grad = sparsejax.value_and_grad(loss, tx)

  def ours(values, state):
    _, grads = value_and_grad(values, state, x, update_masks=False)
    updates, state = tx.update(grads, state, values, update_masks=False)
    return optax.apply_updates(values, updates), state

  values, state = sparsejax.init(tx, weights)
  seen = sparsejax.forward_params(values, state)
  got, want = (
    np.asarray(forward(w, x), np.float32) for w in (seen, packed.unpack(seen))
  )
  np.testing.assert_allclose(
    got, want, rtol=0.05, atol=0.05 * np.abs(want).max()
  )
  return [
    _runner(dense, weights, inner.init(weights)),
    _runner(ours, values, state),
  ]


def _runner(step, *state):
  step = jax.jit(step, donate_argnums=(0, 1))
  state = jax.tree.map(jnp.copy, state)

  def run():
    nonlocal state
    state = step(*state)
    return state

  return run


def _weights(sizes: Sizes) -> dict[str, jax.Array]:
  width, hidden = sizes.width, sizes.hidden
  shapes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
  shapes |= {"up": (width, hidden), "down": (hidden, width)}
  keys = jax.random.split(jax.random.key(2), len(shapes))
  return {
    name: jax.random.normal(key, shape) * shape[0] ** -0.5
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def _block(weights: dict[str, Any], x: jax.Array, *, heads: int) -> jax.Array:
  """Applies attention and a perceptron, normed before and added after."""
  batch, length, width = x.shape
  split = (batch, length, heads, width // heads)
  normed = _normed(x)
  query, key, value = (
    sparsejax.matmul(normed, weights[name]).reshape(split)
    for name in ("query", "key", "value")
  )
  fused = "cudnn" if jax.default_backend() == "gpu" else None
  mixed = jax.nn.dot_product_attention(
    query, key, value, is_causal=True, implementation=fused
  )
  x = x + sparsejax.matmul(mixed.reshape(x.shape), weights["out"])
  hidden = jax.nn.gelu(sparsejax.matmul(_normed(x), weights["up"]))
  return x + sparsejax.matmul(hidden, weights["down"])


def _normed(x: jax.Array) -> jax.Array:
  square = jnp.mean(x.astype(jnp.float32) ** 2, -1, keepdims=True)
  return (x * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


def blocks(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Compares a layer of blocks with a dense one, by side and sparsity."""
  size, sides = (128, {32: WANTED[32]}) if tiny else (4096, WANTED)
  for side, wanted in sides.items():
    for sparsity, least in wanted.items():
      layer = layers.layer(side, sparsity, size, size)
      what = f"{size} x {size}, blocks of {side}, {100 * sparsity:g} %"
      times = measure.interleave(
        [layer.ours, layer.dense, layer.forward], rounds
      )
      yield measure.row(
        f"{what}, forward + backward: dense / ours",
        measure.ratio(times, 1, 0),
        least=least,
      )
      if (side == 128 and sparsity == 0.9) or tiny:
        teraflops = layer.flops / float(np.median(times[:, 2])) / 1e12
        yield measure.row(
          f"{what}, forward alone, TFLOP/s of what is not zero",
          teraflops,
          least=450,
        )
