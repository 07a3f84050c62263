"""Masks that lose weights for good, along a schedule."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparsejax import distributions
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.scores import Score
from sparsejax.updates import base
from sparsejax.updates.base import MaskState, MaskUpdate
from sparsejax.updates.dynamic import as_schedule
from sparsejax.updates.fixed import broadcast_masks, static

Progress = Callable[[jax.Array], jax.Array]


def prune(
  *,
  sparsity: float,
  score: Score,
  progress: Progress,
  initial_sparsity: float = 0.0,
  scope: str = "layer",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Prunes active weights with the lowest scores, from dense to the budget.

  Pruned weights stay pruned. After the last update, the masks keep exactly the
  budget.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    score: The score that decides which weights to keep.
    progress: `step -> float`: the share of the pruning that is done by a step,
      from 0 to 1.
    initial_sparsity: The sparsity to prune to at progress 0.
    scope: "layer" to prune each leaf to its budget, "global" to prune all of
      them by one threshold to the sum of their budgets.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as in `static`. Budgets on the way
      to the final one are rounded to numbers that the pattern can keep.
    masks: The initial masks, as in `static`; dense by default. A leaf in which
      they keep less than its final budget is not pruned.

  Returns:
    The mask update. Only random scores use its key.

  Raises:
    ValueError: If a sparsity is out of range, the initial one is above the
      final one, the scope is none of these, or the scope is "global" and there
      is a pattern.
  """
  keep = keep_best(
    sparsity, initial_sparsity, progress, scope, distribution, prunable, pattern
  )

  def init(key: jax.Array, params: PyTree) -> MaskState:
    final = base.budgets(params, sparsity, distribution, prunable, pattern)
    state = base.dense_state(params, prunable, final, key)
    if masks is not None:
      first, left = broadcast_masks(masks, params, prunable, pattern)
      # Under one threshold leaves may keep more than their own budget.
      least = jnp.minimum if scope == "layer" else lambda k, n: k
      budget = jax.tree.map(
        lambda mask, k, n: least(k, n) if mask.ndim else n,
        first,
        state.budget,
        left,
      )
      state = state._replace(masks=first, budget=budget)
    return state._replace(scores=score.init(params))

  update = base.rated_update(functools.partial(keep, active=True), score)
  asked = base.asked_budgets(sparsity, distribution, prunable, pattern, masks)
  return MaskUpdate(init, update, pattern, scope == "layer", asked)


def prune_and_regrow(
  *,
  sparsity: float,
  drop: Score,
  grow: Score,
  progress: Progress,
  fraction: optax.ScalarOrSchedule,
  initial_sparsity: float = 0.0,
  scope: str = "global",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Prunes as `prune` does, then drops and grows a share of what is left.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    drop: The score of active weights; the lowest are pruned and dropped.
    grow: The score of inactive weights, including those just pruned; the
      highest are grown.
    progress: `step -> float`: the share of the pruning that is done by a step,
      from 0 to 1.
    fraction: The share of a leaf's active weights that an update replaces, in
      [0, 1], or an optax schedule of the step.
    initial_sparsity: The sparsity of the random initial masks; 0 begins dense.
    scope: The scope of pruning, as in `prune`.
    distribution: How many weights each sparse leaf keeps, at the start and in
      the end.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as in `prune`.
    masks: The initial masks; random by default.

  Returns:
    The mask update.

  Raises:
    ValueError: As in `prune`.

  References:
    Liu et al., Sparse Training via Boosting Pruning Plasticity with
    Neuroregeneration, arXiv:2106.10404, 2021.
  """
  fraction = as_schedule(fraction)
  pruned = prune(
    sparsity=sparsity,
    score=drop,
    progress=progress,
    initial_sparsity=initial_sparsity,
    scope=scope,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
    masks=masks,
  )

  keep = keep_best(
    sparsity, initial_sparsity, progress, scope, distribution, prunable, pattern
  )

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = pruned.init(key, params)
    if masks is None and initial_sparsity > 0:
      first = static(
        sparsity=initial_sparsity,
        distribution=distribution,
        prunable=prunable,
        pattern=pattern,
      )
      state = state._replace(masks=first.init(key, params).masks)
    return state._replace(scores=(state.scores, grow.init(params)))

  def move(state, params, dropped_by, grown_by):
    refused = state.refused
    state = keep(state, params, dropped_by, active=True)
    share = fraction(state.count)

    def leaf(pattern, mask, budget, dropped_by, grown_by, share):
      del budget
      k = jnp.sum(mask, dtype=jnp.int32)
      n = jnp.trunc(share * k.astype(jnp.float32)).astype(jnp.int32)
      return pattern.swap(mask, k, n, dropped_by, grown_by, True)

    # A leaf that could not be pruned is not counted once more.
    state = state._replace(refused=refused)
    by = dropped_by, grown_by
    return base.move_masks(
      state, params, prunable, pattern, leaf, *by, given=(share,)
    )

  update = base.rated_update(move, drop, grow)
  return MaskUpdate(init, update, *pruned[2:])


def keep_best(
  sparsity: float,
  initial_sparsity: float,
  progress: Progress | None,
  scope: str,
  distribution: Distribution,
  prunable: Prunable,
  pattern: Patterns | None,
) -> Callable[..., MaskState]:
  """Makes what keeps the weights rated highest, of all or of the active ones.

  Args:
    sparsity: As for `prune`, and so are the others.
    initial_sparsity: The sparsity at progress 0.
    progress: The share of pruning done by a step; None for all of it.
    scope: "layer" or "global".
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take.

  Returns:
    `(state, params, by, active=False) -> MaskState`, of a tree of scores.

  Raises:
    ValueError: As from `prune`.
  """
  check_sparsities(sparsity, initial_sparsity)
  base.check_scope(scope, pattern)

  def keep(state, params, by, active=False):
    left = 1 - (1.0 if progress is None else progress(state.count))
    first = base.budgets(params, initial_sparsity, distribution, prunable)
    first = base.budget_tree(first, params, prunable)
    if scope == "global":
      sparse = [jnp.ndim(m) > 0 for m in jax.tree.leaves(state.masks)]
      before, final = (
        sum(map(jnp.sum, itertools.compress(jax.tree.leaves(tree), sparse)))
        for tree in (first, state.budget)
      )
      k = scheduled_budget(final, before, left)
      among = state.masks if active else None
      return base.move_globally(state, by, k, among, k == final)

    def leaf(pattern, mask, budget, by, first, left):
      k = scheduled_budget(budget, first, left)
      where = mask if active else None
      return pattern.top_k(by, k, where)

    return base.move_masks(
      state, params, prunable, pattern, leaf, by, first, given=(left,)
    )

  return keep


def scheduled_budget(
  budget: jax.Array, first: jax.Array, left: jax.Array
) -> jax.Array:
  """Computes what is kept with a share `left` of the pruning to come.

  It counts from the budget upwards, so that the last update meets it exactly.
  """
  extra = jnp.maximum(first - budget, 0)
  more = jnp.floor(extra.astype(jnp.float32) * left).astype(jnp.int32)
  return budget + jnp.minimum(more, extra)


def check_sparsities(sparsity: float, initial: float) -> None:
  """Checks that sparsities are in [0, 1), and do not fall."""
  distributions.check_sparsity(sparsity)
  distributions.check_sparsity(initial, "initial_sparsity")
  if initial > sparsity:
    raise ValueError(
      f"initial_sparsity: got {initial}, wanted at most the final sparsity "
      f"{sparsity}: what is pruned does not come back"
    )
