"""N:M: of every m neighbours n are active, along one axis or along two."""

import functools
import itertools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax import select, xla
from sparsejax.patterns import base
from sparsejax.patterns.base import Pattern
from sparsejax.patterns.layouts import NOfM

_MOST_IN_A_TILE = 4
_STRIDE = 37  # coprime to how many masks tiles have: 2, 6, 24, 90


def n_of_m(n: int, m: int, axis: int | None = None) -> Pattern:
  """Makes the pattern N:M: n of every m neighbours along an axis are active.

  Nothing is sorted: each weight counts the better ones of its group. Ties
  favour no position in a group. The preferred position changes from group to
  group: forwards through m groups, then backwards through the next m, by the
  sum of a group's indices. So a model whose weights have few distinct values,
  such as a 4-bit model, does not lose the same inputs for every output.

  Args:
    n: How many weights of a group are active.
    m: The size of a group. If the axis does not divide by m, the last group is
      shorter. It also keeps n, or all that it has, as if it were padded with
      zeros.
    axis: The axis of the groups, among the axes of one layer; by default the
      axis of inputs, which hardware needs. In the output projection of
      attention, [heads, head size, out], that is heads and head size together,
      the dimension that its product sums over.

  Returns:
    The pattern. It fixes the budget by itself, whatever a distribution says.
    During gradual pruning, while a mask still has more weights, it is N:M with
    a larger n.

  Raises:
    ValueError: Unless 0 < n <= m.

  References:
    Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks
    From Scratch, arXiv:2102.04010, 2021, section 3.
    Kao et al., Training Recipe for N:M Structured Sparsity with Decaying
    Pruning Mask, arXiv:2209.07617, 2022: a falling n.

  Example:
    >>> print(n_of_m(1, 2, axis=0).top_k(jnp.array([1.0, 4.0, 3.0, 2.0]), 2))
    [False  True  True False]
  """
  base.check_n_of_m(n, m)
  if axis is None:
    return base.by_features(lambda axis: n_of_m(n, m, axis), inputs=True)

  def counts(shape):
    """How many weights j:m keeps of a shape, for j from 0 to m."""
    whole, rest = divmod(shape[axis], m)
    lines = math.prod(shape) // max(shape[axis], 1)
    return [lines * (whole * j + min(j, rest)) for j in range(m + 1)]

  def grouped(x):
    """Groups on an axis of their own, the last one filled up with zeros."""
    along = axis % x.ndim
    pad = [(0, 0)] * x.ndim
    pad[along] = (0, -x.shape[along] % m)
    x = jnp.pad(x, pad)
    return x.reshape(*x.shape[:along], -1, m, *x.shape[along + 1 :])

  def fill(scores, k, keep, where):
    along = axis % scores.ndim
    j = base.nearest_count(counts(scores.shape), k)

    def finish(keys):
      most = jnp.array(jnp.iinfo(keys.dtype).max, keys.dtype)
      return jnp.where(keep, most, jnp.where(where, keys, 0))

    keys = grouped(select.order_keys(scores, finish))
    mask = (_ranks(keys, along + 1) < j) & (keys > 0)
    shape = (*scores.shape[:along], -1, *scores.shape[along + 1 :])
    return lax.slice_in_dim(
      mask.reshape(shape), 0, scores.shape[along], axis=along
    )

  def holds(mask):
    along = axis % mask.ndim
    active = jnp.sum(grouped(mask), along + 1, dtype=jnp.int32)
    room = jnp.sum(grouped(jnp.ones_like(mask)), along + 1, dtype=jnp.int32)
    return jnp.all(active == jnp.minimum(room, jnp.max(active)))

  def budget(shape, wanted):
    del wanted
    base.check_axis(shape, axis)
    return counts(shape)[n]

  return base.pattern_of(
    density=Fraction(n, m),
    budget=budget,
    top_k=base.top_k(fill),
    swap=base.swap_of(fill),
    holds=holds,
    layout=NOfM(n, m, axis),
    axis=axis,
  )


