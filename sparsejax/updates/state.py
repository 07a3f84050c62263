"""The state of mask updates, in few arrays.

Every array that a step takes and returns costs an accelerator's host some
microseconds, so what shapes tell is no array here: leaves that stay dense have
no mask, and the budgets of all leaves are one vector.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import masks as masks_lib
from sparsejax.masks import PyTree
from sparsejax.nodes import node


class Dense(NamedTuple):
  """In place of what a leaf that stays dense has not: a node without arrays."""


def without_dense(masks: PyTree, added: tuple[int, ...] = ()) -> PyTree:
  """Replaces the scalar True of dense leaves by nodes without arrays.

  Args:
    masks: A mask tree. Holes, and nodes that stand for masks, stay.
    added: The axes that `jax.vmap` added to all of them.

  Returns:
    The tree to store, whose leaves are the masks of sparse leaves.
  """
  stands = masks_lib.stands_for_mask

  def leaf(mask: Any) -> Any:
    if stands(mask) or jnp.ndim(mask) > len(added):
      return mask
    return Dense()

  return jax.tree.map(leaf, masks, is_leaf=stands)


def with_dense(stored: PyTree, dense: jax.Array) -> PyTree:
  """Puts an array in the place of each leaf that stays dense."""
  return jax.tree.map(
    lambda x: dense if is_dense(x) else x, stored, is_leaf=is_dense
  )


def is_dense(x: Any) -> bool:
  """Returns whether `x` marks a leaf that stays dense."""
  return isinstance(x, Dense)


@node("values", static=("treedef", "shapes"))
class Together:
  """A tree of small arrays of one dtype, stored as one vector.

  Attributes:
    values: [..., n], all of them; axes that `jax.vmap` added come first.
    treedef: The tree's definition.
    shapes: The shape of each leaf, without those axes.
  """

  values: jax.Array
  treedef: jax.tree_util.PyTreeDef
  shapes: tuple[tuple[int, ...], ...]


def together(tree: PyTree, added: tuple[int, ...] = ()) -> PyTree:
  """Stores a tree of small arrays as one vector, if it has any leaves.

  Args:
    tree: The tree.
    added: The axes that `jax.vmap` added to all of them.
  """
  leaves, treedef = jax.tree.flatten(tree)
  if not leaves:
    return tree
  values = jnp.concatenate([jnp.reshape(x, (*added, -1)) for x in leaves], -1)
  shapes = tuple(np.shape(x)[len(added) :] for x in leaves)
  return Together(values, treedef, shapes)


def apart(stored: PyTree) -> PyTree:
  """Undoes `together`; makes NumPy arrays, unless the vector is traced."""
  if not isinstance(stored, Together):
    return stored
  values = stored.values
  if not isinstance(values, jax.core.Tracer):
    values = np.asarray(values)
  added = values.shape[:-1]
  leaves, start = [], 0
  for shape in stored.shapes:
    end = start + math.prod(shape)
    leaves.append(values[..., start:end].reshape(added + shape))
    start = end
  return stored.treedef.unflatten(leaves)


@jax.tree_util.register_pytree_with_keys_class
class MaskState:
  """The state of a mask update.

  This pytree node holds a few arrays; its attributes make whole trees of them.

  Attributes:
    masks: Bool masks of the params' treedef; the scalar True where dense.
    budget: int32 scalar per leaf: how many weights the leaf keeps, or keeps in
      the end if the number changes. It is the leaf's size where the leaf is
      dense or nothing limits it. A leaf that stacks layers has one number per
      layer, [layers, 1, ...]. With one threshold for all leaves, only the sum
      of the budgets has a meaning until pruning has ended.
    count: int32 scalar: steps so far, counted by `sparsify`.
    key: uint32 [2], raw data of the key that all later draws are folded from;
      None if nothing is drawn.
    refused: int32 scalar: how often a leaf's mask did not change because a
      score was not finite.
    scores: States of the scores, and whatever else an update remembers.

  Example:
    >>> state = MaskState(
    ...   masks={"w": jnp.array([True, False]), "b": jnp.array(True)},
    ...   budget={"w": jnp.int32(1), "b": jnp.int32(2)},
    ...   count=jnp.int32(0), key=None, refused=jnp.int32(0), scores=())
    >>> [x.shape for x in jax.tree.leaves(state)]
    [(2,), (2,), (), ()]
    >>> bool(state.masks["b"]), int(state.budget["b"])
    (True, 2)
  """

  def __init__(
    self,
    masks: PyTree,
    budget: PyTree,
    count: jax.Array,
    key: Any,
    refused: jax.Array,
    scores: Any,
  ):
    """Stores the attributes."""
    self._masks = without_dense(masks, np.shape(count))
    self._budget = together(budget, np.shape(count))
    self.count = count
    self.key = key
    self.refused = refused
    self.scores = scores

  @property
  def masks(self) -> PyTree:
    """The mask tree."""
    return with_dense(self._masks, jnp.ones(np.shape(self.count), bool))

  @property
  def budget(self) -> PyTree:
    """The tree of budgets."""
    return apart(self._budget)

  def _replace(self, **changes: Any) -> "MaskState":
    """Returns a state with other attributes, as a named tuple does."""
    # What stays is stored as it is: a vector that no program takes apart.
    added = np.shape(self.count)
    if "masks" in changes:
      changes["_masks"] = without_dense(changes.pop("masks"), added)
    if "budget" in changes:
      changes["_budget"] = together(changes.pop("budget"), added)
    if unknown := changes.keys() - vars(self).keys():
      raise ValueError(f"got {sorted(unknown)}, wanted attributes of MaskState")
    return self._of(vars(self) | changes)

  @classmethod
  def _of(cls, stored):
    self = object.__new__(cls)
    vars(self).update(stored)
    return self

  def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
    """Lists what is stored, by the attributes' names."""
    keys = [jax.tree_util.GetAttrKey(name.lstrip("_")) for name in _STORED]
    return [*zip(keys, self.tree_flatten()[0], strict=True)], None

  def tree_flatten(self) -> tuple[list[Any], None]:
    """Lists what is stored."""
    return [vars(self)[name] for name in _STORED], None

  @classmethod
  def tree_unflatten(cls, static: None, stored: Iterable[Any]) -> "MaskState":
    """Makes a state of what is stored, or of anything in its place."""
    del static
    return cls._of(zip(_STORED, stored, strict=True))

  def __repr__(self) -> str:
    """Lists what is stored."""
    listed = (f"{name.lstrip('_')}={vars(self)[name]!r}" for name in _STORED)
    return f"MaskState({', '.join(listed)})"


_STORED = ("_masks", "_budget", "count", "key", "refused", "scores")
