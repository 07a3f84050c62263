"""Schedules of masks: from dense to sparse, or back and forth."""

import bisect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import schedules, scores, updates
from sparsejax.algorithms.options import (
  annealed,
  check_span,
  for_sparsify,
  for_update,
)
from sparsejax.transform import SparseTransformation, sparsify


def gmp(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  begin: int,
  end: int,
  delta_t: int = 100,
  initial_sparsity: float = 0.0,
  score: scores.Score | None = None,
  **options: Any,
) -> SparseTransformation:
  """Gradual magnitude pruning, from dense along a cubic.

  Params take their gradient step also when masks move.

  Args:
    inner: Any optax optimizer.
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key, which a random score draws from.
    begin: The first step that prunes, t_0.
    end: The step at which the budget is met, t_0 + n dt.
    delta_t: Steps between mask updates, dt; it has to divide `end - begin`.
    initial_sparsity: The sparsity to prune to at `begin`, s_i.
    score: By which to keep weights; |w| by default.
    **options: See `sparsejax.algorithms`.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or the last update would not
      fall on `end`.

  References:
    Zhu and Gupta, To prune, or not to prune: exploring the efficacy of
    pruning for model compression, arXiv:1710.01878, 2017.
  """
  check_span(begin, end, delta_t)
  options = {"step_on_update": True} | options
  update = updates.prune(
    sparsity=sparsity,
    score=scores.magnitude() if score is None else score,
    progress=schedules.cubic(begin, end),
    initial_sparsity=initial_sparsity,
    **for_update(options),
  )
  when = schedules.every(delta_t, start=begin, stop=end + 1)
  return sparsify(inner, update, when=when, key=key, **for_sparsify(options))


def granet(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  begin: int,
  end: int,
  t_end: int,
  delta_t: int = 1000,
  fraction: optax.ScalarOrSchedule = 0.5,
  initial_sparsity: float = 0.5,
  score: scores.Score | None = None,
  **options: Any,
) -> SparseTransformation:
  """GraNet: gradual pruning, and after each round neuroregeneration.

  All sparse leaves are pruned by one threshold; then each drops a share of what
  it has left by |w|, and grows it by the dense gradient |g|. That goes on after
  pruning has ended. Params take their gradient step also when masks move.

  Args:
    inner: Any optax optimizer.
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the first masks.
    begin: The first step that prunes.
    end: The step at which the budget is met, a multiple of `delta_t` later.
    t_end: The step from which masks stay: the end of training, in the paper.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that regenerates at first; a cosine
      anneals it (the authors' code to a hundredth of it, this to 0). Or a
      schedule of the step.
    initial_sparsity: That of the random masks to begin with; 0 begins dense.
    score: By which to prune and drop; |w| by default.
    **options: As for `updates.prune_and_regrow`: scope, distribution, prunable,
      pattern, masks; and for `sparsify`.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or the last pruning would not fall
      on `end`, or after `t_end`.

  References:
    Liu et al., Sparse Training via Boosting Pruning Plasticity with
    Neuroregeneration, arXiv:2106.10404, 2021.
  """
  check_span(begin, end, delta_t)
  if t_end <= end:
    raise ValueError(
      f"got t_end={t_end}, wanted a step after the end of pruning, {end}"
    )
  options = {"step_on_update": True} | options
  update = updates.prune_and_regrow(
    sparsity=sparsity,
    drop=scores.magnitude() if score is None else score,
    grow=scores.gradient(),
    progress=schedules.cubic(begin, end),
    fraction=annealed(fraction, t_end),
    initial_sparsity=initial_sparsity,
    **for_update(options),
  )
  # Nothing is to be regenerated before the first step.
  when = schedules.every(delta_t, start=begin or delta_t, stop=t_end)
  return sparsify(inner, update, when=when, key=key, **for_sparsify(options))


def ac_dc(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  phases: Sequence[int],
  score: scores.Score | None = None,
  fresh_moments: bool = True,
  **options: Any,
) -> SparseTransformation:
  """AC/DC: dense and sparse phases in turn, from dense to sparse.

  A sparse phase trains the largest weights of all sparse leaves under one
  threshold; in the next dense one the others start again from zero. Params
  take their gradient step also when phases begin.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros in sparse phases, in [0, 1).
    key: PRNG key, which a random score draws from.
    phases: The steps at which phases begin, in order, after the first, which is
      dense: sparse, dense, ..., sparse.
    score: By which to keep weights; |w| by default.
    fresh_moments: Whether a dense phase begins with all moments at zero, as in
      the paper, or only those of the weights that were pruned.
    **options: As for `updates.alternate`: scope, distribution, prunable,
      pattern; and for `sparsify`.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or training would end dense.

  References:
    Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep
    Neural Networks, arXiv:2106.12379, 2021, section 3.
  """
  phases = tuple(int(t) for t in phases)
  if len(phases) % 2 == 0 or list(phases) != sorted(set(phases)):
    raise ValueError(
      f"got phases={phases}, wanted an odd number of steps, each after the one "
      "before: the phases that begin there are sparse, dense, ..., sparse"
    )

  def compressed(step):
    if isinstance(step, int):
      return bisect.bisect_right(phases, step) % 2 == 1
    return jnp.sum(step >= jnp.array(phases), dtype=jnp.int32) % 2 == 1

  options = {"step_on_update": True} | options
  if fresh_moments:
    options = {"restart": schedules.at(*phases[1::2])} | options
  update = updates.alternate(
    sparsity=sparsity,
    score=scores.magnitude() if score is None else score,
    compressed=compressed,
    **for_update(options),
  )
  when = schedules.at(*phases)
  return sparsify(inner, update, when=when, key=key, **for_sparsify(options))
