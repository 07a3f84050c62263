"""Selection by scalar counts: on CPUs, and wherever leaves may be sharded.

Every pass over the scores counts how many reach each of seven thresholds, and
so settles three more bits of the k-th largest one. Counts are scalars, whatever
the size, shape or sharding of the scores, so those of several leaves are added,
and a tree is ranked as one array.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import kernels, xla
from sparsejax.select.order import order_keys, ordered

_BITS_PER_PASS = 3
# From how many scores on a kernel is built, or taken if it is there already.
_WORTH_BUILDING, _WORTH_CALLING = 2**20, 2**16


def on_cpu(
  leaves: Sequence[jax.Array],
  k: jax.Array,
  where: Sequence[jax.Array | None],
  several: bool,
) -> list[jax.Array]:
  """Marks the k largest on a CPU: many of one leaf by a kernel of its own.

  Args:
    leaves: Floating arrays of one dtype.
    k: int32 scalar.
    where: The candidates of each; None for all.
    several: Whether there are several devices.

  Returns:
    Bool arrays of the leaves' shapes.
  """
  if len(leaves) == 1 and not several and for_kernel(leaves[0]):
    return [by_kernel(leaves[0], k, where[0])]
  return by_counting(leaves, k, where, several)


def for_kernel(scores: jax.Array) -> bool:
  """Returns whether the kernel, which sees all scores at once, takes them."""
  if scores.size < _WORTH_CALLING or jnp.finfo(scores.dtype).bits > 32:
    return False
  if scores.size < _WORTH_BUILDING:
    return kernels.loaded()
  return kernels.available(quiet=True)


def by_kernel(
  scores: jax.Array, k: jax.Array, where: jax.Array | None
) -> jax.Array:
  """Marks the k largest by the kernel."""
  keys = ordered(scores).astype(jnp.uint32)
  if where is not None:
    keys = jnp.where(where, keys, 0)
  return kernels.top_k(keys, k)


def by_counting(
  leaves: Sequence[jax.Array],
  k: jax.Array,
  where: Sequence[jax.Array | None],
  several: bool,
  *,
  loops: bool = True,
) -> list[jax.Array]:
  """Marks the k largest of arrays of one dtype, as if laid end to end.

  Args:
    leaves: Floating arrays of one dtype.
    k: int32 scalar.
    where: The candidates of each; None for all.
    several: Whether there are several devices, over which leaves may be
      sharded.
    loops: Whether passes are turns of a loop, and those that ties need
      conditional: cheap on a CPU, whereas accelerators wait for their host.

  Returns:
    Bool arrays of the leaves' shapes.
  """
  shapes = [x.shape for x in leaves]
  sizes = [math.prod(s) for s in shapes]
  if sum(sizes) == 0:
    return [jnp.zeros(s, bool) for s in shapes]
  keys = [
    order_keys(x, lambda i, w=w: i if w is None else jnp.where(w, i, 0))
    for x, w in zip(leaves, where, strict=True)
  ]
  candidates = [(x, True) for x in keys]
  # With fewer than k candidates the threshold is 0, which none of them is.
  dtype = keys[0].dtype
  kth_largest = functools.partial(_kth_largest, several=several, loops=loops)
  bits = jnp.iinfo(dtype).bits
  threshold = kth_largest(lambda i: candidates, k, dtype, bits)
  above, reached = _count(candidates, [threshold + 1, threshold], several)

  # Elements are numbered from the end, so that the first one is the largest.
  def numbered(one):
    after = [sum(sizes[i + 1 :]) for i in range(len(sizes))]
    return [
      _count_from_end(s, one + jnp.uint32(n))
      for s, n in zip(shapes, after, strict=True)
    ]

  def ties(i):
    tied, one = threshold, jnp.uint32(1)
    if loops and not several:
      tied, one = xla.in_every_pass(i, tied, one)
    return [(n, x == tied) for n, x in zip(numbered(one), keys, strict=True)]

  # A surplus of ties at the threshold: the same search over their numbers.
  def search():
    return kth_largest(ties, k - above, jnp.uint32, sum(sizes).bit_length())

  surplus = (reached > k) & (threshold > 0)
  if loops:
    cut = lax.cond(surplus, search, lambda: jnp.uint32(0))
  else:
    cut = jnp.where(surplus, search(), jnp.uint32(0))
  last = (threshold > 0) & (k > above)
  return [
    (x > threshold) | ((x == threshold) & (n >= cut) & last)
    for x, n in zip(keys, numbered(jnp.uint32(1)), strict=True)
  ]


def _count(leaves, thresholds, several) -> Sequence[jax.Array]:
  """Counts, in one pass, the keys of all leaves that reach each threshold.

  A leaf is a pair: its keys, and which of them take part.
  """

  def leaf(keys, among):
    if among is not True and several:
      keys, among = jnp.where(among, keys, 0), True
    steps = [jnp.asarray(t, keys.dtype) for t in thresholds]
    return xla.count(*((keys >= t) & among for t in steps), several=several)

  counts = [leaf(*pair) for pair in leaves]
  return [sum(c) for c in zip(*counts, strict=True)]


def _kth_largest(leaves, k, dtype, bits, *, several, loops) -> jax.Array:
  """Finds the largest t of so many bits that k keys reach; 0 if none.

  `leaves(i)` are those of `_count`, in pass i, with keys of an unsigned dtype.
  """
  passes = -(-bits // _BITS_PER_PASS)
  digits = [jnp.asarray(d, dtype) for d in range(1, 1 << _BITS_PER_PASS)]

  def refine(i, t):
    shift = jnp.asarray(_BITS_PER_PASS * (passes - 1 - i), dtype)
    steps = [d << shift for d in digits]
    counts = _count(leaves(i), [t | s for s in steps], several)
    # The first pass has fewer bits left than digits have: those that
    # overflow are not reached.
    digit = sum(
      ((c >= k) & (s >> shift == d)).astype(dtype)
      for c, s, d in zip(counts, steps, digits, strict=True)
    )
    return t | (digit << shift)

  t = jnp.zeros((), dtype)
  if loops:
    return lax.fori_loop(0, passes, refine, t)
  for i in range(passes):
    t = refine(i, t)
  return t


def _count_from_end(shape: tuple[int, ...], last: jax.Array) -> jax.Array:
  """Numbers elements from the end by linear index; `last` is the last one's."""
  index = last
  for axis, size in enumerate(shape):
    stride = math.prod(shape[axis + 1 :])
    line = tuple(size if a == axis else 1 for a in range(len(shape)))
    i = lax.broadcasted_iota(jnp.uint32, line, axis)
    index = index + (size - 1 - i) * jnp.uint32(stride)
  return index
