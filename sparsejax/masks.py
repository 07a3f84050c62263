"""Mask trees: one bool leaf per parameter, True where a weight is active.

A mask has the shape of its parameter, or is the scalar True where the whole
leaf stays dense; so a mask tree has the treedef of the params it is for.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = [
  "apply_masks",
  "density",
  "everything",
  "nnz",
  "overlap",
  "pack_bits",
  "path_name",
  "places",
  "unpack_bits",
]

PyTree = Any


def path_name(path: tuple[Any, ...]) -> str:
  """Joins the key path of a leaf to a string, such as `Dense_0/kernel`.

  Args:
    path: A key path, as `jax.tree_util.tree_map_with_path` gives it.

  Returns:
    Its keys joined by slashes; empty for a tree that is a bare array. The
    `value` in which a Flax NNX variable holds its array is left out.

  Example:
    >>> path_name((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0)))
    'a/0'
  """
  if path and path[-1] == jax.tree_util.GetAttrKey("value"):
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


HOLE = optax.MaskedNode()  # in place of a leaf, in a tree of params' shape


def is_hole(x: Any) -> bool:
  """Returns whether `x` marks a leaf that optax has left out of a tree."""
  return isinstance(x, optax.MaskedNode)


def stands_for_mask(x: Any) -> bool:
  """Returns whether `x` is a node in place of a mask, as for a packed array.

  The node's method `__sparsejax_mask__()` makes the mask, a bool array of the
  leaf's shape.
  """
  # Asks the type and not `x`: an `nnx.Param` hands on whatever attribute its
  # value has, and would pass for the node that it holds.
  return hasattr(type(x), "__sparsejax_mask__")


def apply_masks(tree: PyTree, masks: PyTree) -> PyTree:
  """Sets inactive entries to exactly zero.

  Args:
    tree: A pytree of arrays: params, gradients, an average of params.
    masks: Its mask tree. Each mask is bool and has its leaf's shape, or is the
      scalar True.

  Returns:
    `tree` with zeros where the masks are False; its dtypes are kept.

  Raises:
    ValueError: If the two trees or the shapes of two leaves differ.
    TypeError: If a mask is not bool.

  Example:
    >>> import jax.numpy as jnp
    >>> apply_masks([jnp.ones(2)], [jnp.array([True, False])])
    [Array([1., 0.], dtype=float32)]
  """
  check_like(masks, tree, "masks")
  # By leaves, since containers may differ: NNX wraps its optimizer's state.
  leaves, treedef = jax.tree.flatten(tree, is_leaf=is_hole)
  flat = jax.tree_util.tree_leaves_with_path(masks, is_leaf=is_hole)
  return treedef.unflatten(
    _apply(path, mask, x) for (path, mask), x in zip(flat, leaves, strict=True)
  )


def _apply(path, mask, x):
  if is_hole(mask) or is_hole(x) or jnp.ndim(mask) == 0:
    return x
  check_bool(path, mask)
  return jnp.where(mask, x, jnp.zeros_like(x))


def check_bool(path: tuple[Any, ...], mask: Any) -> None:
  """Raises a TypeError that names the leaf if its mask is not bool."""
  dtype = getattr(mask, "dtype", jnp.result_type(mask))
  if not jnp.issubdtype(dtype, jnp.bool_):
    raise TypeError(
      f"{path_name(path) or 'the array'}: got a mask of {dtype}, wanted bool, "
      "True where active: convert it, for example with mask != 0"
    )


def count_in(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Counts the active weights of a leaf, or of each of its layers.

  Args:
    mask: A mask.
    shape: () to count all weights together; else the mask's shape with 1 in
      each axis to count along.

  Returns:
    An int32 array of that shape.

  Example:
    >>> print(count_in(jnp.eye(2, dtype=bool), (2, 1)).ravel())
    [1 1]
  """
  along = tuple(a for a, n in enumerate(shape) if n == 1)
  axes, kept = (along, True) if shape else (None, False)
  return jnp.sum(mask, axis=axes, keepdims=kept, dtype=jnp.int32)


