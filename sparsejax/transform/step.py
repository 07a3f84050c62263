"""The parts of one step of a sparse transformation; see `sparsify`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn.initializers import Initializer

from sparsejax import keys, xla
from sparsejax.masks import PyTree, is_hole
from sparsejax.schedules import When
from sparsejax.updates import MaskState


def moves_now(
  update_masks: bool | None, when: When, step: jax.Array
) -> bool | jax.Array:
  """Returns whether masks move: what the loop says, or else the schedule."""
  now = when(step) if update_masks is None else update_masks
  if not isinstance(now, bool | int | np.generic | np.ndarray | jax.Array):
    raise TypeError(
      f"got update_masks={now!r}, wanted None for the schedule, or a bool"
    )
  return bool(now) if isinstance(now, np.bool_) else now


def without_step(
  now: bool | jax.Array,
  inner: optax.GradientTransformation,
  inner_state: Any,
  stepped: Any,
  updates: PyTree,
  params: PyTree,
) -> tuple[PyTree, Any]:
  """Takes a gradient step back if masks move: zero updates, old moments."""
  stay = jax.tree.map(jnp.zeros_like, updates)
  still = keep_moments(inner, inner_state, stepped, params)
  return select_tree(now, stay, updates), select_tree(now, still, stepped)


def next_state(
  now: bool | jax.Array, old: MaskState, update: Callable[[bool], MaskState]
) -> MaskState:
  """Updates a mask state: settled at trace time if `now` is a Python bool."""
  if isinstance(now, bool):
    return update(now)

  def rest(moves: bool) -> MaskState:
    return update(moves)._replace(count=None)  # which `sparsify` counts

  new = xla.cond_of_changes(
    now, lambda: rest(True), lambda: rest(False), old._replace(count=None)
  )
  return new._replace(count=old.count)


def select_tree(now: bool | jax.Array, then: Any, otherwise: Any) -> Any:
  """Selects one of two trees, elementwise: `lax.cond` would copy both."""
  if now is True:
    return then
  return jax.tree.map(lambda a, b: jnp.where(now, a, b), then, otherwise)


def with_next_count(state: MaskState) -> MaskState:
  """Counts one step in a mask state."""
  return state._replace(count=state.count + 1)


def exact_updates(
  updates: PyTree,
  params: PyTree,
  masks: PyTree,
  values: PyTree | None = None,
) -> PyTree:
  """Makes updates that end at value + update, and at exactly 0 if inactive.

  p + (0 - p) is exact in every float type, and so is 0 + (v - 0) for a newly
  grown weight.

  Args:
    updates: Those of the inner optimizer.
    params: The params p that updates are added to.
    masks: The masks.
    values: The params v that the inner optimizer started from, if others.

  Returns:
    The updates u + (v - p) of active weights, -p of inactive ones.
  """

  def leaf(
    u: jax.Array, p: jax.Array, mask: jax.Array, v: jax.Array | None = None
  ) -> jax.Array:
    if jnp.ndim(mask) == 0:
      return u
    dtype = jnp.promote_types(u.dtype, p.dtype)
    u, p = u.astype(dtype), p.astype(dtype)
    if v is not None:
      u += v.astype(dtype) - p
    # Not where(mask, u, -p): a GPU would bring p and -p, each by itself, to the
    # layout that the gradient of a convolution has.
    return jnp.where(mask, u, 0) - jnp.where(mask, 0, p)

  others = [masks] if values is None else [masks, values]
  return jax.tree.map(leaf, updates, params, *others)


def grown_params(
  initializer: Initializer, old: MaskState, masks: PyTree, params: PyTree
) -> PyTree:
  """Sets dropped weights to zero, and grown ones to their first value."""

  def leaf(
    path: tuple, was: jax.Array, now: jax.Array, p: jax.Array
  ) -> jax.Array:
    if jnp.ndim(now) == 0:
      return p
    first = jnp.zeros_like(p)
    if initializer is not jax.nn.initializers.zeros:
      key = keys.of_grown(old.key, old.count, path)
      first = xla.sharded_like(initializer(key, p.shape, p.dtype), p)
    return jnp.where(now, jnp.where(was, p, first), jnp.zeros_like(p))

  return jax.tree_util.tree_map_with_path(leaf, old.masks, masks, params)


def kept_moments(
  old: MaskState, masks: PyTree, now: bool | jax.Array, restart: When
) -> PyTree:
  """Marks the weights whose moments are kept; on an ordinary step all.

  That is all outside the masks too, for the bits of update_masks=False.

  Args:
    old: The mask state before the update.
    masks: The masks after it.
    now: Whether masks move.
    restart: `step -> bool`: where all moments start from zero.

  Returns:
    A tree of bool arrays; the Python bool True for leaves that keep all.
  """
  again = restart(old.count)

  def leaf(was, is_):
    if again is False and jnp.ndim(is_) == 0:
      return True
    kept = was & is_ if again is False else was & is_ & jnp.logical_not(again)
    return kept | jnp.logical_not(now)

  return jax.tree.map(leaf, old.masks, masks)


def reset_moments(
  inner: optax.GradientTransformation,
  inner_state: Any,
  kept: PyTree,
  masks: PyTree,
  grads: PyTree,
  grown_moments: Callable[[jax.Array, jax.Array], jax.Array] | None,
) -> Any:
  """Sets moments to zero, or to their first value, unless they are kept.

  Whatever has not a weight's shape, such as factored moments, is left alone.
  """

  def leaf(moment, kept, mask, grad):
    if is_hole(moment) or kept is True or moment.shape != grad.shape:
      return moment
    first = jnp.zeros_like(moment)
    if grown_moments is not None and jnp.ndim(mask):
      first = jnp.where(mask, grown_moments(moment, grad), first)
    return jnp.where(kept, moment, first.astype(moment.dtype))

  def reset(x):
    if not isinstance(x, _Moments):
      return x
    return _map_moments(leaf, x.tree, kept, masks, grads)

  return jax.tree.map(reset, _found_moments(inner, inner_state))


class _Moments:
  """In place of a part of a state that holds something for each parameter."""

  def __init__(self, tree: Any):
    """Takes that part: a tree of the params' structure, or a deeper one."""
    self.tree = tree


