"""Sizes of tiles of the products with blocks on Hopper, by card.

`python -m benchmarks.blocks --autotune` times `candidates` on a GPU, and prints
entries for TILES.
"""

from typing import NamedTuple

# Shared memory of a program, in bytes, less what barriers take.
SHARED = 227 * 1024 - 1024
PRODUCTS = ("forward", "input", "weight")
DEPTH = 64  # Of a step: features of blocks, or examples of their gradient.


class Tile(NamedTuple):
  """How much a program makes, and how far it loads ahead.

  Attributes:
    size: Examples of a tile, 128 or 256; for the gradient of weights, blocks of
      a program.
    stages: Steps whose operands are in shared memory at once.
  """

  size: int
  stages: int


# By card, product and side; "" is any card. Those of "" have not been timed:
# the largest tile of the batch, whose operands are read least often from the
# second-level cache, in as many stages as shared memory holds.
TILES = {
  ("", "forward", 128): Tile(256, 4),
  ("", "forward", 64): Tile(256, 4),
  ("", "forward", 32): Tile(256, 8),
  ("", "input", 128): Tile(256, 4),
  ("", "input", 64): Tile(256, 4),
  ("", "input", 32): Tile(256, 8),
  ("", "weight", 128): Tile(1, 5),
  ("", "weight", 64): Tile(4, 3),
  ("", "weight", 32): Tile(4, 4),
}


def tile(card: str, product: str, side: int) -> Tile:
  """Looks up the tile of a product.

  Args:
    card: Its name, as `devices.Card` has it.
    product: One of PRODUCTS.
    side: Of a block.

  Example:
    >>> tile("NVIDIA H100 80GB HBM3", "forward", 128)
    Tile(size=256, stages=4)
  """
  return TILES.get((card, product, side)) or TILES["", product, side]


def shared_bytes(product: str, side: int, tile: Tile) -> int:
  """Counts the shared memory of a program: operands of all stages, results.

  Args:
    product: One of PRODUCTS.
    side: Of a block.
    tile: Its tile.

  Returns:
    Bytes, where the gradient of weights is float32.

  Example:
    >>> shared_bytes("forward", 128, Tile(256, 4)) // 1024
    224
  """
  if product == "weight":
    operands = tile.size * DEPTH * (max(side, 64) + side) * 2
    results = 2 * 64 * side * 4
  else:
    depth = min(side, DEPTH)
    operands = (tile.size + side) * depth * 2
    pieces = tile.size // 128 * (side // depth)
    results = 2 * min(2, pieces) * 64 * depth * 2
  return tile.stages * operands + results


def candidates(product: str, side: int) -> list[Tile]:
  """Lists the tiles that fit into shared memory, for the autotuner.

  Args:
    product: One of PRODUCTS.
    side: Of a block.

  Example:
    >>> candidates("weight", 128)
    [Tile(size=1, stages=2), Tile(size=1, stages=3), Tile(size=1, stages=4), \
Tile(size=1, stages=5), Tile(size=2, stages=2)]
  """
  sizes = (1, 2, 4, 8) if product == "weight" else (128, 256)
  # Two warpgroups share a program's blocks, 64 rows at a time.
  least = 2 * 64 // max(side, 64) if product == "weight" else 0
  tiles = [
    Tile(size, stages)
    for size in sizes
    for stages in range(2, 9)
    if size >= least
  ]
  return [t for t in tiles if shared_bytes(product, side, t) <= SHARED]
