"""Exactly k of n, without a sort.

Selection counts: every pass over the scores counts how many reach each of
seven thresholds, and so settles three more bits of the k-th largest one.
Counts are scalars, whatever the size, shape or sharding of the scores; so
those of several leaves are added, and a tree is ranked as one array.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import kernels, xla
from sparsejax import masks as masks_lib
from sparsejax.masks import PyTree

_BITS_PER_PASS = 3
_MAX_SIZE = 2**31 - 1
# From how many scores on a kernel is built, or taken if it is there already.
_WORTH_BUILDING, _WORTH_CALLING = 2**20, 2**16


@jax.jit
def top_k_mask(
  scores: jax.Array, k: jax.Array | int, where: jax.Array | None = None
) -> jax.Array:
  """Marks the k largest scores; ties go to the lower linear index.

  The order is that of a stable descending argsort: -0.0 equals 0.0, subnormal
  numbers count, and NaN comes last, after -inf. The work is a fixed number of
  passes of counting (11 for 32-bit scores, 6 for 16-bit ones), so nothing is
  sorted, reshaped or gathered: sharded scores give a mask of their own
  sharding, at the price of a few scalar reductions. Many scores on a single
  CPU device are for a kernel, which counts faster.

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
  _check(scores)
  if _for_kernel(scores):
    k = jnp.asarray(k, jnp.int32)
    return lax.platform_dependent(
      scores, k, where, cpu=_by_kernel, default=_by_counting
    )
  return _by_counting(scores, k, where)


