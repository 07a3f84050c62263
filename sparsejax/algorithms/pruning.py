"""Schedules of masks: from dense to sparse, or back and forth."""

import bisect
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import Initializer, zeros

from sparsejax import distributions, schedules, scores, updates
from sparsejax.algorithms.common import (
  Moments,
  annealed,
  check_span,
  leaf_options,
  move_options,
)
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.schedules import When, never
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
  scope: str = "layer",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
  step_on_update: bool = True,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """Gradual magnitude pruning: from dense to sparse along a cubic schedule.

  Params also take a gradient step when masks change.

  Args:
    inner: Any optax optimizer.
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key, used only by a random score.
    begin: The first step that prunes, t_0.
    end: The step at which the final sparsity is reached, t_0 + n dt.
    delta_t: Steps between mask updates, dt; it has to divide `end - begin`.
    initial_sparsity: The sparsity to prune to at `begin`, s_i.
    score: Decides which weights to keep; |w| by default.
    scope: "layer", or "global" for one threshold over all sparse leaves.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

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
  update = updates.prune(
    sparsity=sparsity,
    score=scores.magnitude() if score is None else score,
    progress=schedules.cubic(begin, end),
    initial_sparsity=initial_sparsity,
    scope=scope,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = schedules.every(delta_t, start=begin, stop=end + 1)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


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
  scope: str = "global",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
  step_on_update: bool = True,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """GraNet: gradual pruning, with neuroregeneration after each round.

  One threshold prunes all sparse leaves. Then each leaf drops a share of its
  remaining weights by |w|, and grows as many by the dense gradient |g|. This
  regeneration goes on after pruning has ended. Params also take a gradient step
  when masks change.

  Args:
    inner: Any optax optimizer.
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the initial masks.
    begin: The first step that prunes.
    end: The step at which the final sparsity is reached, a multiple of
      `delta_t` after `begin`.
    t_end: The step from which masks no longer change; in the paper, the end of
      training.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that regenerates at first, or a
      schedule of the step. A cosine anneals a number to 0 (the authors' code,
      to a hundredth of it).
    initial_sparsity: The sparsity of the random initial masks; 0 begins dense.
    score: Decides which weights to prune and drop; |w| by default.
    scope: "layer", or "global" for one threshold over all sparse leaves.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or the last pruning would not fall
      on `end`, or would fall after `t_end`.

  References:
    Liu et al., Sparse Training via Boosting Pruning Plasticity with
    Neuroregeneration, arXiv:2106.10404, 2021.
  """
  check_span(begin, end, delta_t)
  if t_end <= end:
    raise ValueError(
      f"got t_end={t_end}, wanted a step after the end of pruning, {end}"
    )
  update = updates.prune_and_regrow(
    sparsity=sparsity,
    drop=scores.magnitude() if score is None else score,
    grow=scores.gradient(),
    progress=schedules.cubic(begin, end),
    fraction=annealed(fraction, t_end),
    initial_sparsity=initial_sparsity,
    scope=scope,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  # Nothing is to be regenerated before the first step.
  when = schedules.every(delta_t, start=begin or delta_t, stop=t_end)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


def ac_dc(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  phases: Sequence[int],
  score: scores.Score | None = None,
  fresh_moments: bool = True,
  scope: str = "global",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  step_on_update: bool = True,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """AC/DC: dense and sparse phases in turn, from dense to sparse.

  A sparse phase trains the largest weights, chosen by one threshold over all
  sparse leaves. In the dense phase that follows, the other weights start again
  from zero. Params also take a gradient step when a phase begins.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros in sparse phases, in [0, 1).
    key: PRNG key, used only by a random score.
    phases: The steps at which phases begin, in ascending order, without the
      first phase, which is dense. They begin sparse, dense, ..., sparse.
    score: Decides which weights to keep; |w| by default.
    fresh_moments: Whether a dense phase begins with all moments at zero, as in
      the paper; if not, it resets only the moments of the pruned weights.
    scope: "layer", or "global" for one threshold over all sparse leaves.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

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

  if fresh_moments and restart is never:
    restart = schedules.at(*phases[1::2])
  update = updates.alternate(
    sparsity=sparsity,
    score=scores.magnitude() if score is None else score,
    compressed=compressed,
    scope=scope,
    **leaf_options(distribution, prunable, pattern),
  )
  when = schedules.at(*phases)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)
