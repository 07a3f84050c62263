"""Matrices of square blocks that are zero, or not, as one."""

import functools
import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.kernels import blocks as choice
from sparsejax.masks import places
from sparsejax.nodes import cotangent, node, without_zeros
from sparsejax.packed import matmul
from sparsejax.packed.formats import slots_of
from sparsejax.packed.structure import Format, Structure


@node(
  *("order", "pointers", "inputs"),
  *("back_order", "back_pointers", "back_outputs", "back_slots"),
  static=("sizes", "side", "kernel"),
)
class Blocks(Structure):
  """The rows of blocks in each column of blocks, and the columns in each row.

  Attributes:
    order: int32[columns]: the columns, those with the most blocks first.
    pointers: int32[columns + 1]: the blocks of column c begin at pointers[c].
    inputs: int32[n]: the row of each block.
    back_order: int32[rows]: the rows, those with the most blocks first.
    back_pointers: int32[rows + 1]: the entries of row r begin at
      back_pointers[r].
    back_outputs: int32[n]: the column of each of these entries.
    back_slots: int32[n]: which block each of these entries is.
    sizes: (in, out).
    side: The side length of a block.
    kernel: Whether products use the kernels, on GPUs.
  """

  order: jax.Array
  pointers: jax.Array
  inputs: jax.Array
  back_order: jax.Array
  back_pointers: jax.Array
  back_outputs: jax.Array
  back_slots: jax.Array
  sizes: tuple[int, int]
  side: int
  kernel: bool

  def columns(self) -> jax.Array:
    """Finds the column of each block, int32[n]; out of range where unused."""
    # Columns begun so far, without a search: see `_listed`.
    begun = jnp.zeros(self.inputs.shape[0], jnp.int32)
    begun = begun.at[self.pointers[1:]].add(1, mode="drop")
    return jnp.cumsum(begun, dtype=jnp.int32)

  def places(self) -> jax.Array:
    """Lists the slots' indices in the flat matrix, row by row of each block."""
    columns = self.columns()
    first = (self.inputs * self.sizes[1] + columns) * self.side
    within = jnp.arange(self.side, dtype=jnp.int32)
    within = within[:, None] * self.sizes[1] + within
    used = columns[:, None, None] < self.sizes[1] // self.side
    found = first[:, None, None] + within
    return jnp.where(used, found, math.prod(self.sizes)).reshape(-1)

  def used(self) -> jax.Array:
    """Marks the slots that are in use, bool[..., slots]."""
    slots = jnp.arange(self.inputs.shape[-1] * self.side**2, dtype=jnp.int32)
    return slots < self.pointers[..., -1:] * self.side**2

  def moved(self, mask: jax.Array) -> "Blocks":
    """Makes the structure of another mask, with the same number of slots."""
    slots = self.inputs.shape[-1] * self.side**2
    return blocks(self.side, kernel=self.kernel).place(mask, slots)

  def product(self, x: jax.Array, packed) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype."""
    if not self.kernel or packed.scales is not None:
      return matmul.dense_product(x, packed)
    return lax.platform_dependent(
      x, packed, cuda=block_product, default=matmul.dense_product
    )


def blocks(side: int, *, kernel: bool = True) -> Format:
  """Makes the format of square blocks: four integers for each.

  Args:
    side: The side length of a block; kernels support 16, 32, 64 and 128.
    kernel: Whether products use the kernels, on GPUs, if they support `side`.
  """
  kernel = kernel and side in choice.SIDES

  def tiles(mask):
    rows, columns = (n // side for n in mask.shape)
    return mask.reshape(rows, side, columns, side)

  def slots(mask: np.ndarray) -> int:
    return max(1, int(tiles(mask)[:, 0, :, 0].sum())) * side**2

  def place(mask: jax.Array, slots: int) -> Structure:
    there = tiles(mask)[:, 0, :, 0]
    n = slots // side**2
    by_column, by_row = _listed(there.T, n), _listed(there, n)
    return Blocks(
      *_ordered(there.T, by_column),
      *_ordered(there, by_row),
      slots_of(there, by_column, by_row),
      mask.shape,
      side,
      kernel,
    )

  def fits(mask: np.ndarray) -> bool:
    if mask.ndim != 2 or any(n % side for n in mask.shape):
      return False
    parts = tiles(mask)
    return bool(np.all(parts == parts[:, :1, :, :1]))

  return Format(f"blocks_{side}", slots, place, fits)


def _listed(there, n):
  """Lists the first n blocks that are there, as `masks.places`."""
  # That is faster on a CPU, and has a loop, which a GPU launches turn by turn.
  return lax.platform_dependent(
    there,
    cpu=functools.partial(places, k=n),
    default=functools.partial(_scattered, n=n),
  )


def _scattered(there, n):
  rank = jnp.cumsum(there.reshape(-1), dtype=jnp.int32) - 1
  entry = jnp.where(there.reshape(-1), rank, n)
  number = jnp.arange(there.size, dtype=jnp.int32)
  at = jnp.full(n, there.size, jnp.int32)
  return at.at[entry].set(number, mode="drop")


def _ordered(there, at):
  """Lists rows by their blocks, most first; row pointers; columns of places."""
  counts = jnp.sum(there, axis=1, dtype=jnp.int32)
  order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
  ends = jnp.minimum(jnp.cumsum(counts), at.shape[0])
  pointers = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
  return order, pointers, jnp.where(at < there.size, at % there.shape[1], 0)


def block_product(
  x: jax.Array,
  packed,
  *,
  kernels: ModuleType | None = None,
  interpret: Any = False,
) -> jax.Array:
  """Multiplies `x [..., in]` by a matrix of blocks, with the kernels.

  Args:
    x: Activations.
    packed: The matrix, a `Packed` of `Blocks`.
    kernels: `sparsejax.kernels.hopper` or `triton`; those for the GPU by
      default, if there are some.
    interpret: How these run without a GPU, if they are to.

  Returns:
    [..., out], of x's dtype, summed in float32.
  """
  if kernels is None:
    kernels = choice.chosen(packed.structure.side, x.dtype)
  if kernels is None:
    return matmul.dense_product(x, packed)
  run = _Kernels(kernels, interpret)
  y = _by_blocks(run, x.reshape(-1, x.shape[-1]), packed)
  return y.reshape(*x.shape[:-1], -1)


class _Kernels(NamedTuple):
  module: ModuleType
  interpret: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_blocks(kernels, x, packed):
  s = packed.structure
  return kernels.module.multiply(
    x,
    choice.Columns(s.order, s.pointers, s.inputs),
    _cut(packed, x.dtype),
    interpret=kernels.interpret,
  )


def _by_blocks_forward(kernels, x, packed):
  return _by_blocks(kernels, x, packed), (x, without_zeros(packed))


def _by_blocks_backward(kernels, saved, g):
  x, packed = saved
  s, dtype = packed.structure, packed.values.dtype
  rows = choice.Columns(s.back_order, s.back_pointers, s.back_outputs)
  of_x = kernels.module.multiply(
    *(g, rows, _cut(packed, g.dtype), s.back_slots),
    interpret=kernels.interpret,
  )
  sampled = kernels.module.sample(
    *(x, g, s.inputs, rows, s.back_slots, s.side, dtype),
    interpret=kernels.interpret,
  )
  found = None
  if packed.probe is not None:
    of_x, found = matmul.read_off(packed, (x.T @ g).astype(dtype), of_x)
  values = sampled.reshape(-1)
  return of_x, cotangent(packed, found, values=values, structure=None)


_by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


def _cut(packed, dtype):
  """Reshapes the values to [blocks, side, side]."""
  side = packed.structure.side
  return packed.values.reshape(-1, side, side).astype(dtype)
