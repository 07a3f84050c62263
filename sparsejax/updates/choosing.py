"""Masks that are chosen anew, from all weights, at every update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import distributions, select
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.schedules import When
from sparsejax.scores import Score
from sparsejax.updates import base
from sparsejax.updates.base import MaskState, MaskUpdate
from sparsejax.updates.pruning import Progress, keep_best
from sparsejax.updates.state import without_dense


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
  """Chooses the highest scores among all weights, anew at every update.

  This update is for `straight_through`, where masked weights still change.
  Under `sparsify` masked weights are zero, but they can come back if the score
  does not rate a zero lowest.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    score: The score that decides which weights to keep.
    progress: `step -> float`: the share of the pruning that is done by a step,
      from 0 to 1; None to prune completely from the start.
    initial_sparsity: The sparsity at progress 0.
    scope: As in `prune`.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as in `prune`.

  Returns:
    The mask update.

  Raises:
    ValueError: As in `prune`.
  """
  choose = keep_best(
    sparsity, initial_sparsity, progress, scope, distribution, prunable, pattern
  )

  def init(key: jax.Array, params: PyTree) -> MaskState:
    final = base.budgets(params, sparsity, distribution, prunable, pattern)
    state = base.dense_state(params, prunable, final, key)
    scored = score.init(params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    by, _ = base.rate(score, scored, nothing, state, params, True)
    return choose(state, params, by)._replace(scores=scored)

  asked = base.asked_budgets(sparsity, distribution, prunable, pattern)
  update = base.rated_update(choose, score)
  return MaskUpdate(init, update, pattern, scope == "layer", asked)


class Nested(NamedTuple):
  """What `nested` remembers.

  Attributes:
    score: The score's state.
    backward: The masks of the weights that are trained, `without_dense`.
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
  """Chooses the best weights, and a larger set around them that is trained.

  Args:
    sparsity: The share of zeros in the forward pass, in [0, 1).
    backward_sparsity: The share of weights outside the larger set.
    score: The score that decides on both sets.
    until: The step from which both sets are the smaller one; None for never.
    distribution: How many weights each sparse leaf keeps, in either set.
    prunable: Which leaves are sparse.
    pattern: The shape of zeros in the forward pass. The larger set contains
      these weights, but is itself unstructured.

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
    return without_dense(jax.tree.map(jnp.logical_or, masks, larger))

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = forward.init(key, params)
    larger = backward.init(key, params).masks
    both = Nested(state.scores, around(state.masks, larger, 0))
    return state._replace(scores=both)

  def update(
    grads: PyTree,
    state: MaskState,
    params: PyTree,
    now: bool,
    *,
    after: PyTree | None = None,
  ) -> MaskState:
    before = state._replace(scores=state.scores.score)
    if not now:
      new = forward.update(grads, before, params, now, after=after)
      return new._replace(scores=Nested(new.scores, state.scores.backward))
    counts = base.budgets(params, backward_sparsity, distribution, prunable)
    around_it = before._replace(
      masks=state.scores.backward,
      budget=base.budget_tree(counts, params, prunable),
    )

    @select.together
    def chosen(before, around_it, *trees):
      grads, params, after = trees
      return [
        one.update(grads, state, params, now, after=after)
        for one, state in ((forward, before), (backward, around_it))
      ]

    new, larger = chosen(before, around_it, grads, params, after)
    both = Nested(new.scores, around(new.masks, larger.masks, new.count))
    return new._replace(scores=both)

  return MaskUpdate(init, update, budgets=forward.budgets)


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
  """Alternates dense and sparse phases.

  Args:
    sparsity: The share of zeros in a sparse phase, in [0, 1).
    score: The score that decides which of all weights to keep.
    compressed: `step -> bool`: whether the phase that begins at a step is
      sparse. Masks have to change only at steps where a phase begins.
    scope: As in `prune`.
    distribution: How many weights each sparse leaf keeps; "global" uses only
      the sum over the leaves.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take, as in `static`.

  Returns:
    The mask update; it begins dense.

  Raises:
    ValueError: As in `prune`.

  References:
    Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep
    Neural Networks, arXiv:2106.12379, 2021, section 3.
  """
  keep = keep_best(sparsity, 0.0, None, scope, distribution, prunable, pattern)
  chosen = best(
    sparsity=sparsity,
    score=score,
    scope=scope,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
  )

  def init(key: jax.Array, params: PyTree) -> MaskState:
    state = chosen.init(key, params)
    return state._replace(masks=jax.tree.map(jnp.ones_like, state.masks))

  def move(state, params, by):
    state = keep(state, params, by)
    sparse = compressed(state.count)
    return state._replace(
      masks=jax.tree.map(lambda m: m | jnp.logical_not(sparse), state.masks)
    )

  update = base.rated_update(move, score)
  return MaskUpdate(init, update, *chosen[2:])
