"""Selection for one accelerator: many arrays at once, without a loop.

A GPU counts faster than its host can start kernels, and it waits for the host
at every turn of a loop. So the arrays of a whole tree are ranked together, by a
fixed number of kernels: their keys lie side by side in tiles, each pass counts
tile by tile the keys that reach several thresholds of their own array, and adds
the tiles of each array up. That settles all bits of all k-th largest keys.
Nothing is sorted.

Measured on an H200 against a sort, a histogram and a loop; see BUILD_NOTES.md.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax import xla

_TILE = 1024
# A pass settles four bits where starting kernels takes the time, three where
# reading keys does: more thresholds cost more arithmetic than a read.
_FEW, _BITS_OF_FEW, _BITS_PER_PASS = 2**22, 4, 3


def k_largest(
  keys: Sequence[jax.Array], ks: Sequence[jax.Array]
) -> list[jax.Array]:
  """Marks the k largest keys of every row of several arrays.

  Args:
    keys: Arrays [rows, width] of one unsigned dtype, of at least one element;
      rows and widths may differ. 0 is never marked, and the largest integer of
      the dtype must not occur.
    ks: int32 [rows] for each: how many to mark. Ties go to the lower index.

  Returns:
    Bool arrays of the keys' shapes.

  Example:
    >>> keys = [jnp.array([[3, 1, 3, 3]], "uint32"), jnp.ones((1, 2), "uint32")]
    >>> a, b = k_largest(keys, [jnp.array([2]), jnp.array([1])])
    >>> print(a, b)
    [[ True False  True False]] [[ True False]]
  """
  flat, rows = _side_by_side(keys)
  # Counts and comparisons have to see the same bits.
  tiles = xla.in_memory(flat).reshape(-1, _TILE)
  k = jnp.concatenate(list(ks))
  threshold, ties, needed = _kth_largest(tiles, rows, k)
  tile, lane = _last_tie(tiles, rows, threshold, ties, needed)

  here = lax.broadcasted_iota(jnp.int32, tiles.shape, 0)
  lanes = lax.broadcasted_iota(jnp.int32, tiles.shape, 1)
  threshold, tile, lane = (
    rows.spread(x)[:, None] for x in (threshold, tile, lane)
  )
  among = (here < tile) | ((here == tile) & (lanes <= lane))
  mask = (tiles > threshold) | ((tiles == threshold) & among)
  if any(len(x) > 1 for x in keys):
    # Or tiles are laid out like leaves whose rows lie along other axes.
    mask = xla.in_memory(mask.reshape(-1)).reshape(mask.shape)
  sizes = [len(x) * count(x.shape[1]) for x in keys]
  parts = jnp.split(mask, np.cumsum(sizes)[:-1])
  return [
    part.reshape(len(x), -1)[:, : x.shape[1]]
    for part, x in zip(parts, keys, strict=True)
  ]


def count(width: int) -> int:
  """Counts the tiles that a row of so many keys takes."""
  return -(-width // _TILE)


def count_in_rows(flags: Sequence[jax.Array]) -> list[jax.Array]:
  """Counts what is True in every row of several arrays.

  Args:
    flags: Bool arrays [rows, width]; rows and widths may differ.

  Returns:
    int32 [rows] for each.

  Example:
    >>> a, b = count_in_rows([jnp.eye(2) > 0, jnp.ones((1, 3)) > 0])
    >>> print(a, b)
    [1 1] [3]
  """
  flat, rows = _side_by_side(flags)
  (counts,) = _sums([flat.reshape(-1, _TILE)])
  (totals,) = _sums([rows.apart(counts)])
  return jnp.split(totals, np.cumsum([len(x) for x in flags])[:-1])


def _side_by_side(arrays):
  """Fills rows up to whole tiles, and lays all of them end to end."""
  tiles = [count(x.shape[1]) for x in arrays]
  flat = [
    jnp.pad(x, ((0, 0), (0, n * _TILE - x.shape[1]))).reshape(-1)
    for x, n in zip(arrays, tiles, strict=True)
  ]
  rows = _Rows(np.repeat(tiles, [len(x) for x in arrays]))
  return jnp.concatenate(flat), rows


class _Rows:
  """Which tiles make up which row: consecutive ones, known beforehand."""

  def __init__(self, lengths: np.ndarray):
    """Takes the number of tiles of each row."""
    self.starts = (np.cumsum(lengths) - lengths).astype(np.int32)
    self._lengths, self._longest = lengths, int(lengths.max())
    self._row = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    self._alike = len(set(lengths.tolist())) == 1

  def spread(self, x: jax.Array) -> jax.Array:
    """Gives every tile what its row has: [rows] to [tiles]."""
    if self._alike:
      return jnp.repeat(x, self._longest)
    return x[self._row]

  def spread_all(self, xs: jax.Array) -> list[jax.Array]:
    """Does so with several numbers of each row, [n, rows]: n of [tiles]."""
    if self._alike:
      return [self.spread(x) for x in xs]
    return list(xs[:, self._row])  # one kernel for all

  def apart(self, x: jax.Array) -> jax.Array:
    """Puts each row's tiles on an axis of their own: [rows, most tiles]."""
    if self._alike:
      return x.reshape(-1, self._longest)
    place = np.arange(self._longest, dtype=np.int32)
    index = np.minimum(self.starts[:, None] + place, len(self._row) - 1)
    return jnp.where(place < self._lengths[:, None], x[index], 0)


