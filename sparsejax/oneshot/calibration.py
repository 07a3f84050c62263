"""Statistics of a layer's inputs, gathered batch by batch.

Everything is a mean over positions, so nothing grows with their number, and
batches are merged without subtracting large sums from each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Statistics(NamedTuple):
  """Moments of a layer's inputs, over all positions seen.

  Attributes:
    count: Number of positions, such as tokens: an int32 scalar.
    mean: Of each input, float32 [inputs].
    variance: About that mean, divided by the count, float32 [inputs].
    gram: Mean of x x^T, float32 [inputs, inputs]; None if not asked for.
  """

  count: jax.Array
  mean: jax.Array
  variance: jax.Array
  gram: jax.Array | None


def statistics(inputs: int, *, gram: bool = False) -> Statistics:
  """Makes the statistics of no inputs yet.

  Args:
    inputs: Number of inputs of the layer.
    gram: Whether to gather the Gram matrix, which only `sparsegpt` and
      `reconstruct` need: inputs x inputs numbers.

  Returns:
    The statistics, of count 0.

  Raises:
    ValueError: If there is not at least one input.

  Example:
    >>> int(statistics(3).count)
    0
  """
  if inputs < 1:
    raise ValueError(f"got a layer of {inputs} inputs, wanted at least 1")
  return Statistics(
    count=jnp.zeros([], jnp.int32),
    mean=jnp.zeros([inputs], jnp.float32),
    variance=jnp.zeros([inputs], jnp.float32),
    gram=jnp.zeros([inputs, inputs], jnp.float32) if gram else None,
  )


def observe(
  statistics: Statistics, x: jax.Array, *, where: jax.Array | None = None
) -> Statistics:
  """Adds a batch of a layer's inputs to statistics.

  Args:
    statistics: Those so far.
    x: [..., inputs], of any floating dtype.
    where: Optional bool array, broadcastable to [...]: the positions that
      count. Whatever the others hold, such as NaN, is ignored.

  Returns:
    The statistics of all positions so far. Counts are int32: at most 2**31 - 1
    positions.

  Raises:
    ValueError: If the number of inputs is another.

  Example:
    >>> x = jnp.array([[1.0, 2.0], [3.0, 2.0], [9.0, 9.0]])
    >>> found = observe(statistics(2), x, where=jnp.array([True, True, False]))
    >>> print(found.count, found.mean, found.variance)
    2 [2. 2.] [1. 0.]
  """
  x = jnp.asarray(x, jnp.float32)
  inputs = statistics.mean.shape[-1]
  if x.ndim < 1 or x.shape[-1] != inputs:
    raise ValueError(
      f"got x of shape {x.shape} for statistics of {inputs} inputs, wanted "
      f"[..., {inputs}]"
    )
  positions = tuple(range(x.ndim - 1))
  seen = jnp.ones((*x.shape[:-1], 1), bool)
  if where is not None:
    seen = jnp.broadcast_to(where, x.shape[:-1])[..., None]
  count = jnp.sum(seen, dtype=jnp.int32)
  share = seen / jnp.maximum(count, 1)
  x = jnp.where(seen, x, 0)
  mean = jnp.sum(share * x, positions)
  gram = None
  if statistics.gram is not None:
    gram = jnp.tensordot(
      x, share * x, (positions, positions), precision=lax.Precision.HIGHEST
    )
  variance = jnp.sum(share * (x - mean) ** 2, positions)
  return merge(statistics, Statistics(count, mean, variance, gram))


def merge(a: Statistics, b: Statistics) -> Statistics:
  """Merges the statistics of two sets of positions, such as of two hosts.

  Args:
    a: Of some positions.
    b: Of others, of the same inputs.

  Returns:
    Those of all of them.

  Raises:
    ValueError: If their inputs differ in number, or one has a Gram matrix and
      the other has not.

  References:
    Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances, 1979.

  Example:
    >>> one = observe(statistics(1), jnp.array([[1.0]]))
    >>> two = observe(statistics(1), jnp.array([[3.0]]))
    >>> both = merge(one, two)
    >>> print(both.count, both.mean, both.variance)
    2 [2.] [1.]
  """
  if jax.tree.map(jnp.shape, a) != jax.tree.map(jnp.shape, b):
    raise ValueError(
      f"got statistics of shapes {jax.tree.map(jnp.shape, a)} and "
      f"{jax.tree.map(jnp.shape, b)}, wanted those of one layer, with a Gram "
      "matrix in both or in neither"
    )
  count = a.count + b.count
  share = b.count / jnp.maximum(count, 1)
  apart = b.mean - a.mean
  between = share * (1 - share) * apart**2
  gram = None if a.gram is None else a.gram + share * (b.gram - a.gram)
  return Statistics(
    count=count,
    mean=a.mean + share * apart,
    variance=a.variance + share * (b.variance - a.variance) + between,
    gram=gram,
  )


def check_kernel(w: jax.Array, statistics: Statistics | None = None) -> None:
  """Refuses what is no kernel [inputs, outputs], or statistics of others."""
  if jnp.ndim(w) != 2:
    raise ValueError(
      f"got an array of shape {jnp.shape(w)}, wanted [inputs, outputs]: map "
      "over further axes with jax.vmap"
    )
  if statistics is None:
    return
  inputs, outputs = jnp.shape(w)
  if jnp.shape(statistics.mean) != (inputs,):
    turned = jnp.shape(statistics.mean) == (outputs,)
    raise ValueError(
      f"got a kernel of shape {jnp.shape(w)} and statistics of shape "
      f"{jnp.shape(statistics.mean)}, wanted ({inputs},), one of each input"
      + (": transpose the kernel" if turned else "")
    )


def check_mask(mask: jax.Array, w: jax.Array) -> None:
  """Refuses what is no bool mask of a kernel's shape."""
  mask = jnp.asarray(mask)
  if mask.shape != w.shape or mask.dtype != bool:
    raise ValueError(
      f"got a mask {mask.dtype}{list(mask.shape)}, wanted bool{list(w.shape)}, "
      "of the kernel's shape"
    )
