"""Trees of the params' structure, and what is cut out of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.shrink.removal import Removal
from sparsejax.shrink.smaller import taken
from sparsejax.updates import MaskState

# Removes some indices of an axis: array, bool of which are kept, axis.
Cutter = Callable[[Any, np.ndarray, int], Any]


class Structure:
  """The structure of params.

  Attributes:
    paths: The key path of each leaf.
    leaves: Their shapes.
    treedef: Their tree.
  """

  def __init__(self, params: PyTree):
    flat, self.treedef = jax.tree_util.tree_flatten_with_path(params)
    self.paths = tuple(path_name(path) for path, _ in flat)
    self.leaves = tuple(shape_of(leaf) for _, leaf in flat)

  def whole(self, leaves: Sequence[Any] | None = None) -> PyTree:
    """Makes a tree of leaves; by default of their shapes."""
    return self.treedef.unflatten(self.leaves if leaves is None else leaves)

  def carried(self, out: PyTree) -> dict[int, int]:
    """Finds which leaf each output is the next value of, by their indices.

    Such an output's key path ends in the leaf's, and it has its shape.
    """
    carried = {}
    flat = jax.tree_util.tree_leaves_with_path(out)
    known = {path: leaf for leaf, path in enumerate(self.paths) if path}
    for output, (path, x) in enumerate(flat):
      parts = path_name(path).split("/")
      for begin in range(len(parts)):
        leaf = known.get("/".join(parts[begin:]))
        if leaf is not None and self.leaves[leaf].shape == x.shape:
          carried[output] = leaf
          break
    return carried

  def leaves_of(self, tree: PyTree, what: str) -> list[Any]:
    """Lists the leaves of a tree of the params' structure."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_hole)
    names = tuple(path_name(path) for path, _ in flat)
    if names != self.paths:
      odd = next(iter({*names} ^ {*self.paths}), "another order")
      raise ValueError(
        f"{odd}: {what} and params differ there. Pass a tree of the params' "
        "structure"
      )
    leaves = [leaf for _, leaf in flat]
    for path, old, leaf in zip(self.paths, self.leaves, leaves, strict=True):
      if not is_hole(leaf) and np.shape(leaf) not in ((), old.shape):
        raise ValueError(
          f"{path}: got {what} of shape {np.shape(leaf)}, wanted {old.shape}"
        )
    return leaves

  def map(self, cut: Cutter, tree: PyTree, remove: Removal) -> PyTree:
    """Maps over all trees of the params' structure inside a tree."""
    found = []

    def is_params(x):
      if isinstance(x, MaskState):
        raise ValueError(
          "got masks with budgets, which do not hold for a smaller model. Cut "
          "the inner optimizer's state, opt_state.inner_state, and the masks, "
          "sparsejax.get_masks(opt_state); go on with that optimizer, or with "
          "sparsejax.fixed and these masks"
        )
      names = tuple(
        path_name(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(x, is_leaf=is_hole)
      )
      return names == self.paths

    def cut_all(x):
      if not is_params(x):
        return x
      found.append(True)
      leaves, treedef = jax.tree.flatten(x, is_leaf=is_hole)
      return treedef.unflatten(
        self.cut_leaf(cut, index, leaf, remove)
        for index, leaf in enumerate(leaves)
      )

    result = jax.tree.map(cut_all, tree, is_leaf=is_params)
    if not found:
      raise ValueError(
        f"got {jax.tree.structure(tree)}, wanted a tree of the params' "
        f"structure, {self.treedef}, or one that holds such trees"
      )
    return result

  def cut_leaf(
    self, cut: Cutter, index: int, leaf: Any, remove: Removal
  ) -> Any:
    """Cuts what stands for one leaf of the params, by its index."""
    path, old = self.paths[index], self.leaves[index]
    if is_hole(leaf) or np.ndim(leaf) == 0:
      return leaf
    axes = [
      axis for axis in range(len(old.shape)) if (path, axis) in remove.keep
    ]
    if axes and np.shape(leaf) != old.shape:
      raise ValueError(
        f"{path}: got shape {np.shape(leaf)}, wanted {old.shape} as the params"
        " have: what is not of a parameter's shape cannot be cut, such as"
        " factored moments: make such a state anew"
      )
    for axis in axes:
      leaf = cut(leaf, remove.keep[path, axis], axis)
    return leaf


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype of an array, or of what stands for one."""
  weak = getattr(x, "weak_type", isinstance(x, int | float | complex))
  return jax.ShapeDtypeStruct(
    jnp.shape(x), jax.dtypes.result_type(x), weak_type=weak
  )


def take(x: Any, kept: np.ndarray, axis: int) -> Any:
  """Takes the indices of an axis that are kept."""
  if isinstance(x, jax.ShapeDtypeStruct):
    shape = list(x.shape)
    shape[axis] = int(kept.sum())
    return jax.ShapeDtypeStruct(tuple(shape), x.dtype)
  return taken(x, np.flatnonzero(kept), axis)
