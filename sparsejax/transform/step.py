"""What a step of a sparse transformation is made of; see `transform`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax import keys, xla
from sparsejax import masks as masks_lib
from sparsejax.masks import is_hole


def check(grads, params, masks):
  """Refuses what does not fit together."""
  if params is None:
    raise ValueError(
      "got params=None, wanted the params, which say what is to become "
      "zero: tx.update(grads, opt_state, params)"
    )
  masks_lib.check_like(grads, params, "gradients", scalars=False)
  if jax.tree.structure(grads) != jax.tree.structure(params):
    raise ValueError(
      f"got gradients in {jax.tree.structure(grads)}, wanted the params' "
      f"{jax.tree.structure(params)}"
    )
  masks_lib.check_like(masks, params, "masks in the optimizer state")


def settled(update_masks, when, step):
  """Whether masks move, as a loop says, or else the schedule."""
  now = when(step) if update_masks is None else update_masks
  return bool(now) if isinstance(now, np.bool_) else now


def instead(now, inner, inner_state, stepped, updates, params):
  """No gradient step where masks move."""
  stay = jax.tree.map(jnp.zeros_like, updates)
  still = stand_still(inner, inner_state, stepped, params)
  return where(now, stay, updates), where(now, still, stepped)


def either(now, then, otherwise):
  """One of two functions' results; a Python bool leaves no trace of it."""
  if isinstance(now, bool):
    return then() if now else otherwise()
  return lax.cond(now, then, otherwise)


def where(now, then, otherwise):
  """One of two trees, elementwise: no copy, as a `lax.cond` would make."""
  if now is True:
    return then
  return jax.tree.map(lambda a, b: jnp.where(now, a, b), then, otherwise)


def counted(state):
  """A mask state one step on."""
  return state._replace(count=state.count + 1)


def towards(updates, params, masks, values):
  """Updates on top of the values, and to exactly 0 where inactive.

  p + (0 - p) is exact in every float type, and so is 0 + (v - 0) for a newly
  grown weight.
  """

  def leaf(u, p, mask, v):
    if jnp.ndim(mask) == 0:
      return u
    dtype = jnp.promote_types(u.dtype, p.dtype)
    u, p, v = (x.astype(dtype) for x in (u, p, v))
    return jnp.where(mask, u + (v - p), -p)

  return jax.tree.map(leaf, updates, params, masks, values)


def grown(initializer, old, new, params):
  """Params with dropped weights at zero and grown ones at their first value."""

  def leaf(path, was, now, p):
    if jnp.ndim(now) == 0:
      return p
    first = jnp.zeros_like(p)
    if initializer is not jax.nn.initializers.zeros:
      key = keys.of_grown(old.key, old.count, path)
      first = xla.sharded_like(initializer(key, p.shape, p.dtype), p)
    return jnp.where(now, jnp.where(was, p, first), jnp.zeros_like(p))

  return jax.tree_util.tree_map_with_path(leaf, old.masks, new.masks, params)


def kept_moments(old, new, now, restart):
  """Where moments are kept; on an ordinary step everywhere.

  Outside the masks too, then: the same bits as with update_masks=False. True
  where nothing can happen to a leaf.
  """
  again = restart(old.count)

  def leaf(was, is_):
    if again is False and jnp.ndim(is_) == 0:
      return True
    kept = was & is_ if again is False else was & is_ & jnp.logical_not(again)
    return kept | jnp.logical_not(now)

  return jax.tree.map(leaf, old.masks, new.masks)


def reset(inner, inner_state, kept, masks, grads, grown_moments):
  """Moments of kept weights; zero, or their first value, elsewhere.

  Whatever has not a weight's shape, such as factored moments, is left alone.
  """

  def leaf(moment, kept, mask, grad):
    if is_hole(moment) or kept is True or moment.shape != grad.shape:
      return moment
    first = jnp.zeros_like(moment)
    if grown_moments is not None and jnp.ndim(mask):
      first = jnp.where(mask, grown_moments(moment, grad), first)
    return jnp.where(kept, moment, first.astype(moment.dtype))

  return optax.tree.map_params(
    inner, leaf, inner_state, kept, masks, grads, is_leaf=is_hole
  )


def stand_still(inner, old, new, params):
  """The old state, but for counters that no moments go with.

  A state that holds arrays per parameter is kept whole: Adam's count belongs
  to its moments. All others take the step: the count of a learning rate's
  schedule follows the global step.
  """
  marks = optax.tree.map_params(
    inner,
    lambda _: True,
    old,
    transform_non_params=lambda _: False,
    is_leaf=is_hole,
  )
  treedef = jax.tree.structure(params, is_leaf=is_hole)

  def like_params(node):
    leaves, structure = jax.tree.flatten(node)
    return structure == treedef and all(leaves)

  def holds_moments(node):
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
