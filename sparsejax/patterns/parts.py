"""Patterns of parts of a leaf that are zero, or not, as one."""

import math
import operator
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from sparsejax import select
from sparsejax.patterns import base
from sparsejax.patterns.base import Pattern
from sparsejax.patterns.layouts import SquareBlocks


def blocks(shape: tuple[int, ...], *, pool: Callable = jnp.mean) -> Pattern:
  """Makes the pattern of blocks, which are zero or active as a whole.

  Blocks tile the last axes of a layer. Every index of the axes before, such as
  the positions in a convolution's kernel, has blocks of its own. Features that
  span several axes count as one axis, as in the matrix [in, heads x head size].

  Args:
    shape: The shape of a block. The last axes have to divide by it. A leaf
      whose axes do not is refused, because smaller blocks at the border would
      change the number of weights as they come and go. Give such a leaf another
      pattern with `by_path`, or leave it out of `prunable`.
    pool: A reduction like `jnp.mean` or `jnp.max` that makes a block's score
      from the scores of its weights.

  Returns:
    The pattern. Its budgets are multiples of a block's size, at least one.

  Raises:
    ValueError: If the shape is empty, or not of positive integers.

  References:
    Narang et al., Block-Sparse Recurrent Neural Networks, arXiv:1711.02782,
    2017, section 3.1: max pooling.

  Example:
    >>> print(blocks((1, 2)).top_k(jnp.arange(8.0).reshape(2, 4), 4))
    [[False False False False]
     [ True  True  True  True]]
  """
  if not shape or not all(isinstance(b, int) and b > 0 for b in shape):
    raise ValueError(
      f"got blocks of shape {shape!r}, wanted positive integers, such as (4, 4)"
    )

  def parted(leaf):
    sides = (1,) * (len(leaf) - len(shape)) + tuple(shape)
    if len(sides) > len(leaf) or any(map(operator.mod, leaf, sides)):
      raise base.misfit(
        leaf, f"last axes that divide by blocks of {tuple(shape)}"
      )
    return [(a // b, b) for a, b in zip(leaf, sides, strict=True)]

  square = len(shape) == 2 and shape[0] == shape[1]
  layout = SquareBlocks(shape[0]) if square else None
  return _of_parts(parted, pool)._replace(layout=layout, merged=True)


def channels(axis: int | None = None, *, pool: Callable = jnp.mean) -> Pattern:
  """Makes the pattern of whole slices along an axis: channels, neurons.

  Args:
    axis: The axis of the slices, among the axes of one layer; by default the
      axis of outputs.
    pool: Makes a slice's score from the scores of its weights, as in `blocks`.

  Returns:
    The pattern. Its budgets are multiples of a slice's size, at least one.

  References:
    Li et al., Pruning Filters for Efficient ConvNets, arXiv:1608.08710, 2017,
    section 3: filters by the sum of |w|.

  Example:
    >>> print(channels().top_k(jnp.array([[1.0, 2.0], [3.0, 4.0]]), 2))
    [[False  True]
     [False  True]]
  """
  return _of_slices(axis, None, pool)


def heads(
  groups: int, axis: int | None = None, *, pool: Callable = jnp.mean
) -> Pattern:
  """Makes the pattern of groups along an axis, such as attention heads.

  Args:
    groups: How many groups of neighbours share the axis. A leaf whose axis
      does not divide by this number is refused.
    axis: The axis of the groups, among the axes of one layer. The default is
      the axis of outputs, which is right for queries, keys and values
      [features, heads x size]. The output projection of attention has its heads
      in the axis of inputs, -2 in Flax.
    pool: Makes a group's score from the scores of its weights, as in `blocks`.

  Returns:
    The pattern. Its budgets are multiples of a group's size, at least one.

  Raises:
    ValueError: If there is not at least one group.

  References:
    Michel et al., Are Sixteen Heads Really Better than One?,
    arXiv:1905.10650, 2019.

  Example:
    >>> print(heads(2).top_k(jnp.array([[1.0, 2.0, 3.0, 4.0]]), 2))
    [[False False  True  True]]
  """
  if groups < 1:
    raise ValueError(f"got {groups} groups, wanted at least 1")
  return _of_slices(axis, groups, pool)


def _of_slices(axis, groups, pool) -> Pattern:
  if axis is None:
    return base.by_features(
      lambda axis: _of_slices(axis, groups, pool), inputs=False
    )
  parts = _of_parts(lambda leaf: _sliced(leaf, axis, groups), pool)
  return parts._replace(axis=axis)


def _of_parts(parted, pool) -> Pattern:
  """A pattern whose units are parts of a leaf.

  `parted(shape)` gives, per axis, how many parts there are, and how long one
  is.
  """

  def split(x):
    return x.reshape([n for part in parted(x.shape) for n in part])

  def inside(x):
    return tuple(range(1, 2 * x.ndim, 2))

  def size(shape):
    return math.prod(length for _, length in parted(shape))

  def pooled(scores):
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    return pool(split(scores).astype(wide), axis=inside(scores))

  def some(mask):
    return jnp.any(split(mask), axis=inside(mask))

  def spread(units, shape):
    units = jnp.expand_dims(units, inside(np.empty(shape)))
    lengths = [n for part in parted(shape) for n in part]
    return jnp.broadcast_to(units, lengths).reshape(shape)

  def top_k(scores, k, where=None):
    units = base.in_units(k, size(scores.shape))
    among = None if where is None else some(where)
    return spread(select.top_k_mask(pooled(scores), units, among), scores.shape)

  def swap(mask, k, n, drop, grow, regrow=True):
    one = size(mask.shape)
    units = base.swap(
      some(mask),
      base.in_units(k, one),
      n // one,
      pooled(drop),
      pooled(grow),
      regrow,
    )
    return spread(units, mask.shape)

  def holds(mask):
    return jnp.all(jnp.all(split(mask), axis=inside(mask)) == some(mask))

  def budget(shape, n):
    return base.nearest_multiple(shape, n, size(shape))

  return base.pattern_of(budget=budget, top_k=top_k, swap=swap, holds=holds)


def _sliced(shape, axis, groups):
  base.check_axis(shape, axis)
  along = axis % len(shape)
  groups = groups or shape[along]
  if shape[along] % groups:
    raise base.misfit(shape, f"axis {axis} to divide by {groups} groups")
  return [
    (groups, n // groups) if a == along else (1, n) for a, n in enumerate(shape)
  ]