def active_of_each(masks: PyTree, params: PyTree, shapes: PyTree) -> PyTree:
  """Counts each leaf's active weights: a tree of int32.

  Args:
    masks: A mask tree. Any `optax.MaskedNode` in it stays.
    params: The params, which give the sizes of the leaves that stay dense.
    shapes: A tree of arrays with the shapes of the counts; see `count_in`.

  Returns:
    The tree, of the structure of `masks`.
  """

  def leaf(mask, p, like):
    if is_hole(mask):
      return mask
    if jnp.ndim(mask):
      return count_in(mask, np.shape(like))
    return jnp.int32(np.size(p))

  return jax.tree.map(leaf, masks, params, shapes, is_leaf=is_hole)


def everything(params: PyTree, paths: Collection[str]) -> PyTree:
  """Makes masks under which everything is active.

  Args:
    params: A pytree of arrays.
    paths: Key paths of the leaves that are to become sparse.

  Returns:
    The mask tree: True everywhere in these leaves, the scalar True elsewhere.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, p: (
      jnp.ones_like(p, bool) if path_name(path) in paths else jnp.array(True)
    ),
    params,
  )


def nnz(masks: PyTree) -> int | jax.Array:
  """Counts the active weights of the leaves that are sparse.

  Args:
    masks: A mask tree. Dense leaves are left out, since their mask, the scalar
      True, does not show their size. Or params: then all non-zeros are counted,
      including those of dense leaves but not scalars.

  Returns:
    A Python int, exact at any size; inside a transformed function a traced
    int32 scalar.

  Raises:
    TypeError: If a leaf is neither bool nor floating, such as the index arrays
      of packed arrays.

  Example:
    >>> import jax.numpy as jnp
    >>> nnz({"kernel": jnp.eye(3, dtype=bool), "bias": jnp.array(True)})
    3
  """
  counts = [jnp.sum(m, dtype=jnp.int32) for m in _sparse_leaves(masks)]
  if any(isinstance(c, jax.core.Tracer) for c in counts):
    return sum(counts)
  return sum(int(c) for c in counts)


def density(masks: PyTree) -> float | jax.Array:
  """Computes the share of active weights among the leaves that are sparse.

  Args:
    masks: A mask tree; or params: then the share of non-zeros in all leaves,
      including dense ones.

  Returns:
    `nnz(masks)` divided by the number of weights in those leaves, in [0, 1]; 1
    if every leaf is dense.

  Raises:
    TypeError: As in `nnz`.

  Example:
    >>> import jax.numpy as jnp
    >>> density([jnp.array([True, False]), jnp.array(True)])
    0.5
  """
  size = sum(m.size for m in _sparse_leaves(masks))
  return nnz(masks) / size if size else 1.0


def _sparse_leaves(masks):
  """Lists the masks of sparse leaves; of params, where they are not zero."""
  found = []
  for path, x in jax.tree_util.tree_leaves_with_path(masks):
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.inexact):
      x = jnp.not_equal(x, 0)
    elif not jnp.issubdtype(dtype, jnp.bool_):
      raise TypeError(
        f"{path_name(path) or 'the array'}: got {dtype}{list(np.shape(x))}, "
        "wanted masks, bool, or params, floating: take "
        "sparsejax.get_masks(opt_state)"
      )
    if jnp.ndim(x) > 0:
      found.append(x)
  return found


def overlap(a: PyTree, b: PyTree) -> PyTree:
  """Computes intersection over union of two mask trees, leaf by leaf.

  Args:
    a: A mask tree.
    b: Another one for the same params.

  Returns:
    A tree of float32 scalars in [0, 1]; 1 for dense or empty leaves.

  Raises:
    ValueError: If the two trees or the shapes of two leaves differ.

  Example:
    >>> import jax.numpy as jnp
    >>> print(overlap(jnp.array([1, 1, 0], bool), jnp.array([0, 1, 1], bool)))
    0.33333334
  """
  check_like(a, b, "masks")

  def leaf(x, y):
    union = jnp.sum(x | y, dtype=jnp.int32)
    both = jnp.sum(x & y, dtype=jnp.int32)
    return jnp.where(union > 0, both / jnp.maximum(union, 1), 1.0)

  return jax.tree.map(leaf, a, b)


def pack_bits(masks: PyTree) -> PyTree:
  """Packs masks eight to a byte, for storage.

  Args:
    masks: A mask tree.

  Returns:
    A tree of uint8 arrays of shape [ceil(size / 8)].

  Example:
    >>> import jax.numpy as jnp
    >>> pack_bits(jnp.array([[True, False], [True, True]]))
    Array([176], dtype=uint8)
  """
  return jax.tree.map(lambda m: jnp.packbits(jnp.ravel(m)), masks)


def unpack_bits(packed: PyTree, like: PyTree) -> PyTree:
  """Undoes `pack_bits`.

  Args:
    packed: What `pack_bits` gave.
    like: A tree of arrays or `jax.ShapeDtypeStruct` with the masks' shapes.

  Returns:
    The mask tree.

  Raises:
    ValueError: If a leaf does not hold as many bytes as its shape needs.
  """

  def leaf(path, bits, x):
    wanted = -(-x.size // 8)
    if bits.shape != (wanted,):
      raise ValueError(
        f"{path_name(path)}: {bits.shape} bytes cannot hold a mask of shape "
        f"{x.shape}, which takes {wanted}"
      )
    flat = jnp.unpackbits(bits, count=x.size)
    return flat.reshape(x.shape).astype(bool)

  return jax.tree_util.tree_map_with_path(leaf, packed, like)


def places(mask: jax.Array, k: int) -> jax.Array:
  """Lists where a mask is True, in a fixed number of slots.

  Args:
    mask: Bool array of any shape.
    k: How many slots.

  Returns:
    int32[k]: the linear indices of the True entries, ascending; the first k of
    them if there are more, and mask.size in unused slots if there are fewer.

  Example:
    >>> import jax.numpy as jnp
    >>> print(places(jnp.array([[False, True], [True, False]]), 3))
    [1 2 4]
  """
  # By words of 32: XLA takes far longer for a cumulative sum of all of them.
  bits = jnp.pad(mask.reshape(-1), (0, -mask.size % 32)).reshape(-1, 32)
  shifts = jnp.arange(32, dtype=jnp.uint32)
  words = jnp.sum(bits.astype(jnp.uint32) << shifts, axis=1, dtype=jnp.uint32)
  counts = _ones(words)
  ends = jnp.cumsum(counts)
  nth = jnp.arange(k, dtype=jnp.int32)
  at = jnp.searchsorted(ends, nth, side="right").astype(jnp.int32)
  word, left = words[at], nth - (ends - counts)[at]
  # The place of the bit of which `left` others are below, by halves.
  bit = jnp.zeros(k, jnp.uint32)
  for half in (16, 8, 4, 2, 1):
    below = _ones((word >> bit) & ((1 << half) - 1))
    above = left >= below
    left -= jnp.where(above, below, 0)
    bit += jnp.where(above, jnp.uint32(half), 0)
  found = 32 * at + bit.astype(jnp.int32)
  return jnp.where(nth < ends[-1], found, mask.size)


def _ones(words):
  return jax.lax.population_count(words).astype(jnp.int32)


def check_like(
  tree: PyTree, like: PyTree, what: str, *, scalars: bool = True
) -> None:
  """Checks that a tree fits another, naming the first odd leaf.

  Args:
    tree: The tree to check. An `optax.MaskedNode` in it fits every leaf.
    like: The tree that it is for.
    what: What `tree` holds, for the message.
    scalars: Whether its scalars fit every leaf too, as the mask True does.

  Raises:
    ValueError: If the key paths differ, or the shapes of two leaves.
  """
  got = _shapes(tree)
  wanted = _shapes(like)
  for path in [*got, *wanted]:
    if path not in wanted:
      problem = f"{what} have a leaf that the params lack"
    elif path not in got:
      problem = f"{what} lack a leaf that the params have"
    elif got[path] != wanted[path] and not (scalars and got[path] == ()):
      problem = (
        f"{what} of shape {got[path]}, wanted {wanted[path]} as the params"
      )
    else:
      continue
    raise ValueError(
      f"{path or 'the array'}: {problem}. Pass a tree of the same structure "
      "as the params, leaf by leaf"
    )
  if list(got) != list(wanted):
    raise ValueError(
      f"{what} have their leaves in the order {list(got)}, wanted "
      f"{list(wanted)} as the params. Pass a tree of the same structure"
    )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_hole)
  return {
    path_name(path): () if is_hole(x) else np.shape(x) for path, x in leaves
  }
