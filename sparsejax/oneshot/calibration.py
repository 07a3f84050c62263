"""Statistics of a layer's inputs, gathered batch by batch.

Everything is a mean over positions, so nothing grows with their number, and
batches are merged without subtracting large sums from each other.

What is not finite, and statistics of nothing, are refused. That needs values,
which there are none of inside `jax.jit` and `jax.vmap`: each function says what
it returns there, and `jax.experimental.checkify` tells what would be refused.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.checks import refuse_unless


class Statistics(NamedTuple):
  """Moments of a layer's inputs, over all positions seen.

  Attributes:
    count: Number of positions, such as tokens: an int32 scalar.
    mean: The mean of each input, float32 [inputs].
    variance: The variance about that mean, divided by the count, float32
      [inputs].
    gram: The mean of x x^T, float32 [inputs, inputs]; None if not requested.
    sequence_variance: The variance of each position about the mean of its own
      sequence, float32 [inputs]; None if it is not known.
  """

  count: jax.Array
  mean: jax.Array
  variance: jax.Array
  gram: jax.Array | None
  sequence_variance: jax.Array | None = None


def statistics(inputs: int, *, gram: bool = False) -> Statistics:
  """Makes empty statistics, before any inputs are observed.

  Args:
    inputs: Number of inputs of the layer.
    gram: Whether to gather the Gram matrix of inputs x inputs numbers. Only
      `sparsegpt` and `reconstruct` need it.

  Returns:
    The statistics, with count 0.

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
    sequence_variance=jnp.zeros([inputs], jnp.float32),
  )


def observe(
  statistics: Statistics, x: jax.Array, *, where: jax.Array | None = None
) -> Statistics:
  """Adds a batch of a layer's inputs to statistics.

  Args:
    statistics: The statistics so far.
    x: [..., inputs], of any floating dtype: [batch, time, inputs] for several
      sequences, [time, inputs] for one.
    where: Optional bool array, broadcastable to [...]: the positions that
      count. All others are ignored, whatever they hold, such as NaN.

  Returns:
    The statistics of all positions so far. Counts are int32: at most 2**31 - 1
    positions.

  Raises:
    ValueError: If the number of inputs differs, or an input is not finite at a
      position that counts. Inside `jax.jit` and `jax.vmap` nothing is raised;
      the statistics are then not finite either, and are refused later.

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
  check_finite(x, "the layer's inputs x", "see what the layers before make")
  mean = jnp.sum(share * x, positions)
  gram = None
  if statistics.gram is not None:
    gram = jnp.tensordot(
      x, share * x, (positions, positions), precision=lax.Precision.HIGHEST
    )
  middle = mean
  if x.ndim > 2:  # one of each sequence
    lengths = jnp.sum(seen, -2, keepdims=True)
    middle = jnp.sum(x, -2, keepdims=True) / jnp.maximum(lengths, 1)
  variance, sequence_variance = (
    jnp.sum(share * (x - m) ** 2, positions) for m in (mean, middle)
  )
  batch = Statistics(count, mean, variance, gram, sequence_variance)
  return merge(statistics, batch)


def merge(a: Statistics, b: Statistics) -> Statistics:
  """Merges the statistics of two sets of positions, such as of two hosts.

  Args:
    a: The statistics of some positions.
    b: The statistics of other positions, for the same inputs.

  Returns:
    The statistics of all these positions.

  Raises:
    ValueError: If their numbers of inputs differ, or only one of them has a
      Gram matrix.

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
  # Of everything by count, and for the variance what is between the means.
  mixed = jax.tree.map(lambda x, y: x + share * (y - x), a, b)
  between = share * (1 - share) * apart**2
  return mixed._replace(count=count, variance=mixed.variance + between)


def check_finite(x: jax.Array, name: str, hint: str) -> jax.Array:
  """Refuses an array with numbers that are NaN or infinite.

  Args:
    x: The array.
    name: What to call it.
    hint: What to do about it.

  Returns:
    Whether all are finite, a bool scalar: True unless it is traced.

  Raises:
    ValueError: If one is not, unless the array is traced.
  """
  finite = jnp.isfinite(x)
  summary = f"{name}: some numbers are NaN or infinite; {hint}"

  def detail():
    wrong = np.argwhere(~np.asarray(finite))
    first = tuple(wrong[0].tolist())
    return (
      f"{len(wrong)} of {finite.size} numbers of {name} are NaN or infinite, "
      f"the first is {jnp.asarray(x)[first]} at {first}; wanted finite ones: "
      f"{hint}"
    )

  return refuse_unless(jnp.all(finite), summary, detail)


def check_matrix(x: jax.Array) -> None:
  """Refuses what has not two axes."""
  if jnp.ndim(x) != 2:
    raise ValueError(
      f"got an array of shape {jnp.shape(x)}, wanted [inputs, outputs]: map "
      "over further axes with jax.vmap"
    )


def check_kernel(
  w: jax.Array, statistics: Statistics | None = None
) -> jax.Array:
  """Refuses a kernel and statistics of its inputs by which it cannot be pruned.

  Args:
    w: [inputs, outputs], all finite.
    statistics: Of as many inputs, of at least one position, all finite, and
      not all 0.

  Returns:
    Whether they will do, a bool scalar: True unless it is traced.

  Raises:
    ValueError: If they will not.
  """
  check_matrix(w)
  ok = check_finite(w, "the kernel", "see where it was made or read")
  if statistics is None:
    return ok
  inputs, outputs = jnp.shape(w)
  if jnp.shape(statistics.mean) != (inputs,):
    turned = jnp.shape(statistics.mean) == (outputs,)
    raise ValueError(
      f"got a kernel of shape {jnp.shape(w)} and statistics of shape "
      f"{jnp.shape(statistics.mean)}, wanted ({inputs},), one of each input"
      + (": transpose the kernel" if turned else "")
    )
  count = statistics.count
  ok &= refuse_unless(
    count != 0,
    "the statistics are of 0 positions, wanted some: no input has reached this "
    "kernel, take more calibration data, or prune by magnitude, which needs "
    "none",
  )
  ok &= refuse_unless(
    count >= 0,
    "the statistics are of more positions than an int32 counts, wanted at most "
    "2**31 - 1: take less calibration data",
  )
  for field, x in statistics._asdict().items():
    if x is not None:
      hint = "see what the layers before make; sums end at 3e38"
      ok &= check_finite(x, f"the statistics' {field}", hint)
  return ok & refuse_unless(
    jnp.any(statistics.mean**2 + statistics.variance > 0),
    f"all {inputs} inputs were 0 at all positions, wanted some that say which "
    "weights matter: take other calibration data, or prune by magnitude, which "
    "needs none",
  )


def check_mask(mask: jax.Array, w: jax.Array) -> None:
  """Refuses what is no bool mask of a kernel's shape."""
  mask = jnp.asarray(mask)
  if mask.shape != w.shape or mask.dtype != bool:
    raise ValueError(
      f"got a mask {mask.dtype}{list(mask.shape)}, wanted bool{list(w.shape)}, "
      "of the kernel's shape"
    )
