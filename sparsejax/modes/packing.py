"""Packs the params and state of masked mode, and unpacks them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import packed, patterns
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.modes import slots
from sparsejax.modes.slots import PackedState
from sparsejax.packed import Format, is_structure
from sparsejax.packed.formats import Formats, format_of
from sparsejax.packed.layouts import formats_of
from sparsejax.transform import Recipe
from sparsejax.transform.state import SparseState, get_masks
from sparsejax.updates import MaskState


def pack(
  recipe: Recipe,
  params: PyTree,
  mask_state: MaskState,
  inner_state: Any = None,
  *,
  formats: Format | Formats | None,
  kernel: bool,
) -> tuple[PyTree, PackedState]:
  """Gathers the non-zeros of params and moments.

  Args:
    recipe: What the transformation was made of.
    params: Dense arrays, zeros in place.
    mask_state: Its masks, not traced.
    inner_state: The inner optimizer's state of the dense arrays; None for a
      fresh one.
    formats: As for `modes.packed`.
    kernel: Whether products are for the kernels, where there are some.

  Returns:
    The values, [slots] for each masked leaf, and the state.

  Raises:
    ValueError: If scores or the optimizer keep dense arrays.
  """
  _check_stateless(mask_state)
  structure = _structures(recipe, mask_state, formats, kernel)
  values = slots.gathered(structure, params)
  seen = slots.with_axes(values, structure)
  _check_elementwise(recipe.inner, seen, structure)
  if inner_state is None:
    inner_state = recipe.inner.init(seen)
  else:
    inner_state = slots.map_moments(
      lambda s, m: slots.as_array_axes(s, s.gather(m)),
      recipe.inner,
      inner_state,
      structure,
    )
  state = PackedState(mask_state._replace(masks=structure), inner_state)
  return values, state


def unpack(
  recipe: Recipe, values: PyTree, state: PackedState
) -> tuple[PyTree, SparseState]:
  """Undoes `pack`: dense params, and the state of masked mode."""
  structure = state.mask_state.masks
  inner_state = slots.map_moments(
    lambda s, m: s.expand(m.reshape(-1)),
    recipe.inner,
    state.inner_state,
    structure,
  )
  mask_state = state.mask_state._replace(masks=get_masks(state))
  params = packed.unpack(packed.join(values, structure))
  return params, SparseState(mask_state, inner_state)


def trimmed(
  tx: Any, values: PyTree, opt_state: PackedState
) -> tuple[PyTree, PackedState]:
  """Frees slots that masks no longer use, in steps of a quarter.

  Call it where masks shrink, as in gradual pruning, to free memory. It changes
  shapes, so the step is compiled again. The number of slots depends only on the
  masks, so a resumed run has the same bits as one that was never stopped.

  Args:
    tx: The transformation, a `PackedTransformation`.
    values: The trained values.
    opt_state: Their optimizer state.

  Returns:
    Values and state in fewer slots; unchanged if no slots can be freed.
  """
  mask_state = opt_state.mask_state
  rows, _ = slots.aligned(mask_state.masks, values, mask_state.budget)
  if not any(
    s is not None
    and _slots_for(int(jnp.sum(s.used())), s.sizes, budget) < v.size
    for _, s, v, budget in rows
  ):
    return values, opt_state
  return tx.pack(*tx.unpack(values, opt_state))


def _slots_for(count, sizes, budget):
  """Counts the slots for so many weights: the budget's, or on a grid above."""
  if count <= int(np.sum(budget)):
    return -(-count // 8) * 8
  room = int(np.prod(sizes))
  while 3 * room // 4 >= count:
    room = 3 * room // 4
  return -(-room // 8) * 8


def _structures(recipe, mask_state, formats, kernel):
  """Makes structures in place of masks that are arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(mask_state.masks)
  paths = [path_name(path) for path, mask in leaves if jnp.ndim(mask)]
  pattern = patterns.resolve(recipe.mask_update.pattern, paths)
  fast = ()
  if kernel and jax.default_backend() == "cpu":
    fast = (packed.rows(kernel=True, back=True),)

  def leaf(path, mask, budget):
    if jnp.ndim(mask) == 0:
      return mask
    name = path_name(path)
    host = np.asarray(mask)
    if formats is not None:
      form = format_of(formats, name or "the array", host)
    else:
      known = formats_of(pattern[name].layout)
      form = packed.fitting(host, wanted=(*fast, *known))
    room = _slots_for(int(host.sum()), host.shape, budget)
    return form.structure(host, room)

  return jax.tree_util.tree_map_with_path(
    leaf, mask_state.masks, mask_state.budget
  )


def _check_elementwise(inner, values, structure):
  """Refuses moments that are not one for each value, or a scalar."""

  def leaf(moment, v, s):
    if is_hole(moment) or not is_structure(s):
      return moment
    if moment.ndim and moment.shape != v.shape:
      raise ValueError(
        f"got an optimizer that keeps an array of shape {moment.shape} for "
        f"{v.size} values: wanted an elementwise one such as optax.adamw, or "
        "masked mode"
      )
    return moment

  fresh = jax.eval_shape(inner.init, values)
  optax.tree.map_params(inner, leaf, fresh, values, structure, is_leaf=is_hole)


def _check_stateless(mask_state):
  dense = [x.shape for x in jax.tree.leaves(mask_state.scores) if jnp.ndim(x)]
  if dense:
    raise ValueError(
      f"got scores that remember dense arrays, of shapes {dense}, such as "
      "averages over steps: wanted scores of one batch, or masked mode"
    )
