"""Masks that move within their budget: drop some weights, grow as many."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import distributions, patterns, select
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree, path_name
from sparsejax.patterns import Patterns
from sparsejax.patterns.base import in_units
from sparsejax.scores import Score
from sparsejax.updates import base
from sparsejax.updates.base import MaskState, MaskUpdate
from sparsejax.updates.fixed import random_masks, static


def drop_and_grow(
  *,
  sparsity: float,
  drop: Score,
  grow: Score,
  fraction: optax.ScalarOrSchedule,
  surplus: optax.ScalarOrSchedule = 0.0,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  regrow: bool = True,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Drops active weights with the lowest scores, and grows as many others.

  Of the n active weights of a leaf, an update replaces trunc(fraction x n), or
  as many whole parts of its pattern as that makes. It grows the inactive
  weights that `grow` scores highest. If a pattern balances the parts of a leaf
  (N:M, fan-in), the update drops the leaf's worst weights wherever they are,
  and every part grows as many weights as it has lost. Masks begin at random
  unless you pass them. A leaf with a score that is not finite keeps its mask,
  and the state counts how often this happened.

  Args:
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    drop: The score of active weights; the lowest are dropped.
    grow: The score of inactive weights; the highest are grown.
    fraction: The share of active weights that an update replaces, in [0, 1], or
      an optax schedule of the step.
    surplus: How many more weights than the budget are active from one update to
      the next, as a share of the budget, or a schedule of that share. An update
      first drops the old surplus, and grows a new one.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as in `static`.
    regrow: Whether a weight may grow back in the update that dropped it. It
      then keeps its value and moments, as if it had never been dropped.
    masks: The initial masks, as in `static`. Each leaf keeps as many weights as
      they do.

  Returns:
    The mask update.

  Raises:
    ValueError: If the sparsity or the fraction is out of range.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv:1911.11134, 2020, section 3 and algorithm 1.
  """
  has_surplus = callable(surplus) or surplus != 0
  fraction, surplus = as_schedule(fraction), as_schedule(surplus, "surplus")
  start = static(
    sparsity=sparsity,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
    masks=masks,
  )

  def room(budget, more):
    return jnp.trunc(more * budget.astype(jnp.float32)).astype(jnp.int32)

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = start.init(key, params)
    if has_surplus and masks is None:
      state = _with_surplus(
        key, params, prunable, state, pattern, lambda k: room(k, surplus(0))
      )
    return state._replace(scores=(drop.init(params), grow.init(params)))

  def move(state, params, dropped_by, grown_by):
    share, more = fraction(state.count), surplus(state.count)

    def leaf(pattern, mask, budget, dropped_by, grown_by, share, more):
      n = jnp.trunc(share * budget.astype(jnp.float32)).astype(jnp.int32)
      n, k = jnp.clip(n, 0, budget), budget
      if has_surplus:
        k = jnp.minimum(budget + room(budget, more), mask.size)
        n = n + k - budget
        if not regrow:  # more than k may be active: less room than without them
          n = jnp.minimum(n, mask.size - jnp.sum(mask, dtype=jnp.int32))
      return pattern.swap(mask, k, n, dropped_by, grown_by, regrow)

    by = dropped_by, grown_by
    return base.move_masks(
      state, params, prunable, pattern, leaf, *by, given=(share, more)
    )

  update = base.rated_update(move, drop, grow)
  return MaskUpdate(
    init, update, pattern, budgets=start.budgets, exact=not has_surplus
  )


