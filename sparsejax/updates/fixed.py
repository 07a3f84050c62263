"""Masks that never change: those you pass, or random ones."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import distributions, keys, patterns, roles
from sparsejax import masks as masks_lib
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree, path_name
from sparsejax.patterns import Patterns
from sparsejax.updates import base
from sparsejax.updates.base import MaskState, MaskUpdate


def fixed(masks: PyTree) -> MaskUpdate:
  """Keeps the masks that you pass.

  Args:
    masks: A tree of masks. Each is a bool array of its param's shape, or True
      where a leaf is dense. A tree prefix is enough: True alone leaves
      everything dense.

  Returns:
    The mask update. Its `init` needs no key, and raises a ValueError that
    names the leaf if masks and params do not fit, a TypeError if a mask is
    not bool.
  """

  def init(key: jax.Array, params: PyTree) -> MaskState:
    del key
    full, budget = broadcast_masks(masks, params, distributions.matrices)
    return base.first_state(full, budget, key=None)

  return MaskUpdate(init, _stay, exact=True)


def static(
  *,
  sparsity: float,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Draws random masks, or takes yours, and never changes them.

  Args:
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    distribution: How many weights each of them keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, one of `patterns` or several by
      path; unstructured by default.
    masks: Masks to use instead of random ones, as in `fixed`. They decide which
      weights each leaf keeps, whatever the sparsity, distribution and prunable
      say. They have to follow the pattern.

  Returns:
    The mask update.
  """
  distributions.check_sparsity(sparsity)

  def init(key: jax.Array, params: PyTree) -> MaskState:
    draw, rest = jax.random.split(keys.check_key(key))
    key = keys.raw(rest)
    if masks is not None:
      full, budget = broadcast_masks(masks, params, prunable, pattern)
      return base.first_state(full, budget, key)
    counts = base.budgets(params, sparsity, distribution, prunable, pattern)
    budget = base.budget_tree(counts, params, prunable)
    by_layer = {
      path_name(path): n
      for path, n in jax.tree_util.tree_leaves_with_path(budget)
      if path_name(path) in counts
    }
    full = random_masks(draw, params, prunable, by_layer, pattern)
    return base.first_state(full, budget, key)

  asked = base.asked_budgets(sparsity, distribution, prunable, pattern, masks)
  return MaskUpdate(init, _stay, pattern, budgets=asked, exact=True)


def _stay(grads, state, params, now, *, after=None):
  del grads, params, now, after
  return state


def random_masks(
  draw: jax.Array,
  params: PyTree,
  prunable: Prunable,
  counts: Mapping[str, jax.Array],
  pattern: Patterns | None,
) -> PyTree:
  """Draws random masks that keep so many weights, by key path."""
  of = patterns.resolve(pattern, list(counts))
  role = roles.of(params, prunable)

  def leaf(path, p):
    if (name := path_name(path)) not in counts:
      return jnp.array(True)
    if np.size(p) == 0:
      return jnp.ones(np.shape(p), bool)
    noise = keys.uniform(keys.of_leaf(draw, path), p)
    own = patterns.for_leaf(of[name], role[name])
    return own.top_k(noise, counts[name], None)

  return jax.tree_util.tree_map_with_path(leaf, params)


def broadcast_masks(
  masks: PyTree,
  params: PyTree,
  prunable: Prunable,
  pattern: Patterns | None = None,
) -> tuple[PyTree, PyTree]:
  """Broadcasts masks to the params' treedef; counts each layer's weights."""
  full = _broadcast(masks, params)
  role = roles.of(params, prunable)
  if pattern is not None:
    _check_pattern(full, pattern, role)
  shapes = jax.tree_util.tree_map_with_path(
    lambda path, p: np.empty(
      roles.budget_shape(role[path_name(path)], np.shape(p))
    ),
    params,
  )
  return full, masks_lib.active_of_each(full, params, shapes)


def _check_pattern(masks, pattern, role):
  of = base.patterns_by_path(masks, pattern)
  for path, mask in jax.tree_util.tree_leaves_with_path(masks):
    if mask.ndim == 0 or isinstance(mask, jax.core.Tracer):
      continue
    name = path_name(path)
    if not patterns.for_leaf(of[name], role[name]).holds(mask):
      raise ValueError(
        f"{name or 'the array'}: the mask of shape {mask.shape} has not the "
        "pattern that is asked for: make it with that pattern's `top_k`, or "
        "leave the pattern out"
      )


def _broadcast(masks: PyTree, params: PyTree) -> PyTree:
  """Broadcasts a prefix of the params' treedef, and checks its masks."""
  try:
    full = jax.tree.map(
      lambda mask, part: jax.tree.map(lambda _: mask, part), masks, params
    )
  except ValueError as error:
    raise ValueError(
      f"the masks do not fit the params: {error}. Give a tree of the params' "
      "structure, or a prefix of it"
    ) from error

  def checked(path: tuple, mask: jax.Array, p: jax.Array) -> jax.Array:
    name = path_name(path) or "the array"
    if np.shape(mask) not in ((), np.shape(p)):
      raise ValueError(
        f"{name}: got a mask of shape {np.shape(mask)} for params of shape "
        f"{np.shape(p)}: give one of that shape, or True to stay dense"
      )
    masks_lib.check_bool(path, mask)
    traced = isinstance(mask, jax.core.Tracer)
    if np.ndim(mask) == 0 and not traced and not mask:
      raise ValueError(
        f"{name}: got the mask False, which would leave no weight: give a mask "
        "of the leaf's shape, or True to stay dense"
      )
    return jnp.asarray(mask)

  return jax.tree_util.tree_map_with_path(checked, full, params)
