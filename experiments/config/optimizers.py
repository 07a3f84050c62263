"""Optimizers and learning-rate schedules that a config may name.

All of optax; L2 regularisation comes before momentum, as in the papers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import roles
from sparsejax.masks import path_name


def sgd(
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  decay_vectors: bool = False,
  group_lasso: float = 0.0,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """SGD with momentum and L2 regularisation.

  Args:
    learning_rate: A number or a schedule.
    momentum: Weight of the past; 0 for none.
    nesterov: Whether to look ahead.
    weight_decay: Coefficient l of the gradient l w of the penalty l w^2 / 2.
    decay_vectors: Whether it applies to biases and norms too.
    group_lasso: Coefficient of the norm of each output's weights, as a penalty
      that makes some outputs as good as zero, and eases pruning them.
    clip: Largest global norm of the gradient, before L2; 0 for no limit.

  Returns:
    The gradient transformation.
  """
  inner = optax.sgd(learning_rate, momentum or None, nesterov)
  return _chain(inner, clip, weight_decay, decay_vectors, group_lasso)


def adam(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  decay_vectors: bool = False,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """Adam; its weight decay is L2 regularisation, as for `sgd`.

  Args:
    learning_rate: A number or a schedule.
    b1: Weight of the past in the mean of gradients.
    b2: Weight of the past in the mean of their squares.
    eps: Added to the root of that mean.
    weight_decay: As for `sgd`.
    decay_vectors: Whether it applies to biases and norms too.
    clip: Largest global norm of the gradient, before L2; 0 for no limit.

  Returns:
    The gradient transformation.
  """
  inner = optax.adam(learning_rate, b1, b2, eps)
  return _chain(inner, clip, weight_decay, decay_vectors)


def adamw(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  decay_vectors: bool = False,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay.

  Args:
    learning_rate: A number or a schedule.
    b1: Weight of the past in the mean of gradients.
    b2: Weight of the past in the mean of their squares.
    eps: Added to the root of that mean.
    weight_decay: The share of each weight, times the learning rate, that is
      taken off in a step.
    decay_vectors: Whether it applies to biases and norms too.
    clip: Largest global norm of the gradient; 0 for no limit.

  Returns:
    The gradient transformation.
  """
  mask = None if decay_vectors else _matrices
  inner = optax.adamw(
    learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask
  )
  return _chain(inner, clip)


def _chain(
  inner: optax.GradientTransformation,
  clip: float,
  penalty: float = 0.0,
  decay_vectors: bool = False,
  lasso: float = 0.0,
) -> optax.GradientTransformation:
  """Clips gradients, adds those of penalties, takes the inner step."""
  # Three states in any case: checkpoints hold them.
  first = second = optax.identity()
  if clip:
    first = optax.clip_by_global_norm(clip)
  if penalty:
    mask = None if decay_vectors else _matrices
    second = optax.add_decayed_weights(penalty, mask)
  if lasso:
    second = optax.chain(second, _group_lasso(lasso))
  return optax.chain(first, second, inner)


def _group_lasso(coefficient: float) -> optax.GradientTransformation:
  """Adds the gradient of a penalty, the sum of the norms of outputs' weights.

  Each norm counts times the root of the number of its weights. Wen et al.,
  Learning Structured Sparsity in Deep Neural Networks, arXiv:1608.03665, 2016,
  section 3.1; the factor is Yuan and Lin's, of the first group lasso.
  """

  def gradient(w: jax.Array) -> jax.Array:
    squares = jnp.sum(jnp.square(w), range(w.ndim - 1), keepdims=True)
    # Of no norm it is zero, where its subgradients lie around.
    inverse = jnp.where(squares > 0, jax.lax.rsqrt(squares), 0)
    return coefficient * (w.size / w.shape[-1]) ** 0.5 * inverse * w

  def add(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    return jax.tree.map(
      lambda u, p, is_matrix: u + gradient(p) if is_matrix else u,
      updates,
      params,
      _matrices(params),
    )

  return optax.stateless(add)


def _matrices(params: Any) -> Any:
  """Marks what has several axes, but for biases and norms of scanned layers."""
  role = roles.of(params)
  return jax.tree_util.tree_map_with_path(
    lambda path, p: (
      p.ndim > 1 and role[path_name(path)].kind not in ("bias", "norm")
    ),
    params,
  )


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw}


