"""Dynamic sparse training: masks that move within their budget."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import Initializer, zeros

from sparsejax import distributions, scores, updates
from sparsejax.algorithms.common import (
  Moments,
  annealed,
  check_span,
  leaf_options,
  move_options,
  until,
)
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.schedules import When, never
from sparsejax.transform import SparseTransformation, sparsify


def set_(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
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
  """Sparse evolutionary training: drops by |w|, grows at random.

  This is the variant that the RigL paper compares with: a cosine anneals the
  fraction, and params take no gradient step when masks change.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the masks and of the growth.
    t_end: The step from which masks no longer change, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that an update replaces at first,
      alpha.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    regrow: Whether a weight may grow back in the update that dropped it.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Mocanu et al., Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science,
    arXiv:1707.04780, 2018.
  """
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.magnitude(),
    grow=scores.random(),
    fraction=annealed(fraction, t_end),
    regrow=regrow,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = until(t_end, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


def rigl(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  accumulate: int = 1,
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
  """RigL: drops by |w|, grows by the dense gradient |g|.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the initial masks.
    t_end: The step from which masks no longer change, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that an update replaces at first,
      alpha; it is annealed as alpha / 2 (1 + cos(pi t / T_end)).
    accumulate: How many dense gradients to average for growth; the paper uses
      the gradient of one batch.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    regrow: Whether a weight may grow back in the update that dropped it.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv:1911.11134, 2020, section 3 and algorithm 1.

  Example:
    >>> import jax.numpy as jnp, sparsejax
    >>> tx = rigl(optax.sgd(0.1), 0.9, key=jax.random.key(0), t_end=75_000)
    >>> params, state = sparsejax.init(tx, {"w": jnp.ones((10, 10))})
    >>> sparsejax.nnz(sparsejax.get_masks(state))
    10
  """
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.magnitude(),
    grow=scores.accumulated(scores.gradient(), accumulate, period=delta_t),
    fraction=annealed(fraction, t_end),
    regrow=regrow,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = until(t_end, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


def snfs(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  decay: float = 0.9,
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
  """Sparse networks from scratch: drops by |w|, grows by |momentum|.

  This is the variant that the RigL paper compares with: the number of weights
  of each layer stays the same.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the initial masks.
    t_end: The step from which masks no longer change, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that an update replaces at first.
    decay: Weight of the past in the average of the dense gradients. The average
      takes one more array per parameter.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    regrow: Whether a weight may grow back in the update that dropped it.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Dettmers and Zettlemoyer, Sparse Networks from Scratch: Faster Training
    without Losing Performance, arXiv:1907.04840, 2019.
  """
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.magnitude(),
    grow=scores.momentum(decay),
    fraction=annealed(fraction, t_end),
    regrow=regrow,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = until(t_end, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


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
  """DST-EE: drops by |w|, grows by |g| plus a bonus for rarely active weights.

  The growth score of a weight at step t is |g| + c ln(t) / (N + epsilon), where
  N counts the mask updates before which the weight was active. As in upper
  confidence bounds, the bonus is largest for weights that were never active.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the initial masks.
    t_end: The step from which masks no longer change, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that an update replaces at first;
      a cosine anneals it, as in RigL.
    c: Weight of the exploration bonus, at least 0; with 0 this is RigL. It has
      the unit of a gradient, so its best value depends on the loss.
    epsilon: Limits the bonus of weights that were never active to
      c ln(t) / epsilon; positive.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    regrow: Whether a weight may grow back in the update that dropped it.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

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