def _with_surplus(key, params, prunable, state, pattern, room):
  """Draws the first masks with the surplus of step 0, by the same key."""
  of = base.patterns_by_path(state.masks, pattern)
  if any(p.density is not None for p in of.values()):
    raise ValueError(
      "got a surplus for leaves whose pattern settles how many weights they "
      "keep, such as n_of_m: wanted none, or another pattern"
    )
  budgets = jax.tree_util.tree_leaves_with_path(state.budget)
  counts = {
    path_name(path): jnp.minimum(k + room(k), np.size(p) // k.size)
    for (path, k), p in zip(budgets, jax.tree.leaves(params), strict=True)
    if path_name(path) in of
  }
  draw, _ = jax.random.split(key)
  masks = random_masks(draw, params, prunable, counts, pattern)
  return state._replace(masks=masks)


def constant_fan_in(
  *,
  sparsity: float,
  fraction: optax.ScalarOrSchedule,
  drop: Score,
  grow: Score,
  ablation: float,
  never_ablate: Prunable,
  axis: int | None = None,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Drops and grows with the same fan-in for every neuron that is left.

  A weight is salient if it would be kept or grown without regard to fan-in. A
  neuron with too few salient weights, compared with its fan-in, is ablated: it
  loses all weights, and the other neurons share them. It may come back at any
  update.

  Args:
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    fraction: The share of active weights that an update replaces, in [0, 1], or
      an optax schedule of the step.
    drop: The score of active weights; the lowest are dropped.
    grow: The score of inactive weights; the highest are grown.
    ablation: gamma_sal: how many salient weights a neuron needs, as a share of
      the fan-in that all neurons would have; it needs at least one. 0 ablates
      no neuron.
    never_ablate: `(path, leaf) -> bool`: leaves that keep all their neurons.
    axis: The axis of neurons, among the axes of one layer; by default the axis
      of outputs.
    distribution: How many weights each sparse leaf keeps, its budget in the
      state. While a leaf has all its neurons, it keeps the nearest multiple of
      their number. With a neurons left, it keeps the largest multiple of a, up
      to a - 1 weights less, as in the authors' code.
    prunable: Which leaves are sparse.
    masks: The initial masks, as in `static`.

  Returns:
    The mask update.

  Raises:
    ValueError: If the sparsity, the fraction or the ablation is out of range.

  References:
    Lasby et al., Dynamic Sparse Training with Structured Sparsity,
    arXiv:2305.02299, 2023, section 3: steps 1 to 7.
  """
  if not 0 <= ablation <= 1:
    raise ValueError(
      f"got ablation={ablation}, wanted the least share of salient weights, in "
      "[0, 1]"
    )
  fraction = as_schedule(fraction)
  pattern = patterns.fan_in(axis)
  asked = base.asked_budgets(sparsity, distribution, prunable, None, masks)
  start = static(
    sparsity=sparsity,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern if masks is None else None,
    masks=masks,
  )

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = start.init(key, params)
    if asked is not None:  # not rounded, as the numbers of the masks are
      state = state._replace(budget=asked(params))
    return state._replace(scores=(drop.init(params), grow.init(params)))

  def move(state, params, dropped_by, grown_by):
    share = fraction(state.count)
    whole = jax.tree_util.tree_map_with_path(
      lambda path, p: ablation == 0 or bool(never_ablate(path_name(path), p)),
      params,
    )

    def leaf(pattern, mask, budget, dropped_by, grown_by, whole, share):
      axis = pattern.axis
      neurons = mask.shape[axis]
      inputs = mask.size // neurons
      active = jnp.sum(mask, dtype=jnp.int32)
      n = jnp.trunc(share * active.astype(jnp.float32)).astype(jnp.int32)
      keep = select.top_k_mask(dropped_by, active - n, mask)
      best_grown = select.top_k_mask(grown_by, n)
      salient = select.count_of_each(keep | best_grown, axis)
      least = jnp.trunc(ablation * (budget // neurons)).astype(jnp.int32)
      enough = salient >= jnp.maximum(least, 1)
      left = jnp.maximum(jnp.sum(enough, dtype=jnp.int32), -(-budget // inputs))
      left = jnp.where(whole, neurons, left)
      alive = select.top_k_mask(salient.astype(jnp.float32), left)
      fan_in = _fan_in(budget, neurons, left, rounded=masks is None)
      each = jnp.where(alive, jnp.minimum(fan_in, inputs), 0)
      # What ablated neurons lose is among the n dropped, as in that code.
      shape = [1] * mask.ndim
      shape[axis] = neurons
      living = mask & alive.reshape(shape)
      keep = select.top_k_mask(dropped_by, active - n, living)
      keep = select.top_k_of_each(dropped_by, each, axis, keep)
      missing = each - select.count_of_each(keep, axis)
      grown = select.top_k_of_each(grown_by, missing, axis, ~keep)
      return keep | grown

    by = dropped_by, grown_by, whole
    return base.move_masks(
      state, params, prunable, pattern, leaf, *by, given=(share,)
    )

  update = base.rated_update(move, drop, grow)
  return MaskUpdate(init, update, budgets=asked)


def _fan_in(budget, neurons, left, *, rounded):
  """Computes what each of the neurons left keeps: at least one weight."""
  full = in_units(budget, neurons) if rounded else budget // neurons
  return jnp.maximum(jnp.where(left == neurons, full, budget // left), 1)


def check_fraction(fraction: float, name: str = "fraction") -> None:
  """Raises a ValueError unless a share of active weights is in [0, 1].

  A traced one is taken as it is, so that runs of several can share a program.
  """
  if isinstance(fraction, jax.core.Tracer):
    return
  if not 0 <= fraction <= 1:
    raise ValueError(
      f"got {name}={fraction}, wanted a share of the active weights, in [0, 1]"
    )


def as_schedule(
  fraction: optax.ScalarOrSchedule, name: str = "fraction"
) -> optax.Schedule:
  """Makes a share of active weights a schedule, checked if a number."""
  if callable(fraction):
    return fraction
  check_fraction(fraction, name)
  return optax.constant_schedule(fraction)