def transposable_n_of_m(n: int, m: int) -> Pattern:
  """Makes the pattern N:M along both of the last two axes.

  The transposed matrix is N:M too, so the same hardware serves the forward pass
  and the gradient of the inputs. The pattern compares all masks of an m x m
  tile, 90 of them for 2:4, by the sum of the scores they keep. Which of several
  equal masks it takes changes from tile to tile.

  Args:
    n: How many of m weights are active, in every row and column of a tile.
    m: At most 4, because the number of masks of a tile explodes. A leaf whose
      last two axes do not divide by m is refused.

  Returns:
    The pattern; see `n_of_m`.

  Raises:
    ValueError: Unless 0 < n <= m <= 4.

  References:
    Hubara et al., Accelerated Sparse Neural Training: A Provable and Efficient
    Method to Find N:M Transposable Masks, arXiv:2102.08124, 2021.
    Hu et al., Accelerating Transformer Pre-training with 2:4 Sparsity,
    arXiv:2404.01847, 2024: the search among all masks.

  Example:
    >>> scores = jnp.array([[9.0, 8.0], [8.0, 1.0]])
    >>> print(transposable_n_of_m(1, 2).top_k(scores, 2))
    [[False  True]
     [ True False]]
  """
  base.check_n_of_m(n, m)
  if m > _MOST_IN_A_TILE:
    raise ValueError(
      f"got {n}:{m}, wanted an m of at most {_MOST_IN_A_TILE}: larger tiles "
      "have too many masks to compare"
    )

  def tiles(x):
    *lead, a, b = x.shape
    x = x.reshape(*lead, a // m, m, b // m, m)
    return jnp.swapaxes(x, -3, -2).reshape(*lead, a // m, b // m, m * m)

  def whole(x, shape):
    *lead, a, b = shape
    x = x.reshape(*lead, a // m, b // m, m, m)
    return jnp.swapaxes(x, -3, -2).reshape(shape)

  def best(scores, j, keep, where):
    """The best masks of tiles with what is to be kept, of j:m."""
    allowed = jnp.asarray(_tile_masks(j, m), jnp.float32)

    def total(x):
      return jnp.einsum(
        "...i,pi->...p",
        tiles(x.astype(jnp.float32)),
        allowed,
        precision=lax.Precision.HIGHEST,
      )

    fits = (m * m + 1) * total(keep) + total(where & ~keep)
    fits = fits == jnp.max(fits, -1, keepdims=True)
    # No sum of these overflows: none is below what does not fit.
    most = jnp.finfo(jnp.float32).max / (m * m)
    finite = jnp.clip(scores.astype(jnp.float32), -most, most)
    sums = total(jnp.where(jnp.isnan(finite), -most, finite))
    sums = jnp.where(fits, sums, -jnp.inf)
    # Of equal ones another is taken in each tile, as in `n_of_m`.
    turn = _turn(sums.shape, sums.ndim - 1)
    place = (jnp.arange(len(allowed)) + _STRIDE * turn) % len(allowed)
    best_sum = jnp.max(sums, -1, keepdims=True)
    found = jnp.argmax(jnp.where(sums == best_sum, place, -1), -1)
    return whole((allowed > 0)[found], scores.shape)

  def fill(scores, k, keep, where):
    counts = [scores.size * j // m for j in range(m + 1)]
    branches = [
      functools.partial(best, scores, j, keep, where) for j in range(m + 1)
    ]
    return xla.switch(base.nearest_count(counts, k), branches)

  def top_k(scores, k, where=None):
    where = base.or_everywhere(where, scores)
    # A tile with fewer candidates than its share is filled up with others.
    return fill(scores, k, base.empty_mask(scores), where) & where

  def swap(mask, k, n, drop, grow, regrow=True):
    keep = select.top_k_mask(drop, k - n, mask)
    return fill(grow, k, keep, ~keep if regrow else ~mask)

  def holds(mask):
    x = tiles(mask).reshape(-1, m, m)
    sums = [jnp.sum(x, a, dtype=jnp.int32) for a in (1, 2)]
    return jnp.ptp(jnp.stack(sums)) == 0

  def budget(shape, wanted):
    del wanted
    if len(shape) < 2 or shape[-1] % m or shape[-2] % m:
      raise base.misfit(shape, f"last two axes that divide by {m}")
    return math.prod(shape) * n // m

  return base.pattern_of(
    density=Fraction(n, m),
    budget=budget,
    top_k=top_k,
    swap=swap,
    holds=holds,
    layout=NOfM(n, m, -2),
    merged=True,
  )


def _ranks(keys, axis):
  """Counts how many of a group come before each of its members."""
  size = keys.shape[axis]
  turn = _turn(keys.shape, axis)

  def place(j):
    forwards = (j + turn) % size
    return jnp.where(turn // size % 2 == 0, forwards, size - 1 - forwards)

  mine = place(lax.broadcasted_iota(jnp.int32, keys.shape, axis))
  rank = jnp.zeros(keys.shape, jnp.int32)
  for j in range(size):
    other = lax.slice_in_dim(keys, j, j + 1, axis=axis)
    before = (other > keys) | ((other == keys) & (place(j) < mine))
    rank = rank + before.astype(jnp.int32)
  return rank


def _turn(shape, axis):
  """Sums the indices along all axes but one, which is of length 1 then."""
  shape = tuple(1 if a == axis else n for a, n in enumerate(shape))
  axes = (lax.broadcasted_iota(jnp.int32, shape, a) for a in range(len(shape)))
  return sum(axes)


def _tile_masks(n, m) -> np.ndarray:
  """All masks of an m x m tile with n in every row and column: [count, m m]."""
  rows = [
    np.isin(np.arange(m), chosen)
    for chosen in itertools.combinations(range(m), n)
  ]
  tiles = (np.stack(t) for t in itertools.product(rows, repeat=m))
  return np.stack([t.ravel() for t in tiles if (t.sum(0) == n).all()])
