"""Trees of values [slots], beside structures that say where they belong.

And the optimizer state that holds the structures.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from sparsejax import nodes, packed
from sparsejax.masks import PyTree, is_hole
from sparsejax.packed import Structure, is_structure
from sparsejax.transform.state import SparseState


def aligned(structure: PyTree, *trees: PyTree) -> tuple[list[tuple], Any]:
  """Lines trees up with a tree of structures.

  Args:
    structure: Structures, holes, and masks of dense leaves.
    *trees: Trees of that structure, or deeper ones.

  Returns:
    A row for each leaf: its path, its structure or None, what each tree has
    there; and the tree's definition.
  """
  rows, treedef = nodes.aligned(
    structure, *trees, is_leaf=lambda x: is_structure(x) or is_hole(x)
  )
  return [
    (path, s if is_structure(s) else None, *more) for path, s, *more in rows
  ], treedef


def _map(change: Callable[..., Any], structure: PyTree, tree: PyTree) -> PyTree:
  """Puts `change(structure, leaf)` in place of packed leaves."""
  rows, treedef = aligned(structure, tree)
  return treedef.unflatten(x if s is None else change(s, x) for _, s, x in rows)


def used(structure: PyTree) -> PyTree:
  """Makes masks of the values: which slots are used."""
  return jax.tree.map(
    lambda s: s.used() if is_structure(s) else s,
    structure,
    is_leaf=is_structure,
  )


def gathered(structure: PyTree, params: PyTree) -> PyTree:
  """Gathers the values [slots] of params."""
  return _map(jax.jit(lambda s, p: s.gather(p)), structure, params)


class PackedState(SparseState):
  """The state of `modes.packed`; its masks are structures of packed arrays."""

  def forward(self, values: PyTree, probes: PyTree = None) -> PyTree:
    """Joins values and structures for the model: `packed.join`."""
    return packed.join(values, self.mask_state.masks, probes)


# The inner optimizer sees values with as many axes as the array has, for rules
# such as that of weight decay on matrices only.


def as_array_axes(structure: Structure, values: jax.Array) -> jax.Array:
  """Reshapes values [slots] to [1, ..., slots], as many axes as the array's."""
  return values.reshape((1,) * (len(structure.sizes) - 1) + values.shape)


def with_axes(tree: PyTree, structure: PyTree) -> PyTree:
  """Reshapes a tree of values [slots] to what the inner optimizer sees."""
  return _map(as_array_axes, structure, tree)


def without_axes(tree: PyTree, structure: PyTree) -> PyTree:
  """Undoes `with_axes`."""
  return _map(lambda s, x: x.reshape(-1), structure, tree)


def map_moments(
  change: Callable[[Structure, jax.Array], jax.Array],
  inner: optax.GradientTransformation,
  inner_state: Any,
  structure: PyTree,
) -> Any:
  """Puts `change(structure, moment)` in place of packed leaves' moments."""

  def leaf(moment, s):
    if is_hole(moment) or not is_structure(s) or moment.ndim == 0:
      return moment
    return change(s, moment)

  return optax.tree.map_params(
    inner, leaf, inner_state, structure, is_leaf=is_hole
  )
