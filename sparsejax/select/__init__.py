"""Exactly k of n, without a sort.

Selection works by counting. Every pass over the scores counts how many reach
each of several thresholds, and so finds more bits of the k-th largest score.
Here is the public interface; `counting` serves CPUs and meshes, `tiles` a
single accelerator, and `equation` chooses between them.
"""

import jax
import jax.numpy as jnp

from sparsejax import masks as masks_lib
from sparsejax import xla
from sparsejax.masks import PyTree
from sparsejax.select.equation import select, together
from sparsejax.select.order import of_one_dtype, order_keys, ordered
from sparsejax.select.tiles import count_in_rows

__all__ = [
  "count_in_rows",
  "count_of_each",
  "order_keys",
  "ordered",
  "together",
  "top_k_mask",
  "top_k_mask_if_any",
  "top_k_masks",
  "top_k_of_each",
]

_MAX_SIZE = 2**31 - 1


def top_k_mask(
  scores: jax.Array, k: jax.Array | int, where: jax.Array | None = None
) -> jax.Array:
  """Marks the k largest scores; ties go to the lower linear index.

  The order is that of a stable descending argsort: -0.0 equals 0.0, subnormal
  numbers count, and NaN comes last, after -inf. The work is a fixed number of
  counting passes (11 for 32-bit scores, 6 for 16-bit ones), and nothing is
  sorted. With several devices, nothing is reshaped or gathered either: sharded
  scores give a mask with the same sharding, at the price of a few scalar
  reductions. On a single CPU device, a faster kernel handles large arrays.

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
  return select([scores], k, [where])[0]


def top_k_mask_if_any(scores: jax.Array, k: jax.Array) -> jax.Array:
  """Marks the k largest scores; on CPUs it costs nothing if k is 0.

  Args:
    scores: As in `top_k_mask`.
    k: int32 scalar.

  Returns:
    The mask, as in `top_k_mask`.
  """
  scores = jnp.asarray(scores)
  _check(scores)
  return select([scores], k, [None], rare=True)[0]


@jax.jit
def top_k_masks(
  scores: PyTree, k: jax.Array | int, where: PyTree | None = None
) -> PyTree:
  """Marks the k largest scores of a whole tree, by one threshold over it.

  The order is that of `top_k_mask` on the concatenated leaves: ties go to the
  earlier leaf, then to the lower linear index. Leaves of different dtypes are
  compared by value.

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
  return treedef.unflatten(select(of_one_dtype(leaves), k, candidates))


def top_k_of_each(
  scores: jax.Array,
  k: jax.Array | int,
  axis: int,
  where: jax.Array | None = None,
) -> jax.Array:
  """Marks the k largest scores of each slice along an axis, slice by slice.

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
  """Counts the True entries in every slice along an axis.

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