@jax.jit
def top_k_masks(
  scores: PyTree, k: jax.Array | int, where: PyTree | None = None
) -> PyTree:
  """Marks the k largest scores of a whole tree, by one threshold over it.

  The order is that of `top_k_mask` on the leaves laid end to end: ties go to
  the earlier leaf, then to the lower linear index. Leaves of several dtypes
  are compared by value.

  Args:
    scores: A pytree of floating arrays of any shapes, of at most 2**31 - 1
      elements together: counts are int32.
    k: How many to mark in all, an integer scalar; it may be traced.
    where: Optional bool masks of the same structure: the candidates. Each is
      of its leaf's shape, or a scalar that holds for the whole leaf.

  Returns:
    A tree of bool arrays of the shapes of `scores` with exactly k True
    together, or every candidate True if there are fewer than k.

  Raises:
    TypeError: If a score is not floating.
    ValueError: If there are more elements than an int32 can count, or `where`
      does not fit the scores.

  Example:
    >>> import jax.numpy as jnp
    >>> scores = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([[2.0], [2.0]])}
    >>> masks = top_k_masks(scores, 2)
    >>> print(masks["a"], masks["b"].ravel())
    [ True False] [ True False]
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(scores)
  leaves = [jnp.asarray(x) for _, x in paths]
  for (path, _), x in zip(paths, leaves, strict=True):
    _check(x, masks_lib.path_name(path))
  total = sum(x.size for x in leaves)
  if total > _MAX_SIZE:
    raise ValueError(
      f"got {total} scores in {len(leaves)} leaves, wanted at most {_MAX_SIZE} "
      "in all: rank parts of the tree by themselves, for example layer by layer"
    )
  candidates = [None] * len(leaves)
  if where is not None:
    masks_lib.check_like(where, scores, "candidates")
    candidates = jax.tree.leaves(where)
  return treedef.unflatten(_top_k(_of_one_dtype(leaves), k, candidates))


def top_k_of_each(
  scores: jax.Array,
  k: jax.Array | int,
  axis: int,
  where: jax.Array | None = None,
) -> jax.Array:
  """Marks the k largest scores of every slice along an axis, by themselves.

  Args:
    scores: Floating array of at least one axis.
    k: How many to mark in each slice: an integer, or an integer array of the
      length of that axis; it may be traced.
    axis: The axis whose every index is a slice.
    where: Optional bool array of the shape of `scores`: the candidates.

  Returns:
    A bool array of the shape of `scores`; see `top_k_mask` for order and ties.

  Raises:
    TypeError: If the scores are not floating.
    ValueError: If a slice has more elements than an int32 can count.

  Example:
    >>> import jax.numpy as jnp
    >>> print(top_k_of_each(jnp.array([[3.0, 1.0], [2.0, 4.0]]), 1, axis=1))
    [[ True False]
     [False  True]]
  """
  k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (scores.shape[axis],))
  if where is None:
    where = jnp.ones(scores.shape, bool)
  each = jax.vmap(top_k_mask, (axis, 0, axis), axis)
  return xla.sharded_as_first(each)(scores, k, where)


def count_of_each(mask: jax.Array, axis: int) -> jax.Array:
  """Counts what is True in every slice along an axis.

  Args:
    mask: Bool array of at least one axis.
    axis: The axis whose every index is a slice.

  Returns:
    An int32 array of the length of that axis.

  Example:
    >>> print(count_of_each(jnp.array([[True, False], [True, True]]), axis=0))
    [1 2]
  """
  others = tuple(a for a in range(mask.ndim) if a != axis % mask.ndim)
  return jnp.sum(mask, axis=others, dtype=jnp.int32)


def _by_counting(scores, k, where):
  return _top_k([scores], k, [where])[0]


def _for_kernel(scores):
  """Returns whether a CPU kernel, which sees all scores at once, takes them."""
  if (
    scores.size < _WORTH_CALLING
    or jnp.finfo(scores.dtype).bits > 32
    or jax.device_count() > 1
  ):
    return False
  if scores.size < _WORTH_BUILDING:
    return kernels.loaded()
  return kernels.available(quiet=True)


def _by_kernel(scores, k, where):
  keys = ordered(scores).astype(jnp.uint32)
  if where is not None:
    keys = jnp.where(where, keys, 0)
  return kernels.top_k(keys, k)


def _check(scores, name=""):
  where = f"{name}: " if name else ""
  if not jnp.issubdtype(scores.dtype, jnp.floating):
    raise TypeError(
      f"{where}scores must be floating, got {scores.dtype}{list(scores.shape)}"
    )
  if scores.size > _MAX_SIZE:
    raise ValueError(
      f"{where}got {scores.size} scores of shape {scores.shape}, wanted at "
      f"most {_MAX_SIZE}: split the array, for example along its first axis"
    )


def _top_k(leaves, k, where) -> list[jax.Array]:
  """Marks the k largest of arrays of one dtype, as if laid end to end."""
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
  k = jnp.asarray(k, jnp.int32)
  dtype = keys[0].dtype
  threshold = _kth_largest(lambda i: candidates, k, dtype)
  above, reached = _count(candidates, [threshold + 1, threshold])

  # Elements are numbered from the end, so that the first one is the largest.
  def numbered(one):
    after = [sum(sizes[i + 1 :]) for i in range(len(sizes))]
    return [
      _count_from_end(s, one + jnp.uint32(n))
      for s, n in zip(shapes, after, strict=True)
    ]

  def ties(i):
    tied, one = xla.in_every_pass(i, threshold, jnp.uint32(1))
    return [(n, x == tied) for n, x in zip(numbered(one), keys, strict=True)]

  # A surplus of ties at the threshold: the same search over their numbers.
  cut = lax.cond(
    (reached > k) & (threshold > 0),
    lambda: _kth_largest(ties, k - above, jnp.uint32),
    lambda: jnp.uint32(0),
  )
  last = (threshold > 0) & (k > above)
  return [
    (x > threshold) | ((x == threshold) & (n >= cut) & last)
    for x, n in zip(keys, numbered(jnp.uint32(1)), strict=True)
  ]


def order_keys(
  scores: jax.Array, finish: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Computes the integers of `ordered` once, for all later passes.

  Otherwise counts and comparisons of scores might not agree, and k weights not
  be k; see `xla.materialised`.

  Args:
    scores: Floating array.
    finish: What else is to be done to the integers, elementwise.

  Returns:
    An array of their shape and unsigned dtype.
  """
  uint = jnp.dtype(f"uint{jnp.finfo(scores.dtype).bits}")

  def order(bits: jax.Array) -> jax.Array:
    return finish(ordered(lax.bitcast_convert_type(bits, scores.dtype)))

  return xla.materialised(order, lax.bitcast_convert_type(scores, uint))


