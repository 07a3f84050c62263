"""Products with block-sparse matrices on a GPU, against dense ones.

Run `python -m benchmarks.blocks` where JAX sees a GPU: forward and backward
pass of a layer in bfloat16, with blocks of 16 to 128 at 80, 90 and 95 %.
"""

from collections.abc import Callable, Sequence

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


def layers(side: int, sparsity: float) -> list[Callable]:
  """Makes the two functions to time: with block-sparse and dense weights.

  Their results are compared first.

  Args:
    side: Rows and columns of a block.
    sparsity: The share of blocks that are zero.
  """
  count = _SIZE.value // side
  noise = jax.random.uniform(jax.random.key(0), (count, count))
  active = select.top_k_mask(noise, round((1 - sparsity) * noise.size))
  mask = np.kron(np.asarray(active), np.ones((side, side), bool))
  w = jax.random.normal(jax.random.key(1), mask.shape, jnp.bfloat16)
  w = jnp.where(mask, w, 0)
  tree = packed.pack(w, mask, formats=packed.blocks(side))
  values, structure = packed.split(tree)
  keys = jax.random.split(jax.random.key(2))
  x, g = (
    jax.random.normal(key, (_BATCH.value, _SIZE.value), jnp.bfloat16)
    for key in keys
  )

  sparse = measure.forward_and_backward(
    lambda values, structure, x: sparsejax.matmul(
      x, packed.join(values, structure)
    )
  )
  dense = measure.forward_and_backward(lambda w, _, x: x @ w)
  got, want = sparse(values, structure, x, g), dense(w, None, x, g)
  wanted = (want[0], structure.gather(want[1]), want[2])
  for a, b in zip(got, wanted, strict=True):
    a, b = (np.asarray(z, np.float32) for z in (a, b))
    np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05 * np.abs(b).max())
  return [lambda: sparse(values, structure, x, g), lambda: dense(w, None, x, g)]


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  if jax.default_backend() != "gpu":
    raise SystemExit("blocks have kernels on GPUs only; JAX sees none here")
  rows = []
  for side in kernels.SIDES:
    for sparsity in SPARSITIES:
      ratio = measure.gain(*layers(side, sparsity), measure.ROUNDS.value)
      what = f"blocks of {side}, {100 * sparsity:g} %, bfloat16: dense / ours"
      rows.append(measure.row(what, ratio))
  measure.show("blocks on a GPU", "benchmarks.blocks", rows)


if __name__ == "__main__":
  app.run(main)
