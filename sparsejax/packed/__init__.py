"""Packed arrays: only their non-zeros are stored and trained.

`pack` takes dense arrays and their masks, and replaces each masked leaf by a
`Packed`: a node with the values of the non-zeros, and a structure that says
where they belong. `split` separates values and structures, `join` undoes that,
and `unpack` returns dense arrays. `sparsejax.matmul` multiplies by a packed
matrix. To train on packed arrays, use `sparsejax.modes`.
"""

from sparsejax.packed.arrays import (
  Packed,
  is_packed,
  is_structure,
  join,
  pack,
  quantize,
  split,
  unpack,
)
from sparsejax.packed.blocks import Blocks, blocks
from sparsejax.packed.formats import (
  Bits,
  FanIn,
  Flat,
  Rows,
  bits,
  fan_in,
  fitting,
  flat,
  rows,
  stacked,
)
from sparsejax.packed.n_of_m import NOfM, n_of_m
from sparsejax.packed.row_bits import RowBits, row_bits
from sparsejax.packed.structure import Format, Structure
from sparsejax.packed.validation import check

__all__ = [
  "Bits",
  "Blocks",
  "FanIn",
  "Flat",
  "Format",
  "NOfM",
  "Packed",
  "RowBits",
  "Rows",
  "Structure",
  "bits",
  "blocks",
  "check",
  "fan_in",
  "fitting",
  "flat",
  "is_packed",
  "is_structure",
  "join",
  "n_of_m",
  "pack",
  "quantize",
  "row_bits",
  "rows",
  "split",
  "stacked",
  "unpack",
]
