"""Masks that lose weights for good, or for a while."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax import distributions
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree, everything, path_name
from sparsejax.patterns import Patterns
from sparsejax.schedules import When
from sparsejax.scores import Score
from sparsejax.updates import state as lib
from sparsejax.updates.dynamic import as_schedule
from sparsejax.updates.given import given, static
from sparsejax.updates.state import MaskUpdate

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
  """Prunes the active weights rated lowest, from dense to the final budget.

  What is pruned stays so. After the last update the budget is met exactly.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    score: The score by which weights are kept.
    progress: The share of pruning done by a step, from 0 to 1.
    initial_sparsity: The sparsity to prune to at progress 0.
    scope: "layer" to prune each leaf to its budget, "global" to prune all of
      them by one threshold to the sum of their budgets.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as for `static`. Budgets on the
      way there are rounded up to what it can keep.
    masks: The first masks, as for `static`, instead of dense ones. A leaf in
      which they keep less than its final budget is not pruned.

  Returns:
    The mask update. Its key serves random scores.

  Raises:
    ValueError: If a sparsity is out of range, or the initial one is above
      the final one, or the scope is none of these or has a pattern.
  """
  check_sparsities(sparsity, initial_sparsity)
  lib.check_scope(scope, pattern)

  def init(key, params):
    final = lib.budgets(params, sparsity, distribution, prunable, pattern)
    first, budget = everything(params, final), lib.as_tree(final, params)
    if masks is not None:
      first, left = given(masks, params, pattern)
      budget = jax.tree.map(
        lambda mask, k, n: jnp.minimum(k, n) if mask.ndim else n,
        first,
        budget,
        left,
      )
    state = lib.first_state(first, budget, lib.own_key(key))
    return state._replace(scores=score.init(params))

  def update(grads, state, params, now, *, after=None):
    key = lib.now_key(state)
    by, scored = lib.rate(score, grads, state.scores, params, now, key, after)
    state = state._replace(scores=scored)
    if not now:
      return state
    left = 1 - progress(state.count)
    first = lib.as_tree(
      lib.budgets(params, initial_sparsity, distribution, prunable), params
    )
    if scope == "global":
      final = lib.budgets(params, sparsity, distribution, prunable)
      sparse = lib.resolved(state.masks, None)  # not what was given as True
      final = {path: n for path, n in final.items() if path in sparse}
      k = _total(final, first, left)
      return lib.move_as_one(state, by, k, state.masks)

    def leaf(pattern, mask, budget, by, first):
      k = falling(budget, first, left)
      return pattern.top_k(by, k, mask), lib.finite(by)

    return lib.move(state, pattern, leaf, by, first)

  return MaskUpdate(init, update)


def best(
  *,
  sparsity: float,
  score: Score,
  progress: Progress | None = None,
  initial_sparsity: float = 0.0,
  scope: str = "layer",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
) -> MaskUpdate:
  """The weights rated highest, chosen anew from all of them at every update.

  For `straight_through`, where weights that are masked still change. Under
  `sparsify` they are zero; there, too, they can come back by any score that
  does not rate a zero lowest.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    score: The score by which weights are kept.
    progress: The share of pruning done by a step, from 0 to 1; None for all
      of it from the start.
    initial_sparsity: The sparsity at progress 0.
    scope: As for `prune`.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as for `prune`.

  Returns:
    The mask update.

  Raises:
    ValueError: As from `prune`.
  """
  check_sparsities(sparsity, initial_sparsity)
  lib.check_scope(scope, pattern)

  def choose(state, by, params):
    left = jnp.zeros([]) if progress is None else 1 - progress(state.count)
    first = lib.as_tree(
      lib.budgets(params, initial_sparsity, distribution, prunable), params
    )
    final = lib.budgets(params, sparsity, distribution, prunable, pattern)
    if scope == "global":
      return lib.move_as_one(state, by, _total(final, first, left), None)

    def leaf(pattern, mask, budget, by, first):
      del mask
      k = budget if progress is None else falling(budget, first, left)
      return pattern.top_k(by, k, None), lib.finite(by)

    return lib.move(state, pattern, leaf, by, first)

  def init(key, params):
    final = lib.budgets(params, sparsity, distribution, prunable, pattern)
    state = lib.first_state(
      everything(params, final), lib.as_tree(final, params), lib.own_key(key)
    )
    scored = score.init(params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    key = lib.now_key(state)
    by, _ = lib.rate(score, nothing, scored, params, True, key)
    return choose(state, by, params)._replace(scores=scored)

  def update(grads, state, params, now, *, after=None):
    key = lib.now_key(state)
    by, scored = lib.rate(score, grads, state.scores, params, now, key, after)
    state = state._replace(scores=scored)
    return choose(state, by, params) if now else state

  return MaskUpdate(init, update)


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
  """Prunes, as `prune` does, then drops a share of what is left, and grows it.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    drop: The score by which weights are pruned, and dropped.
    grow: The score by which they grow back, wherever they are best, those just
      pruned among them.
    progress: The share of pruning done by a step, from 0 to 1.
    fraction: The share of a leaf's active weights that moves, in [0, 1], or an
      optax schedule of the step.
    initial_sparsity: The sparsity of the random masks to begin with; 0 begins
      dense.
    scope: Of pruning, as for `prune`.
    distribution: How many weights each sparse leaf keeps, at first too.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as for `prune`.
    masks: The first masks, instead of random ones.

  Returns:
    The mask update.

  Raises:
    ValueError: As from `prune`.

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

  def init(key, params):
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

  def update(grads, state, params, now, *, after=None):
    by_drop, by_grow = state.scores
    key = lib.now_key(state)
    dropped_by, _ = lib.rate(drop, grads, by_drop, params, now, key, after)
    grown_by, by_grow = lib.rate(grow, grads, by_grow, params, now, key, after)
    refused = state.refused
    state = pruned.update(
      grads, state._replace(scores=by_drop), params, now, after=after
    )
    state = state._replace(scores=(state.scores, by_grow))
    if not now:
      return state
    share = fraction(state.count)

    def leaf(pattern, mask, budget, dropped_by, grown_by):
      del budget
      k = jnp.sum(mask, dtype=jnp.int32)
      n = jnp.trunc(share * k.astype(jnp.float32)).astype(jnp.int32)
      new = pattern.swap(mask, k, n, dropped_by, grown_by, True)
      return new, lib.finite(dropped_by) & lib.finite(grown_by)

    # A leaf that could not be pruned is not counted once more.
    state = lib.move(
      state._replace(refused=refused), pattern, leaf, dropped_by, grown_by
    )
    return state

  return MaskUpdate(init, update)