def seft(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  smoothing: float = 0.0,
  accumulate: int = 1,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
  step_on_update: bool = False,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """Sensitivity-based drop-and-grow: SEFT's rule, for any model.

  Grows the inactive weights with the largest |g|, then returns to the exact
  budget by dropping the weights with the lowest sensitivity |w g|. Weights that
  were just grown have sensitivity 0 and are not dropped.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the initial masks.
    t_end: The step from which masks no longer change.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that an update replaces at first.
    smoothing: Weight of the past in an average of the sensitivity over all
      steps, which takes one more array per parameter; 0 uses the sensitivity of
      one batch.
    accumulate: How many dense gradients to average for growth.
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
    ValueError: If a number is out of range.

  References:
    Xiao et al., Leave it to the Specialist: Repair Sparse LLMs with Sparse
    Fine-Tuning via Sparsity Evolution, arXiv:2505.24037, 2025.
  """
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.smoothed(scores.sensitivity(), smoothing),
    grow=scores.accumulated(scores.gradient(), accumulate, period=delta_t),
    fraction=annealed(fraction, t_end),
    regrow=False,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = until(t_end, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


def mest(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int,
  fraction: optax.ScalarOrSchedule = 0.2,
  surplus: optax.ScalarOrSchedule = 0.0,
  gradient_weight: float = 0.0,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  regrow: bool = True,
  masks: PyTree | None = None,
  step_on_update: bool = True,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """MEST: elastic mutation (EM), or with a soft memory bound (EM&S).

  Drops by |w| + lambda |g|, grows at random. Mutation is elastic: the share of
  weights that mutates stays the same for three quarters of the time until
  T_end, is half as large for the rest, and masks no longer change after T_end.
  Under a soft bound (`surplus`), more weights than the budget are active from
  one update to the next. The surplus shrinks in the same stages and is gone at
  T_end. Params also take a gradient step when masks change.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the masks and of the growth.
    t_end: The step of the last update, T_end, a multiple of `delta_t`. In the
      paper's recipe it lies after three quarters of training.
    delta_t: Steps between mask updates; 5 epochs in the paper.
    fraction: The share of active weights that mutates at first, or a schedule.
      At 90 % sparsity EM uses 0.2, and EM&S uses 0.
    surplus: How many more weights than the budget are active at first, as a
      share of the budget, or a schedule. At 90 % sparsity EM&S uses 0.5, and EM
      uses 0.
    gradient_weight: lambda. The authors' code has 0, so it drops by |w|.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    regrow: Whether a weight may grow back in the update that dropped it.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or the last update would not fall
      on `t_end`.

  References:
    Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training
    Framework on the Edge, arXiv:2110.14032, 2021.
  """
  check_span(0, t_end, delta_t)
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.magnitude_and_gradient(gradient_weight),
    grow=scores.random(),
    fraction=_in_stages(fraction, t_end),
    surplus=_in_stages(surplus, t_end),
    regrow=regrow,
    **leaf_options(distribution, prunable, pattern, masks),
  )
  when = until(t_end + 1, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)


def _everywhere(path, leaf):
  del path, leaf
  return True


def _in_stages(share, t_end):
  if callable(share) or share == 0:
    return share
  updates.check_fraction(share)
  return optax.piecewise_constant_schedule(
    share, {t_end * 3 // 4: 0.5, t_end - 1: 0.0}
  )


def srigl(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: optax.ScalarOrSchedule = 0.3,
  ablation: float = 0.3,
  never_ablate: Prunable | None = None,
  accumulate: int = 1,
  axis: int | None = None,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  masks: PyTree | None = None,
  step_on_update: bool = True,
  grown_values: Initializer = zeros,
  grown_moments: Moments | None = None,
  restart: When = never,
) -> SparseTransformation:
  """SRigL: RigL with the same fan-in for every neuron, and fewer neurons.

  A neuron with too few salient weights is ablated, and the other neurons of its
  layer get its weights. As in the authors' code, params also take a gradient
  step when masks change.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the initial masks.
    t_end: The step from which masks no longer change, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that an update replaces at first,
      which a cosine anneals to 0; or a schedule of the step.
    ablation: gamma_sal: a neuron is kept if this share of its fan-in, and at
      least one weight, is salient. 0 ablates none.
    never_ablate: `(path, leaf) -> bool`: layers that keep all neurons, such as
      `distributions.matching("^logits")`. The output layer has to be among
      them, because an ablated output is a class that is never predicted.
      Required unless `ablation` is 0, since the params do not show which layer
      is the output.
    accumulate: How many dense gradients to average for growth.
    axis: The axis of neurons, among the axes of one layer; by default the axis
      of outputs.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    masks: The initial masks, as in `updates.static`.
    step_on_update: Whether params also take a gradient step when masks change.
    grown_values: Initializer of newly grown weights.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from its old moment and its dense gradient; zero by default.
    restart: `step -> bool`: the mask updates that reset all moments to zero.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or `never_ablate` is missing.

  References:
    Lasby et al., Dynamic Sparse Training with Structured Sparsity,
    arXiv:2305.02299, 2023, section 3.
  """
  if never_ablate is None:
    if ablation:
      raise ValueError(
        "got no never_ablate, wanted a predicate that names the output layer, "
        "such as distributions.matching('^logits'): its neurons are classes"
      )
    never_ablate = _everywhere
  update = updates.constant_fan_in(
    sparsity=sparsity,
    drop=scores.magnitude(),
    grow=scores.accumulated(scores.gradient(), accumulate, period=delta_t),
    fraction=annealed(fraction, t_end),
    ablation=ablation,
    never_ablate=never_ablate,
    axis=axis,
    distribution=distribution,
    prunable=prunable,
    masks=masks,
  )
  when = until(t_end, delta_t)
  moved = move_options(step_on_update, grown_values, grown_moments, restart)
  return sparsify(inner, update, when=when, key=key, **moved)
