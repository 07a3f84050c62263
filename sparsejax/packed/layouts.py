"""Which format stores the places of a pattern's masks."""

from sparsejax.packed.blocks import blocks
from sparsejax.packed.formats import fan_in
from sparsejax.packed.n_of_m import n_of_m
from sparsejax.packed.structure import Format
from sparsejax.patterns.layouts import FanIn, Layout, NOfM, SquareBlocks


def formats_of(layout: Layout | None) -> tuple[Format, ...]:
  """Makes the formats that need less room for masks of a layout.

  Args:
    layout: What the masks have in common, of a `patterns.Pattern`.

  Returns:
    The formats, best first; none if there is nothing to make use of.
  """
  match layout:
    case NOfM(n, m, axis):
      return (n_of_m(n, m, axis),)
    case FanIn():
      return (fan_in(),)
    case SquareBlocks(side):
      return (blocks(side),)
  return ()