def _found_moments(inner, inner_state):
  """Puts a `_Moments` in place of what holds something for each parameter."""
  try:
    return optax.tree.map_params(
      inner, _Moments, inner_state, is_leaf=lambda _: True
    )
  except Exception as error:  # of any kind: `inner.init` gets a placeholder
    raise ValueError(
      "inner: got an optimizer whose state does not tell which moments are of "
      f"which parameter (optax.tree.map_params: {error}), wanted one that "
      "does, since moments are reset where masks move: leave out "
      "optax.flatten, which is about speed only, or take another one"
    ) from error


def _map_moments(leaf, moments, *trees):
  """Maps over moments and trees of the params' structure, leaf by leaf."""
  if len(_leaves(moments)) <= len(_leaves(trees[0])):
    return jax.tree.map(leaf, moments, *trees, is_leaf=is_hole)

  # Such as `optax.sm3`, which has a list of arrays for each parameter.
  def each(*xs):
    *xs, parts = xs
    return jax.tree.map(lambda m: leaf(m, *xs), parts, is_leaf=is_hole)

  return jax.tree.map(each, *trees, moments)


def _leaves(tree):
  return jax.tree.leaves(tree, is_leaf=is_hole)


def keep_moments(
  inner: optax.GradientTransformation, old: Any, new: Any, params: PyTree
) -> Any:
  """Returns the old state, with counters of the new that no moments go with.

  A state that holds arrays per parameter is kept whole: Adam's count belongs
  to its moments. All others take the step: the count of a learning rate's
  schedule follows the global step.
  """

  def mark(x):
    if not isinstance(x, _Moments):
      return False
    return jax.tree.map(lambda _: True, x.tree, is_leaf=is_hole)

  marks = jax.tree.map(mark, _found_moments(inner, old))
  treedef = jax.tree.structure(params, is_leaf=is_hole)

  def like_params(node: Any) -> bool:
    leaves, structure = jax.tree.flatten(node)
    return structure == treedef and all(leaves)

  def holds_moments(node: Any) -> bool:
    if type(node) in (bool, tuple, list, dict):
      return False
    children = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    return any(map(like_params, children))

  return jax.tree.map(
    lambda mark, o, n: n if mark is False else o,
    marks,
    old,
    new,
    is_leaf=holds_moments,
  )