def _kth_largest(tiles, rows, k):
  """Finds the k-th largest key of each row, 0 if there are fewer.

  Returns:
    These keys [rows]; how many keys equal them, [tiles]; and how many of those
    are to be marked [rows], which is not positive for none.
  """
  bits = jnp.iinfo(tiles.dtype).bits
  each = _BITS_OF_FEW if tiles.size <= _FEW else _BITS_PER_PASS
  t = jnp.zeros(k.shape, tiles.dtype)
  for shift in reversed(range(0, bits, each)):
    # The last pass counts all keys from t on, and those beyond its bits, too.
    last = shift == 0
    top = min(1 << each, 1 << (bits - shift)) + last
    steps = np.arange(1 - last, top).astype(t.dtype) << np.array(shift, t.dtype)
    limits = rows.spread_all(t + steps[:, None])
    counts = _sums([tiles >= n[:, None] for n in limits])
    totals = _sums([rows.apart(n) for n in counts])
    reached = totals[last : len(totals) - last]
    digit = sum((n >= jnp.maximum(k, 1)).astype(jnp.int32) for n in reached)
    t = t + (digit.astype(t.dtype) << shift)

  def beyond(counts, digit):
    return sum(jnp.where(digit == d, n, 0) for d, n in enumerate(counts))

  of_tile = rows.spread(digit)
  ties = beyond(counts[:-1], of_tile) - beyond(counts[1:], of_tile)
  return t, ties, k - beyond(totals[1:], digit)


def _last_tie(tiles, rows, threshold, ties, needed):
  """Finds the last tie that is marked, by its tile and its lane in that."""
  within, left = _first_to_reach(rows.apart(ties), needed)
  tile = jnp.minimum(rows.starts + within, len(tiles) - 1)
  equal = tiles[tile] == threshold[:, None]
  lane, _ = _first_to_reach(equal.astype(jnp.int32), left)
  none = (needed <= 0) | (threshold == 0)
  return jnp.where(none, -1, tile), lane


def _first_to_reach(counts, wanted):
  """Finds where cumulative counts [rows, n] reach what is wanted [rows].

  Returns:
    The index, and how much of that count is needed.
  """
  if counts.shape[1] == 1:
    return jnp.zeros(wanted.shape, jnp.int32), wanted
  after = jnp.cumsum(counts, 1)
  before = after - counts
  short = after < wanted[:, None]
  index = jnp.sum(short, 1, dtype=jnp.int32)
  passed = jnp.max(jnp.where(before < wanted[:, None], before, 0), 1)
  return index, wanted - passed


def _sums(arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
  """Adds up the last axis of arrays of one shape, by one kernel for all."""
  return lax.reduce(
    tuple(x.astype(jnp.int32) for x in arrays),
    tuple(jnp.int32(0) for _ in arrays),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    (1,),
  )
