"""The published algorithms: score x distribution x schedule x pattern.

Each reads like its paper's pseudo-code and is made of public pieces. What
the keywords `options` take is what `updates.drop_and_grow` (or `prune`) and
`sparsify` take: distribution, prunable, pattern, regrow, and masks to begin
with, such as those of `initial`; grown_values, grown_moments.
"""

from typing import Any

import jax
import optax

from sparsejax import schedules, scores, updates
from sparsejax.masks import PyTree
from sparsejax.transform import sparsify

Transformation = optax.GradientTransformationExtraArgs

_SPARSIFY_OPTIONS = ("grown_values", "grown_moments", "step_on_update")


def dense(inner: optax.GradientTransformation) -> Transformation:
  """No zeros at all: the baseline, in the same loop as the others.

  Args:
    inner: Any optax optimizer.

  Returns:
    The gradient transformation; all its masks are the scalar True.
  """
  return fixed(inner, True)


def fixed(inner: optax.GradientTransformation, masks: PyTree) -> Transformation:
  """Trains the weights of a given mask, and no others.

  Args:
    inner: Any optax optimizer.
    masks: Bool arrays of the params' shapes, True where active, or the scalar
      True where a leaf is dense; a tree prefix will do.

  Returns:
    The gradient transformation. Its `init` raises a ValueError or a TypeError
    that names the leaf if masks and params do not fit.

  Example:
    >>> import jax.numpy as jnp, sparsejax
    >>> tx = fixed(optax.adam(1e-3), {"w": jnp.eye(3, dtype=bool), "b": True})
    >>> params = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
    >>> params, state = sparsejax.init(tx, params)
    >>> int(params["w"].sum())
    3
  """
  return sparsify(inner, updates.fixed(masks), when=schedules.never, key=None)


def static(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  **options: Any,
) -> Transformation:
  """Random masks that stay as they were drawn.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the masks.
    **options: As for `updates.static`.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If the sparsity is out of range.
  """
  update = updates.static(sparsity=sparsity, **options)
  return sparsify(inner, update, when=schedules.never, key=key)


def set_(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  **options: Any,
) -> Transformation:
  """Sparse evolutionary training: drops by |w|, grows at random.

  As in RigL's comparison: with the fraction annealed by a cosine, and no
  gradient step when masks move.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the masks and of the growth.
    t_end: The step from which masks stay, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that moves at first, alpha.
    **options: See the module's docstring.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Mocanu et al., Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science,
    arXiv:1707.04780, 2018.
  """
  return _drop_and_grow(
    inner,
    sparsity,
    drop=scores.magnitude(),
    grow=scores.random(),
    key=key,
    t_end=t_end,
    delta_t=delta_t,
    fraction=fraction,
    **options,
  )


def rigl(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  accumulate: int = 1,
  **options: Any,
) -> Transformation:
  """RigL: drops by |w|, grows by the dense gradient |g|.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the first masks.
    t_end: The step from which masks stay, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that moves at first, alpha; it is
      annealed as alpha / 2 (1 + cos(pi t / T_end)).
    accumulate: How many dense gradients to average for growth: the paper
      takes that of one batch.
    **options: See the module's docstring.

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
  grow = scores.gradient()
  return _drop_and_grow(
    inner,
    sparsity,
    drop=scores.magnitude(),
    grow=scores.accumulated(grow, accumulate, period=delta_t),
    key=key,
    t_end=t_end,
    delta_t=delta_t,
    fraction=fraction,
    **options,
  )


def snfs(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  t_end: int,
  delta_t: int = 100,
  fraction: float = 0.3,
  decay: float = 0.9,
  **options: Any,
) -> Transformation:
  """Sparse networks from scratch: drops by |w|, grows by |momentum|.

  As in RigL's comparison: without moving budgets from layer to layer.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the first masks.
    t_end: The step from which masks stay, T_end.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that moves at first.
    decay: Weight of the past in the average of dense gradients, which takes
      one array per parameter.
    **options: See the module's docstring.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Dettmers and Zettlemoyer, Sparse Networks from Scratch: Faster Training
    without Losing Performance, arXiv:1907.04840, 2019.
  """
  return _drop_and_grow(
    inner,
    sparsity,
    drop=scores.magnitude(),
    grow=scores.momentum(decay),
    key=key,
    t_end=t_end,
    delta_t=delta_t,
    fraction=fraction,
    **options,
  )


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
  **options: Any,
) -> Transformation:
  """Sensitivity-based drop-and-grow: SEFT's rule, for any model.

  Grows the inactive weights of the largest |g|, then goes back to the exact
  budget by dropping the lowest sensitivity |w g|. A just-grown weight, whose
  sensitivity is 0, is exempt.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the first masks.
    t_end: The step from which masks stay.
    delta_t: Steps between mask updates.
    fraction: The share of active weights that moves at first.
    smoothing: Weight of the past in an average of the sensitivity over all
      steps, which takes one array per parameter; 0 takes that of one batch.
    accumulate: How many dense gradients to average for growth.
    **options: See the module's docstring.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Xiao et al., Leave it to the Specialist: Repair Sparse LLMs with Sparse
    Fine-Tuning via Sparsity Evolution, arXiv:2505.24037, 2025.
  """
  drop, grow = scores.sensitivity(), scores.gradient()
  return _drop_and_grow(
    inner,
    sparsity,
    drop=scores.smoothed(drop, smoothing),
    grow=scores.accumulated(grow, accumulate, period=delta_t),
    key=key,
    t_end=t_end,
    delta_t=delta_t,
    fraction=fraction,
    regrow=False,
    **options,
  )


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
) -> Transformation:
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
    **options: See the module's docstring.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or the last update would not
      fall on `end`.

  References:
    Zhu and Gupta, To prune, or not to prune: exploring the efficacy of
    pruning for model compression, arXiv:1710.01878, 2017.
  """
  if delta_t < 1 or end <= begin or (end - begin) % delta_t:
    raise ValueError(
      f"got begin={begin}, end={end}, delta_t={delta_t}: wanted an end after "
      "the beginning by a multiple of delta_t, so that the last update meets "
      "the budget"
    )
  options = {"step_on_update": True} | options
  update = updates.prune(
    sparsity=sparsity,
    score=scores.magnitude() if score is None else score,
    progress=schedules.cubic(begin, end),
    initial_sparsity=initial_sparsity,
    **_without(options),
  )
  when = schedules.every(delta_t, start=begin, stop=end + 1)
  return sparsify(inner, update, when=when, key=key, **_only(options))


def _drop_and_grow(
  inner, sparsity, *, drop, grow, key, t_end, delta_t, fraction, **options
):
  """Every delta_t steps before t_end, by a cosine from `fraction` to 0."""
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=drop,
    grow=grow,
    fraction=_cosine(fraction, t_end),
    **_without(options),
  )
  when = schedules.every(delta_t, start=delta_t, stop=max(t_end, delta_t))
  return sparsify(inner, update, when=when, key=key, **_only(options))


def _cosine(fraction, t_end):
  if callable(fraction):
    return fraction
  updates.check_fraction(fraction)
  if t_end < 1:
    raise ValueError(
      f"got t_end={t_end}, wanted the step from which masks stay, at least 1"
    )
  return optax.cosine_decay_schedule(fraction, t_end)


def _only(options):
  return {k: v for k, v in options.items() if k in _SPARSIFY_OPTIONS}


def _without(options):
  return {k: v for k, v in options.items() if k not in _SPARSIFY_OPTIONS}