def alternate(
  *,
  sparsity: float,
  score: Score,
  compressed: When,
  scope: str = "global",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
) -> MaskUpdate:
  """Dense and sparse phases in turn.

  Args:
    sparsity: The share of zeros in a sparse phase, in [0, 1).
    score: The score by which weights are kept, of all of them.
    compressed: `step -> bool`: whether the phase that begins there is sparse.
      Masks are to be moved where phases begin, and there only.
    scope: As for `prune`.
    distribution: How many weights each sparse leaf keeps; "global" takes their
      sum only.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as for `static`.

  Returns:
    The mask update; it begins dense.

  Raises:
    ValueError: As from `prune`.

  References:
    Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep
    Neural Networks, arXiv:2106.12379, 2021, section 3.
  """
  chosen = best(
    sparsity=sparsity,
    score=score,
    scope=scope,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
  )

  def init(key, params):
    state = chosen.init(key, params)
    return state._replace(masks=_all(state.masks))

  def update(grads, state, params, now, *, after=None):
    state = chosen.update(grads, state, params, now, after=after)
    if not now:
      return state
    sparse = compressed(state.count)
    return state._replace(
      masks=jax.tree.map(lambda m: m | jnp.logical_not(sparse), state.masks)
    )

  return MaskUpdate(init, update)


def _all(masks):
  return jax.tree.map(jnp.ones_like, masks)


def falling(budget: jax.Array, first: jax.Array, left: jax.Array) -> jax.Array:
  """What a leaf keeps with a share `left` of its pruning still to come.

  It counts from the budget upwards, so that the last update meets it exactly.
  """
  extra = jnp.maximum(first - budget, 0)
  more = jnp.floor(extra.astype(jnp.float32) * left).astype(jnp.int32)
  return budget + jnp.minimum(more, extra)


def _total(final, first, left):
  """As `falling`, of all sparse leaves together."""
  leaves = jax.tree_util.tree_leaves_with_path(first)
  before = sum(n for path, n in leaves if path_name(path) in final)
  return falling(jnp.int32(sum(final.values())), before, left)


def check_sparsities(sparsity: float, initial: float) -> None:
  """Refuses what is out of range, or would have to grow."""
  distributions.check_sparsity(sparsity)
  distributions.check_sparsity(initial, "initial_sparsity")
  if initial > sparsity:
    raise ValueError(
      f"initial_sparsity: got {initial}, wanted at most the final sparsity "
      f"{sparsity}: what is pruned does not come back"
    )


class Nested(NamedTuple):
  """What `nested` remembers.

  Attributes:
    score: The score's state.
    backward: The masks of the weights that are trained.
  """

  score: Any
  backward: PyTree


def nested(
  *,
  sparsity: float,
  backward_sparsity: float,
  score: Score,
  until: int | None = None,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
) -> MaskUpdate:
  """The best weights, and a larger set around them that is trained.

  Args:
    sparsity: The share of zeros in the forward pass, in [0, 1).
    backward_sparsity: The share of weights outside the larger set.
    score: The score by which both are chosen.
    until: The step from which the larger set is the smaller one; None for
      never.
    distribution: How many weights each sparse leaf keeps, in either.
    prunable: Which leaves are sparse.
    pattern: The shape of zeros in the forward pass. The larger set holds it,
      but is unstructured.

  Returns:
    The mask update; the larger set is `state.scores.backward`.

  Raises:
    ValueError: If a sparsity is out of range, or the larger set is smaller.
  """
  if backward_sparsity > sparsity:
    raise ValueError(
      f"backward_sparsity: got {backward_sparsity}, wanted at most {sparsity}, "
      "that of the forward pass: what it sees is to be trained"
    )
  given = {"score": score, "distribution": distribution, "prunable": prunable}
  forward = best(sparsity=sparsity, pattern=pattern, **given)
  backward = best(sparsity=backward_sparsity, **given)

  def around(masks, larger, step):
    if until is not None:
      larger = jax.tree.map(lambda b: b & (step < until), larger)
    return jax.tree.map(jnp.logical_or, masks, larger)

  def init(key, params):
    state = forward.init(key, params)
    larger = backward.init(key, params).masks
    both = Nested(state.scores, around(state.masks, larger, 0))
    return state._replace(scores=both)

  def update(grads, state, params, now, *, after=None):
    before = state._replace(scores=state.scores.score)
    new = forward.update(grads, before, params, now, after=after)
    if not now:
      return new._replace(scores=Nested(new.scores, state.scores.backward))
    counts = lib.budgets(params, backward_sparsity, distribution, prunable)
    before = before._replace(
      masks=state.scores.backward, budget=lib.as_tree(counts, params)
    )
    larger = backward.update(grads, before, params, now, after=after).masks
    both = Nested(new.scores, around(new.masks, larger, new.count))
    return new._replace(scores=both)

  return MaskUpdate(init, update)
