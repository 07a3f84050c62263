"""Products with the non-zero blocks of a matrix, by Pallas on Triton.

For GPUs of compute capability 8.0 and above. One program makes a tile of the
result, and visits the blocks that contribute to it; with `interpret=True` they
run anywhere.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from sparsejax.kernels.blocks import Columns

_TILE = 64  # Of the batch, at most.


def multiply(
  x: jax.Array,
  columns: Columns,
  blocks: jax.Array,
  slots: jax.Array | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Multiplies activations by a matrix of blocks.

  Args:
    x: [batch, in].
    columns: The matrix.
    blocks: [n, side, side], of x's dtype.
    slots: int32[n]: which block each entry is, transposed: the matrix is then
      that of the blocks transposed. Each is its own by default, as it is.
    interpret: Whether to run without a GPU.

  Returns:
    [batch, columns * side], of x's dtype, summed in float32.
  """
  side, count = blocks.shape[-1], columns.pointers.shape[0] - 1
  turned = slots is not None
  if slots is None:
    slots = jnp.arange(columns.inputs.shape[0], dtype=jnp.int32)
  batch, x, tile = _tiled(x)

  def kernel(x_ref, pointers_ref, inputs_ref, slots_ref, blocks_ref, y_ref):
    row, column = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(row * tile, tile)

    def visit(j, total):
      block = blocks_ref[slots_ref[j]]
      part = x_ref[rows, pl.ds(inputs_ref[j] * side, side)]
      block = block.T if turned else block
      return total + jnp.dot(part, block, preferred_element_type=jnp.float32)

    total = lax.fori_loop(
      pointers_ref[column],
      pointers_ref[column + 1],
      visit,
      jnp.zeros((tile, side), jnp.float32),
    )
    y_ref[...] = total.astype(y_ref.dtype)

  y = pl.pallas_call(
    kernel,
    grid=(len(x) // tile, count),
    out_specs=pl.BlockSpec((tile, side), lambda row, column: (row, column)),
    out_shape=jax.ShapeDtypeStruct((len(x), count * side), x.dtype),
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
  )(x, columns.pointers, columns.inputs, slots, blocks)
  return y[:batch]


def sample(
  x: jax.Array,
  g: jax.Array,
  inputs: jax.Array,
  rows: Columns,
  slots: jax.Array,
  side: int,
  dtype: jnp.dtype,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Computes the blocks of x^T g at the entries of a block-sparse matrix.

  Args:
    x: [batch, in].
    g: [batch, out].
    inputs: int32[n], the row of blocks of each block.
    rows: The blocks of each row, as `Columns` of the matrix transposed.
    slots: int32[n]: which block each entry of `rows` is.
    side: Of a block.
    dtype: Of the result.
    interpret: Whether to run without a GPU.

  Returns:
    [n, side, side] of `dtype`, summed in float32; 0 for a block that no row
    has.
  """
  _, x, tile = _tiled(x)
  _, g, _ = _tiled(g)

  def kernel(
    x_ref, g_ref, inputs_ref, pointers_ref, outputs_ref, slots_ref, out_ref
  ):
    j = pl.program_id(0)
    used = j < pointers_ref[rows.pointers.shape[0] - 1]
    # What no row has are the last blocks.
    slot = jnp.where(used, slots_ref[j], j)
    into = pl.ds(inputs_ref[slot] * side, side)
    out = pl.ds(outputs_ref[j] * side, side)

    def visit(i, total):
      batch = pl.ds(i * tile, tile)
      return total + jnp.dot(
        x_ref[batch, into].T,
        g_ref[batch, out],
        preferred_element_type=jnp.float32,
      )

    begin = jnp.int32(0)  # Of the type of the end, as Triton wants them.
    end = jnp.where(used, jnp.int32(len(x) // tile), begin)
    start = jnp.zeros((side, side), jnp.float32)
    total = lax.fori_loop(begin, end, visit, start)
    out_ref[slot] = total.astype(out_ref.dtype)

  return pl.pallas_call(
    kernel,
    grid=(len(inputs),),
    out_shape=jax.ShapeDtypeStruct((len(inputs), side, side), dtype),
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
  )(x, g, inputs, rows.pointers, rows.inputs, slots)


def _tiled(x):
  """Pads the batch of x to whole tiles, of at least 16."""
  batch = x.shape[0]
  tile = min(_TILE, max(16, pl.next_power_of_2(batch)))
  return batch, jnp.pad(x, ((0, -batch % tile), (0, 0))), tile
