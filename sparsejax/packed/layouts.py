"""Which format stores the places of a pattern's masks."""

from sparsejax.packed.blocks import blocks
from sparsejax.packed.formats import Format, fan_in, n_of_m
from sparsejax.patterns.layouts import FanIn, Layout, NOfM, SquareBlocks


def formats_of(layout: Layout | None) -> tuple[Format, ...]:
  """The formats that need less room for masks of a layout than for others.

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
