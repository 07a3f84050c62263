"""Products with the non-zero blocks of a matrix, on GPUs: which kernels.

A matrix [in, out] is cut into square blocks, of which some are there; they are
listed by columns of blocks ("rows" of the matrix transposed), as `multiply` of
this package lists weights. `hopper` and `triton` have the same two functions:
`multiply` visits the blocks that contribute to a tile of the result; `sample`
computes the gradient of each block.
"""

import importlib
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.kernels import devices

SIDES = (16, 32, 64, 128)  # Of blocks.
HOPPER_SIDES = (32, 64, 128)
_HOPPER_DTYPES = (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))


class Columns(NamedTuple):
  """The blocks of each column.

  Attributes:
    order: int32[columns], the columns, those with the most blocks first.
    pointers: int32[columns + 1]: column c has the entries from pointers[c] on.
    inputs: int32[n], the row of blocks of each entry.
  """

  order: jax.Array
  pointers: jax.Array
  inputs: jax.Array


def chosen(side: int, dtype: jnp.dtype) -> ModuleType | None:
  """Chooses kernels for the GPU that a program is traced for.

  Those of `hopper` need its tensor cores: compute capability 9.0, float16 or
  bfloat16, sides from 32, and JAX 0.10. Those of `triton` run from 8.0 on,
  Blackwell's cards included, and are taken where the card is not known.

  Args:
    side: Of a block, one of SIDES.
    dtype: Of activations.

  Returns:
    The module; None on older cards.

  Example:
    >>> chosen(16, jnp.float32).__name__  # Where there is no GPU.
    'sparsejax.kernels.triton'
  """
  card = devices.card()
  if card is not None and card.capability < (8, 0):
    return None
  hopper = (
    card is not None
    and card.hopper
    and side in HOPPER_SIDES
    and jnp.dtype(dtype) in _HOPPER_DTYPES
    and jax.__version_info__ >= (0, 10)
  )
  # Imported when needed: Pallas takes a while, and JAX may lack a half of it.
  name = "hopper" if hopper else "triton"
  return importlib.import_module(f"sparsejax.kernels.{name}")
