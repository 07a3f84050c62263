"""Products with the non-zero blocks of a matrix, in Pallas, for GPUs.

A matrix [in, out] is cut into square blocks, of which some are there; they are
listed by columns of blocks ("rows" of the matrix transposed), as `multiply` of
this package lists weights. One program makes a tile of the result, and visits
the blocks that contribute to it. `interpret=True` runs them anywhere.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

SIDES = (16, 32, 64, 128)  # Of blocks.
_TILE = 64  # Of the batch, at most.


def multiply(
  x: jax.Array,
  pointers: jax.Array,
  inputs: jax.Array,
  blocks: jax.Array,
  slots: jax.Array | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Multiplies activations by a matrix of blocks.

  Args:
    x: [batch, in].
    pointers: int32 [columns + 1]: column c of blocks has the entries from
      pointers[c] on.
    inputs: int32 [n], the row of blocks of each entry.
    blocks: [n, size, size], of x's dtype.
    slots: int32 [n]: which block each entry is, turned over: the matrix is then
      that of the blocks transposed. Each is its own by default, not turned.
    interpret: Whether to run without a GPU.

  Returns:
    [batch, columns * size], of x's dtype, summed in float32.
  """
  size, columns = blocks.shape[-1], pointers.shape[0] - 1
  turned = slots is not None
  if slots is None:
    slots = jnp.arange(inputs.shape[0], dtype=jnp.int32)
  batch, x, tile = _tiled(x)

  def kernel(x_ref, pointers_ref, inputs_ref, slots_ref, blocks_ref, y_ref):
    row, column = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(row * tile, tile)

    def visit(j, total):
      block = blocks_ref[slots_ref[j]]
      part = x_ref[rows, pl.ds(inputs_ref[j] * size, size)]
      block = block.T if turned else block
      return total + jnp.dot(part, block, preferred_element_type=jnp.float32)

    total = lax.fori_loop(
      pointers_ref[column],
      pointers_ref[column + 1],
      visit,
      jnp.zeros((tile, size), jnp.float32),
    )
    y_ref[...] = total.astype(y_ref.dtype)

  y = pl.pallas_call(
    kernel,
    grid=(len(x) // tile, columns),
    out_specs=pl.BlockSpec((tile, size), lambda row, column: (row, column)),
    out_shape=jax.ShapeDtypeStruct((len(x), columns * size), x.dtype),
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
  )(x, pointers, inputs, slots, blocks)
  return y[:batch]


def sample(
  x: jax.Array,
  g: jax.Array,
  columns: jax.Array,
  inputs: jax.Array,
  size: int,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Computes the blocks of x^T g at the entries of a block-sparse matrix.

  Args:
    x: [batch, in].
    g: [batch, out].
    columns: int32 [n], the column of blocks of each entry.
    inputs: int32 [n], its row.
    size: Of a block.
    interpret: Whether to run without a GPU.

  Returns:
    [n, size, size], of x's dtype, summed in float32.
  """
  _, x, tile = _tiled(x)
  _, g, _ = _tiled(g)

  def kernel(x_ref, g_ref, columns_ref, inputs_ref, out_ref):
    j = pl.program_id(0)
    into = pl.ds(inputs_ref[j] * size, size)
    out = pl.ds(columns_ref[j] * size, size)

    def visit(i, total):
      rows = pl.ds(i * tile, tile)
      return total + jnp.dot(
        x_ref[rows, into].T,
        g_ref[rows, out],
        preferred_element_type=jnp.float32,
      )

    total = lax.fori_loop(
      0, len(x) // tile, visit, jnp.zeros((size, size), jnp.float32)
    )
    out_ref[...] = total.astype(out_ref.dtype)

  return pl.pallas_call(
    kernel,
    grid=(len(inputs),),
    out_specs=pl.BlockSpec((None, size, size), lambda j: (j, 0, 0)),
    out_shape=jax.ShapeDtypeStruct((len(inputs), size, size), x.dtype),
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
  )(x, g, columns, inputs)


def _tiled(x):
  """Pads the batch of x to whole tiles, of at least 16."""
  batch = x.shape[0]
  tile = min(_TILE, max(16, pl.next_power_of_2(batch)))
  return batch, jnp.pad(x, ((0, -batch % tile), (0, 0))), tile