def _of_one_dtype(leaves):
  """Widens what is narrower than the widest, if there are several dtypes."""
  dtypes = {x.dtype for x in leaves}
  if len(dtypes) < 2:
    return leaves
  wide = max(jnp.float32, *dtypes, key=lambda d: jnp.finfo(d).bits)
  return [_widen(x, jnp.dtype(wide)) for x in leaves]


def _widen(x, dtype):
  """Converts to a wider dtype, subnormal numbers among them."""
  if x.dtype == dtype:
    return x
  wide = x.astype(dtype)
  if dtype != jnp.float64:
    return wide
  # Arithmetic may flush float32's subnormal numbers: take them from the bits.
  info = jnp.finfo(x.dtype)
  bits = lax.bitcast_convert_type(x, f"uint{info.bits}")
  size = bits & ((1 << (info.bits - 1)) - 1)
  small = size.astype(dtype) * float(info.smallest_subnormal)
  small = jnp.where(size < bits, -small, small)
  return jnp.where(size < 1 << info.nmant, small, wide)


def ordered(x: jax.Array) -> jax.Array:
  """Maps floats to unsigned integers that order as `top_k_mask` says.

  Args:
    x: Floating array.

  Returns:
    An array of its shape, of the unsigned dtype of its size. NaN is 1; 0 and
    the largest integer are what no float becomes.

  Example:
    >>> print(ordered(jnp.array([0.0, -0.0, 1.0])) >> 28)
    [ 8  8 11]
  """
  bits = jnp.finfo(x.dtype).bits
  uint = jnp.dtype(f"uint{bits}")
  sign = jnp.array(1 << (bits - 1), uint)
  i = lax.bitcast_convert_type(x, uint)
  i = jnp.where(i == sign, jnp.zeros_like(i), i)  # -0.0 is 0.0
  i = jnp.where(i >= sign, ~i, i | sign)
  return jnp.where(jnp.isnan(x), jnp.ones_like(i), i)


def _count(leaves, thresholds) -> Sequence[jax.Array]:
  """Counts, in one pass, the keys of all leaves that reach each threshold.

  A leaf is a pair: its keys, and which of them take part.
  """

  def leaf(keys, among):
    if among is not True and jax.device_count() > 1:
      keys, among = jnp.where(among, keys, 0), True
    steps = [jnp.asarray(t, keys.dtype) for t in thresholds]
    return xla.count(*((keys >= t) & among for t in steps))

  counts = [leaf(*pair) for pair in leaves]
  return [sum(c) for c in zip(*counts, strict=True)]


def _kth_largest(leaves, k, dtype) -> jax.Array:
  """Finds the largest t that at least k of all keys reach; 0 if none.

  `leaves(i)` are those of `_count`, in pass i, with keys of an unsigned dtype.
  """
  passes = -(-jnp.iinfo(dtype).bits // _BITS_PER_PASS)
  digits = [jnp.asarray(d, dtype) for d in range(1, 1 << _BITS_PER_PASS)]

  def refine(i, t):
    shift = jnp.asarray(_BITS_PER_PASS * (passes - 1 - i), dtype)
    steps = [d << shift for d in digits]
    counts = _count(leaves(i), [t | s for s in steps])
    # The first pass has fewer bits left than digits have: those that
    # overflow are not reached.
    digit = sum(
      ((c >= k) & (s >> shift == d)).astype(dtype)
      for c, s, d in zip(counts, steps, digits, strict=True)
    )
    return t | (digit << shift)

  return lax.fori_loop(0, passes, refine, jnp.zeros((), dtype))


def _count_from_end(shape: tuple[int, ...], last: jax.Array) -> jax.Array:
  """Numbers elements from the end by linear index; `last` is the last one's."""
  index = last
  for axis, size in enumerate(shape):
    stride = math.prod(shape[axis + 1 :])
    line = tuple(size if a == axis else 1 for a in range(len(shape)))
    i = lax.broadcasted_iota(jnp.uint32, line, axis)
    index = index + (size - 1 - i) * jnp.uint32(stride)
  return index
