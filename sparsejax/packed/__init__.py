"""Only the non-zeros: arrays of which nothing else is stored or trained.

`pack` makes a pytree of dense arrays and masks one in which masked leaves are
`Packed`: nodes with the non-zeros' values, and a structure that says where they
belong. `split` parts the two, `join` undoes that, `unpack` gives dense arrays
back. `sparsejax.matmul` multiplies by a packed matrix; see also
`sparsejax.modes`, in which whole trainings run on packed arrays.
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
