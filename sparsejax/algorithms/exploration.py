"""DST-EE: growth that weighs exploitation against exploration."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import Initializer, zeros

from sparsejax import distributions, scores, updates
from sparsejax.algorithms.common import (
  Moments,
  annealed,
  leaf_options,
  move_options,
  until,
)
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.schedules import When, never
from sparsejax.transform import SparseTransformation, sparsify


def dst_ee(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  c: float = 1e-3,
  epsilon: float = 1.0,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  regrow: bool = True,
  masks: PyTree | None = None,
  step_on_update: bool = False,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """DST-EE: drops by |w|, grows by |g| and how seldom a weight was active.

  The growth score of a weight at step t is |g| + c ln(t) / (N + epsilon), where
  N counts the mask updates before which the weight was active. The bonus is
  largest for weights that never were, as in upper confidence bounds.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the first masks.
    t_end: The step from which masks stay, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that moves at first; it is annealed
      by a cosine, as in RigL.
    c: Weight of the exploration bonus, at least 0; at 0 this is RigL. It has
      the unit of a gradient, so its best value depends on the loss.
    epsilon: Bounds the bonus of weights that were never active by
      c ln(t) / epsilon; positive.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    regrow: Whether a weight just dropped may grow back at once.
    masks: The first masks, as for `updates.static`.
    step_on_update: Whether params also take a gradient step as masks move.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment` of newly grown weights, from
      the old moment and the dense gradient; zero by default.
    restart: `step -> bool`: the moves at which all moments start from zero.

  Returns:
    The gradient transformation. Its state has an int32 count per parameter.

  Raises:
    ValueError: If a number is out of range.

  References:
    Huang et al., Dynamic Sparse Training via Balancing the
    Exploration-Exploitation Trade-off, arXiv:2211.16667, 2022.
  """
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.magnitude(),
    grow=_gradient_and_exploration(c, epsilon, period=delta_t),
    fraction=annealed(fraction, t_end),
    regrow=regrow,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = until(t_end, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


def _gradient_and_exploration(
  c: float, epsilon: float, *, period: int
) -> optax.GradientTransformationExtraArgs:
  """|g| + c ln(t) / (N + epsilon), float32 or wider.

  Args:
    c: Weight of the second term.
    epsilon: What N is raised by.
    period: Steps between mask updates, which are at its multiples.

  Returns:
    The score; its state holds N, int32, of every parameter.

  Raises:
    ValueError: If c is negative or epsilon is not positive.
  """
  if c < 0 or epsilon <= 0:
    raise ValueError(
      f"got c={c} and epsilon={epsilon}, wanted c >= 0 and epsilon > 0"
    )

  def init(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.int32), params)

  def update(
    grads: PyTree,
    counts: PyTree,
    params: PyTree | None = None,
    *,
    masks: PyTree,
    step: jax.Array,
    **extra: Any,
  ) -> tuple[PyTree, PyTree]:
    del params, extra
    # A score with a state is updated on every step, but N counts mask updates,
    # of which there is none at step 0.
    moves = (step > 0) & (step % period == 0)
    counts = jax.tree.map(
      lambda n, m: n + (m & moves).astype(jnp.int32), counts, masks
    )
    bonus = c * jnp.log(jnp.maximum(step, 1).astype(jnp.float32))
    rated = jax.tree.map(
      lambda g, n: jnp.abs(g) + bonus / (n + epsilon), grads, counts
    )
    return rated, counts

  return optax.GradientTransformationExtraArgs(init, update)
