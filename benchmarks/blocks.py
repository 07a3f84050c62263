"""Products with block-sparse matrices on a GPU, against dense ones.

Run `python -m benchmarks.blocks` where JAX sees a GPU: forward and backward
pass of a layer in bfloat16, with blocks of 16 to 128 at 80, 90 and 95 %.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import sparsejax
from benchmarks import measure
from sparsejax import packed, select
from sparsejax.kernels import blocks as kernels

_SIZE = flags.DEFINE_integer(
  "size", 4096, "Input and output features of the layer."
)
_BATCH = flags.DEFINE_integer("batch", 4096, "Number of examples or tokens.")
SPARSITIES = (0.8, 0.9, 0.95)


class Layer(NamedTuple):
  """Functions to time: a layer's passes, with block-sparse and dense weights.

  Attributes:
    ours: Forward and backward pass.
    dense: The same with dense weights.
    forward: Our forward pass alone.
    flops: Of `forward`: what is not zero.
  """

  ours: Callable[[], Any]
  dense: Callable[[], Any]
  forward: Callable[[], Any]
  flops: float


def layer(side: int, sparsity: float, size: int, batch: int) -> Layer:
  """Makes a layer in bfloat16, and compares its results with float32 ones.

  Args:
    side: Rows and columns of a block.
    sparsity: The share of blocks that are zero.
    size: Input and output features.
    batch: Number of examples or tokens.
  """
  count = size // side
  noise = jax.random.uniform(jax.random.key(0), (count, count))
  active = select.top_k_mask(noise, round((1 - sparsity) * noise.size))
  mask = np.kron(np.asarray(active), np.ones((side, side), bool))
  w = jax.random.normal(jax.random.key(1), mask.shape, jnp.bfloat16)
  w = jnp.where(mask, w, 0)
  tree = packed.pack(w, mask, formats=packed.blocks(side))
  values, structure = packed.split(tree)
  keys = jax.random.split(jax.random.key(2))
  x, g = (jax.random.normal(key, (batch, size), jnp.bfloat16) for key in keys)

  def product(values, structure, x):
    return sparsejax.matmul(x, packed.join(values, structure))

  ours = measure.forward_and_backward(product)
  dense = measure.forward_and_backward(lambda w, _, x: x @ w)
  forward = jax.jit(product)
  got = ours(values, structure, x, g)
  with jax.default_matmul_precision("highest"):
    exact = [z.astype(jnp.float32) for z in (w, x, g)]
    want = dense(exact[0], None, *exact[1:])
  wanted = (want[0], structure.gather(want[1]), want[2])
  for a, b in zip(got, wanted, strict=True):
    a, b = (np.asarray(z, np.float32) for z in (a, b))
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * np.abs(b).max())
  return Layer(
    ours=lambda: ours(values, structure, x, g),
    dense=lambda: dense(w, None, x, g),
    forward=lambda: forward(values, structure, x),
    flops=2.0 * batch * int(mask.sum()),
  )


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  if jax.default_backend() != "gpu":
    raise SystemExit("blocks have kernels on GPUs only; JAX sees none here")
  rows = []
  for side in kernels.SIDES:
    for sparsity in SPARSITIES:
      made = layer(side, sparsity, _SIZE.value, _BATCH.value)
      ratio = measure.gain(made.ours, made.dense, measure.ROUNDS.value)
      what = f"blocks of {side}, {100 * sparsity:g} %, bfloat16: dense / ours"
      rows.append(measure.row(what, ratio))
  measure.show("blocks on a GPU", "benchmarks.blocks", rows)


if __name__ == "__main__":
  app.run(main)
