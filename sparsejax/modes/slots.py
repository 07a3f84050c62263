"""Trees of values [slots], beside structures that say where they belong."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from sparsejax.masks import PyTree, is_hole
from sparsejax.packed import is_structure


def leaves(structure: PyTree) -> list[Any]:
  """Its leaves: structures, holes, and masks of dense leaves."""
  return jax.tree.leaves(
    structure, is_leaf=lambda x: is_structure(x) or is_hole(x)
  )


def rows(structure: PyTree, *trees: PyTree):
  """A row for each leaf: its path, its structure or None, what trees have."""
  flat, treedef = jax.tree_util.tree_flatten_with_path(
    structure, is_leaf=lambda x: is_structure(x) or is_hole(x)
  )
  columns = [treedef.flatten_up_to(tree) for tree in trees]
  found = [
    (path, s if is_structure(s) else None, *more)
    for (path, s), *more in zip(flat, *columns, strict=True)
  ]
  return found, treedef


def used(structure: PyTree) -> PyTree:
  """Masks of the values: which slots are used."""
  return jax.tree.map(
    lambda s: s.used() if is_structure(s) else s,
    structure,
    is_leaf=is_structure,
  )


def gathered(structure: PyTree, params: PyTree) -> PyTree:
  """The values of params."""
  found, treedef = rows(structure, params)
  gather = jax.jit(lambda s, p: s.gather(p))
  return treedef.unflatten(
    p if s is None else gather(s, p) for _, s, p in found
  )


# The inner optimizer sees values with as many axes as the array has, for rules
# such as that of weight decay on matrices only.


def raise_(structure: Any, values: jax.Array) -> jax.Array:
  """Values with as many axes as the array has."""
  return values.reshape((1,) * (len(structure.sizes) - 1) + values.shape)


def raised(tree: PyTree, structure: PyTree) -> PyTree:
  """A tree of values, likewise: what the inner optimizer sees."""
  found, treedef = rows(structure, tree)
  return treedef.unflatten(
    x if s is None else raise_(s, x) for _, s, x in found
  )


def lowered(tree: PyTree, structure: PyTree) -> PyTree:
  """The same with values [slots]."""
  found, treedef = rows(structure, tree)
  return treedef.unflatten(
    x if s is None else x.reshape(-1) for _, s, x in found
  )


def moments(
  inner: optax.GradientTransformation,
  inner_state: Any,
  structure: PyTree,
  change: Callable[[Any, jax.Array], jax.Array],
) -> Any:
  """The inner state with `change(structure, moment)` in place of moments."""

  def leaf(moment, s):
    if is_hole(moment) or not is_structure(s) or moment.ndim == 0:
      return moment
    return change(s, moment)

  return optax.tree.map_params(
    inner, leaf, inner_state, structure, is_leaf=is_hole
  )