# Schedules of the learning rate. Each may rise linearly from 0 at first.


def constant(
  *, steps: int, learning_rate: float, warmup: int = 0
) -> optax.Schedule:
  """Stays at the learning rate.

  Args:
    steps: Training steps.
    learning_rate: Its largest value.
    warmup: Steps in which it rises to that from 0.

  Returns:
    The schedule.
  """
  del steps
  return _warmed(optax.constant_schedule, learning_rate, warmup)


def cosine(
  *,
  steps: int,
  learning_rate: float,
  warmup: int = 0,
  end: float = 0.0,
  epoch: int = 1,
) -> optax.Schedule:
  """Falls along half a cosine to `end` at the last step.

  Args:
    steps: Training steps.
    learning_rate: Its largest value.
    warmup: Steps in which it rises to that from 0.
    end: Its value at the last step.
    epoch: Steps for which it stays the same: what it is at the first of them,
      or, while it rises, after the last.

  Returns:
    The schedule.
  """
  after = functools.partial(
    optax.cosine_decay_schedule,
    decay_steps=max(1, steps - warmup),
    alpha=end / learning_rate if end else 0.0,
  )
  return _by_epoch(_warmed(after, learning_rate, warmup), warmup, epoch)


def linear(
  *, steps: int, learning_rate: float, warmup: int = 0, end: float = 0.0
) -> optax.Schedule:
  """Falls along a line to `end` at the last step.

  Args:
    steps: Training steps.
    learning_rate: Its largest value.
    warmup: Steps in which it rises to that from 0.
    end: Its value at the last step.

  Returns:
    The schedule.
  """
  after = functools.partial(
    optax.linear_schedule,
    end_value=end,
    transition_steps=max(1, steps - warmup),
  )
  return _warmed(after, learning_rate, warmup)


def piecewise(
  *,
  steps: int,
  learning_rate: float,
  boundaries: tuple[int, ...],
  factor: float,
  warmup: int = 0,
) -> optax.Schedule:
  """Multiplies the rate by `factor` at each of the steps `boundaries`.

  Args:
    steps: Training steps.
    learning_rate: Its largest value.
    boundaries: The steps at which it changes.
    factor: What it is multiplied by.
    warmup: Steps in which it rises from 0.

  Returns:
    The schedule.
  """
  del steps
  after = functools.partial(
    optax.piecewise_constant_schedule,
    boundaries_and_scales={b - warmup: factor for b in boundaries},
  )
  return _warmed(after, learning_rate, warmup)


def _warmed(
  after: Callable[[float], optax.Schedule], learning_rate: float, warmup: int
) -> optax.Schedule:
  """Rises from 0 in `warmup` steps to the schedule `after`."""
  if not warmup:
    return after(learning_rate)
  rise = optax.linear_schedule(0.0, learning_rate, warmup)
  return optax.join_schedules([rise, after(learning_rate)], [warmup])


def _by_epoch(
  schedule: optax.Schedule, warmup: int, epoch: int
) -> optax.Schedule:
  """Holds a schedule still for the steps of an epoch."""
  if epoch <= 1:
    return schedule

  def stepwise(step: jax.Array) -> jax.Array:
    first = step // epoch * epoch
    return schedule(jnp.where(first < warmup, first + epoch, first))

  return stepwise


SCHEDULES = {
  "constant": constant,
  "cosine": cosine,
  "linear": linear,
  "piecewise": piecewise,
}
