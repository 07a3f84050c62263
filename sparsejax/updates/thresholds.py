"""Masks by a threshold: training determines how many weights they keep."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax import distributions, select
from sparsejax.distributions import Prunable
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.scores import Score, check_transformation
from sparsejax.updates import base
from sparsejax.updates.base import MaskState, MaskUpdate
from sparsejax.updates.state import Dense


class Thresholds(NamedTuple):
  """Learned thresholds, in the state of `soft_threshold`.

  Attributes:
    raw: float32 scalar s per leaf, whose sigmoid is the threshold; `Dense`
      where dense. Of layers that are stacked in one leaf one each,
      [layers, 1, ...].
    optimizer: The state of what trains them.
  """

  raw: PyTree
  optimizer: Any


def above(
  *,
  score: Score,
  threshold: optax.ScalarOrSchedule,
  least: float = 0.0,
  prunable: Prunable = distributions.matrices,
) -> MaskUpdate:
  """Chooses the weights whose score is above a threshold, at every update.

  Args:
    score: The score.
    threshold: The number to exceed, or an optax schedule of the step.
    least: The share of its weights that every leaf keeps at least, rounded up;
      it keeps the best ones.
    prunable: Which leaves are sparse.

  Returns:
    The mask update. It begins dense.

  Raises:
    ValueError: If `least` is not in [0, 1].
  """
  if not 0 <= least <= 1:
    raise ValueError(f"got least={least}, wanted a share of weights, in [0, 1]")
  if not callable(threshold):
    threshold = optax.constant_schedule(threshold)

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = _dense(key, params, prunable)
    return state._replace(scores=score.init(params))

  def move(state, params, by):
    limit = threshold(state.count)

    def leaf(pattern, mask, budget, by, limit):
      del pattern, mask, budget
      over = by > limit
      k = math.ceil(least * by.size)
      if k:  # the k best are among them, or they are among the k best
        few = jnp.sum(over, dtype=jnp.int32) < k
        over |= select.top_k_mask_if_any(by, jnp.where(few, k, 0))
      return over

    return base.move_masks(
      state, params, prunable, None, leaf, by, given=(limit,)
    )

  return MaskUpdate(init, base.rated_update(move, score))


def soft_threshold(
  *,
  optimizer: optax.GradientTransformation,
  initial: float,
  prunable: Prunable = distributions.matrices,
) -> MaskUpdate:
  """Chooses the weights above a threshold that each leaf learns.

  The forward pass sees sign(w) relu(|w| - sigmoid(s)), which
  `forward_params` computes from this update's state.

  Args:
    optimizer: The optimizer of the scalars s, a tree of them by key path.
    initial: The initial s.
    prunable: Which leaves are sparse.

  Returns:
    The mask update, for `straight_through`. Let it change masks on every step.

  References:
    Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
    Sparsity, arXiv:2002.03231, 2020, section 3.
  """
  check_transformation(optimizer, "optimizer")

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = _dense(key, params, prunable)
    raw = jax.tree.map(
      lambda m, k: (
        jnp.full(k.shape, initial, jnp.float32) if m.ndim else Dense()
      ),
      state.masks,
      state.budget,
    )
    thresholds = Thresholds(raw, optimizer.init(_learned(raw)))
    masks = jax.tree.map(_over, state.masks, params, raw)
    return state._replace(masks=masks, scores=thresholds)

  def update(
    grads: PyTree,
    state: MaskState,
    params: PyTree,
    now: bool,
    *,
    after: PyTree | None = None,
  ) -> MaskState:
    raw, optimizer_state = state.scores
    slopes = jax.tree.map(_slope, state.masks, params, grads, raw)
    learned = _learned(raw)
    change, optimizer_state = optimizer.update(
      _learned(slopes), optimizer_state, learned
    )
    learned = optax.apply_updates(learned, change)
    raw = jax.tree_util.tree_map_with_path(
      lambda path, _: learned[path_name(path)], raw
    )
    state = state._replace(scores=Thresholds(raw, optimizer_state))
    if not now:
      return state
    params = params if after is None else after
    return state._replace(masks=jax.tree.map(_over, state.masks, params, raw))

  return MaskUpdate(init, update)


def soft_thresholded(params: PyTree, thresholds: PyTree) -> PyTree:
  """Computes sign(w) relu(|w| - sigmoid(s)), leaf by leaf.

  Args:
    params: A pytree of arrays.
    thresholds: A scalar s per leaf; minus infinity leaves it as it is.

  Returns:
    The tree, of the params' dtypes.
  """

  def leaf(p, s):
    if is_hole(s):
      return p
    limit = jax.nn.sigmoid(s).astype(p.dtype)
    return jnp.sign(p) * jnp.maximum(jnp.abs(p) - limit, 0)

  return jax.tree.map(leaf, params, thresholds)


def _dense(key, params, prunable):
  # What is kept settles itself: budgets are the leaves' sizes.
  sizes = base.budgets(params, 0.0, distributions.uniform, prunable)
  return base.dense_state(params, prunable, sizes, key)


def _learned(tree) -> dict[str, jax.Array]:
  """Lists the scalars of sparse leaves, by key path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): x for path, x in leaves}


def _over(mask, p, s):
  if mask.ndim == 0:
    return mask
  return jnp.abs(p) > jax.nn.sigmoid(s).astype(p.dtype)


def _slope(mask, p, g, s):
  """Computes the gradient of s, through the threshold sigmoid(s)."""
  if mask.ndim == 0:
    return s
  over = jnp.abs(p) > jax.nn.sigmoid(s).astype(p.dtype)
  down = jnp.where(over, g * jnp.sign(p), 0).astype(jnp.float32)
  along = tuple(a for a, n in enumerate(s.shape) if n == 1) if s.ndim else None
  total = jnp.sum(down, along, keepdims=s.ndim > 0)
  return -total * jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)
