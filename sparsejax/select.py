"""Exactly k of n, without a sort.

Selection counts: every pass over the scores counts how many reach each of
seven thresholds, and so settles three more bits of the k-th largest one.
Counts are scalars, whatever the size, shape or sharding of the scores.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_BITS_PER_PASS = 3
_MAX_SIZE = 2**31 - 1


@jax.jit
def top_k_mask(
  scores: jax.Array, k: jax.Array | int, where: jax.Array | None = None
) -> jax.Array:
  """Marks the k largest scores; ties go to the lower linear index.

  The order is that of a stable descending argsort: -0.0 equals 0.0, subnormal
  numbers count, and NaN comes last, after -inf. The work is a fixed number of
  passes of counting (11 for 32-bit scores, 6 for 16-bit ones), so nothing is
  sorted, reshaped or gathered: sharded scores give a mask of their own
  sharding, at the price of a few scalar reductions.

  Args:
    scores: Floating array of any shape, of at most 2**31 - 1 elements.
    k: How many to mark, an integer scalar; it may be traced.
    where: Optional bool array, broadcastable to `scores`: the candidates.

  Returns:
    A bool array of the shape of `scores` with exactly k True, or every
    candidate True if there are fewer than k.

  Raises:
    TypeError: If the scores are not floating.
    ValueError: If there are more elements than an int32 can count.

  Example:
    >>> import jax.numpy as jnp
    >>> print(top_k_mask(jnp.array([3.0, 1.0, 2.0, 2.0]), 2))
    [ True False  True False]
  """
  scores = jnp.asarray(scores)
  if not jnp.issubdtype(scores.dtype, jnp.floating):
    raise TypeError(
      f"scores must be floating, got {scores.dtype}{list(scores.shape)}"
    )
  if scores.size > _MAX_SIZE:
    raise ValueError(
      f"got {scores.size} scores of shape {scores.shape}, wanted at most "
      f"{_MAX_SIZE}: split the array, for example along its first axis"
    )
  if scores.size == 0:
    return jnp.zeros(scores.shape, bool)
  keys = _ordered(scores)
  if where is not None:
    keys = jnp.where(where, keys, jnp.zeros_like(keys))
  # With fewer than k candidates the threshold is 0, which none of them is.
  k = jnp.asarray(k, jnp.int32)
  threshold = _kth_largest(lambda: keys, k)
  above, reached = _count(keys, [threshold + 1, threshold])

  # A surplus of ties at the threshold: the same search over their index,
  # counted from the end so that the lowest ones are the largest.
  def ranked():
    return jnp.where(keys == threshold, _count_from_end(keys.shape), 0)

  cut = lax.cond(
    (reached > k) & (threshold > 0),
    lambda: _kth_largest(ranked, k - above),
    lambda: jnp.uint32(0),
  )
  tied = (keys == threshold) & (_count_from_end(keys.shape) >= cut)
  return (keys > threshold) | (tied & (threshold > 0) & (k > above))


def _ordered(x: jax.Array) -> jax.Array:
  """Maps floats to unsigned integers that order alike: NaN 1, never 0."""
  bits = jnp.finfo(x.dtype).bits
  uint = jnp.dtype(f"uint{bits}")
  sign = jnp.array(1 << (bits - 1), uint)
  i = lax.bitcast_convert_type(x, uint)
  i = jnp.where(i == sign, jnp.zeros_like(i), i)  # -0.0 is 0.0
  i = jnp.where(i >= sign, ~i, i | sign)
  return jnp.where(jnp.isnan(x), jnp.ones_like(i), i)


def _count(keys: jax.Array, thresholds) -> Sequence[jax.Array]:
  """Counts, in one pass, the keys that reach each threshold.

  On one device by one reduction of several operands: XLA vectorizes it on a
  CPU, which it does not do with a reduction of one. Where keys may be sharded,
  by a reduction each: XLA makes scalar all-reduces of these, but would gather
  the several operands' partial counts.
  """
  reached = [keys >= jnp.asarray(t, keys.dtype) for t in thresholds]
  if jax.device_count() > 1:
    return [jnp.sum(r, dtype=jnp.int32) for r in reached]
  return lax.reduce(
    tuple(r.astype(jnp.int32) for r in reached),
    tuple(jnp.int32(0) for _ in reached),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    tuple(range(keys.ndim)),
  )


def _kth_largest(keys, k) -> jax.Array:
  """The largest t that at least k of `keys()` reach; 0 if there is none."""
  dtype = jax.eval_shape(keys).dtype
  passes = -(-jnp.iinfo(dtype).bits // _BITS_PER_PASS)
  digits = [jnp.asarray(d, dtype) for d in range(1, 1 << _BITS_PER_PASS)]

  def settle(i, t):
    shift = jnp.asarray(_BITS_PER_PASS * (passes - 1 - i), dtype)
    steps = [d << shift for d in digits]
    counts = _count(keys(), [t | s for s in steps])
    # The first pass has fewer bits left than digits have: those that
    # overflow are not reached.
    digit = sum(
      ((c >= k) & (s >> shift == d)).astype(dtype)
      for c, s, d in zip(counts, steps, digits, strict=True)
    )
    return t | (digit << shift)

  return lax.fori_loop(0, passes, settle, jnp.zeros((), dtype))


def _count_from_end(shape: tuple[int, ...]) -> jax.Array:
  """The linear index of each element, the last one 1 and the first largest."""
  index = jnp.uint32(1)
  for axis, size in enumerate(shape):
    stride = math.prod(shape[axis + 1 :])
    line = tuple(size if a == axis else 1 for a in range(len(shape)))
    i = lax.broadcasted_iota(jnp.uint32, line, axis)
    index = index + (size - 1 - i) * jnp.uint32(stride)
  return index
