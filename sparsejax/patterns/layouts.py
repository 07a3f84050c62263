"""What all masks of a pattern have in common, which saves room to store them.

How places are then stored is for `packed` to say.
"""

from typing import NamedTuple


class NOfM(NamedTuple):
  """Of every m weights in a row along an axis, n are active."""

  n: int
  m: int
  axis: int


class FanIn(NamedTuple):
  """Every output of a matrix [in, out] has as many active inputs."""


class SquareBlocks(NamedTuple):
  """The last two axes are divided into blocks, which are active as a whole."""

  side: int


Layout = NOfM | FanIn | SquareBlocks
