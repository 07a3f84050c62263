"""Scores of weights: weights with high scores are kept or grown.

Every score is a gradient transformation: it takes dense gradients and returns
scores, at least float32 where it multiplies numbers. So you can chain and
smooth scores with optax. Mask updates pass three extra arguments to every
score. A score that is an `optax.GradientTransformationExtraArgs` may take any
of them, with **extra for the others:

  key: PRNG key of this update.
  masks: The masks before this update. Use them to see which weights are active,
    since a weight that was just grown may be 0. The scalar True where a leaf
    stays dense. Packed mode scores one leaf at a time, and passes True for all
    other leaves.
  step: int32 scalar, the steps so far.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import keys, roles
from sparsejax.distributions import matrices

__all__ = [
  "Score",
  "accumulated",
  "gradient",
  "magnitude",
  "magnitude_and_gradient",
  "momentum",
  "movement",
  "random",
  "sensitivity",
  "smoothed",
]

Score = optax.GradientTransformation


def magnitude() -> Score:
  """Rates by |w|.

  Returns:
    The score, of the params' dtype.

  Example:
    >>> import jax.numpy as jnp
    >>> w, g = jnp.array([1.0, -2.0]), jnp.array([3.0, -0.5])
    >>> print(magnitude().update(g, optax.EmptyState(), w)[0])
    [1. 2.]
  """
  return optax.stateless_with_tree_map(lambda g, w: jnp.abs(w))


def gradient() -> Score:
  """Rates by |g|: what RigL grows by.

  Returns:
    The score, of the gradients' dtype.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv:1911.11134, 2020, section 3, step 4.

  Example:
    >>> import jax.numpy as jnp
    >>> w, g = jnp.array([1.0, -2.0]), jnp.array([3.0, -0.5])
    >>> print(gradient().update(g, optax.EmptyState(), w)[0])
    [3.  0.5]
  """
  return optax.stateless_with_tree_map(lambda g, w: jnp.abs(g))


def sensitivity() -> Score:
  """Rates by |w g|: how the loss changes, to first order, without the weight.

  Returns:
    The score, float32 or wider, so that small half-precision products do not
    vanish.

  References:
    Lee et al., SNIP: Single-shot Network Pruning based on Connection
    Sensitivity, arXiv:1810.02340, 2019, equation 6.

  Example:
    >>> import jax.numpy as jnp
    >>> w, g = jnp.array([1.0, -2.0]), jnp.array([3.0, -0.5])
    >>> print(sensitivity().update(g, optax.EmptyState(), w)[0])
    [3. 1.]
  """
  return optax.stateless_with_tree_map(lambda g, w: jnp.abs(wide(g) * wide(w)))


def magnitude_and_gradient(weight: float) -> Score:
  """Rates by |w| + lambda |g|: what MEST drops by.

  Args:
    weight: lambda, at least 0; at 0 this is `magnitude`.

  Returns:
    The score, float32 or wider.

  Raises:
    ValueError: If the weight is negative.

  References:
    Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training
    Framework on the Edge, arXiv:2110.14032, 2021.

  Example:
    >>> import jax.numpy as jnp
    >>> w, g = jnp.array([1.0, -2.0]), jnp.array([4.0, -0.5])
    >>> print(magnitude_and_gradient(0.5).update(g, optax.EmptyState(), w)[0])
    [3.   2.25]
  """
  if weight < 0:
    raise ValueError(f"got a weight of {weight} for |g|, wanted at least 0")
  if weight == 0:
    return magnitude()
  return optax.stateless_with_tree_map(
    lambda g, w: jnp.abs(wide(w)) + weight * jnp.abs(wide(g))
  )


def check_transformation(x: Any, name: str) -> None:
  """Raises a TypeError unless an argument is a gradient transformation."""
  if not (hasattr(x, "init") and hasattr(x, "update")):
    raise TypeError(
      f"{name}: got {x!r:.60}, a {type(x).__name__}, wanted a gradient "
      "transformation of optax, such as optax.adam(1e-3)"
    )


def movement(
  optimizer: optax.GradientTransformation,
  *,
  penalty: optax.ScalarOrSchedule = 0.0,
  prunable: Callable[[str, Any], bool] = matrices,
) -> Score:
  """Rates by S, trained by the gradient w dL/dw: how far w moves from zero.

  Args:
    optimizer: The optimizer that trains the scores, which begin at zero.
    penalty: lambda, the coefficient of the mean of sigmoid(S), or a schedule of
      the step. The mean is taken over each leaf, and then over the sparse
      leaves.
    prunable: Which leaves are sparse, for that mean.

  Returns:
    The score, float32 or wider. Its state holds one array per parameter, and
    the state of the optimizer.

  References:
    Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning,
    arXiv:2005.07683, 2020, equations 2 and 3.

  Example:
    >>> score = movement(optax.sgd(1.0))
    >>> w, g = jnp.array([1.0, -2.0]), jnp.array([3.0, -0.5])
    >>> print(score.update(g, score.init(w), w)[0])
    [-3. -1.]
  """
  check_transformation(optimizer, "optimizer")
  if not callable(penalty):
    penalty = optax.constant_schedule(penalty)

  def init(params):
    first = _wide_zeros(params)
    return {
      "step": jnp.zeros([], jnp.int32),
      "score": first,
      "optimizer": optimizer.init(first),
    }

  def update(grads, state, params=None):
    sparse = roles.sparse(params, prunable)
    strength = penalty(state["step"]) / max(len(sparse), 1)

    def slope(g, w, s):
      less = jax.nn.sigmoid(s) * jax.nn.sigmoid(-s) * (strength / s.size)
      return wide(g) * wide(w) + less

    slopes = jax.tree.map(slope, grads, params, state["score"])
    change, inner = optimizer.update(slopes, state["optimizer"], state["score"])
    new = optax.apply_updates(state["score"], change)
    return new, {"step": state["step"] + 1, "score": new, "optimizer": inner}

  return optax.GradientTransformation(init, update)


def momentum(decay: float = 0.9) -> Score:
  """Rates by |m|, where m averages the dense gradients: SNFS grows by it.

  Args:
    decay: Weight of the past in the average, in [0, 1).

  Returns:
    The score, float32 or wider. Its state holds one array per parameter.

  Raises:
    ValueError: If the decay is outside [0, 1).

  References:
    Dettmers and Zettlemoyer, Sparse Networks from Scratch: Faster Training
    without Losing Performance, arXiv:1907.04840, 2019, section 3.

  Example:
    >>> score = momentum(0.9)
    >>> g = jnp.array([1.0, -2.0])
    >>> print(score.update(g, score.init(g))[0])
    [0.1 0.2]
  """
  return optax.chain(_average(decay), gradient())


def smoothed(score: Score, decay: float) -> Score:
  """Rates by the exponential average of another score over the steps.

  Args:
    score: The score to smooth; it is evaluated on every step.
    decay: Weight of the past in the average, in [0, 1); 0 for none, in which
      case `score` itself is returned.

  Returns:
    The score, float32 or wider. Its state holds one array per parameter.

  Raises:
    ValueError: If the decay is outside [0, 1).
  """
  if decay == 0:
    return score
  return optax.chain(score, _average(decay))


def accumulated(score: Score, steps: int, *, period: int) -> Score:
  """Rates by another score, applied to the mean gradient of the last steps.

  Args:
    score: The score to apply.
    steps: How many gradients to average, from 1 (then `score` itself is
      returned) to `period`; the last one is the gradient of the update's step.
    period: Steps between mask updates, which happen at multiples of it.

  Returns:
    The score. Its state holds one array per parameter.

  Raises:
    ValueError: If `steps` is not in [1, period].
  """
  if period < 1:
    raise ValueError(f"got {period} steps between updates, wanted at least 1")
  if not 1 <= steps <= period:
    raise ValueError(
      f"got {steps} gradients to average, wanted 1 to {period}, the number "
      "of steps between updates"
    )
  if steps == 1:
    return score

  def init(params):
    return {
      "step": jnp.zeros([], jnp.int32),
      "mean": _wide_zeros(params),
    }

  def update(grads, state, params=None):
    del params
    # Steps until the next update: the window is open for the last few.
    left = -state["step"] % period

    def leaf(mean, grad):
      past = jnp.where(left == steps - 1, jnp.zeros_like(mean), mean)
      return jnp.where(left < steps, past + wide(grad) / steps, past)

    mean = jax.tree.map(leaf, state["mean"], grads)
    return mean, {"step": state["step"] + 1, "mean": mean}

  return optax.chain(optax.GradientTransformation(init, update), score)


def random() -> optax.GradientTransformationExtraArgs:
  """Rates by uniform noise in [0, 1): what SET grows by.

  The noise of a leaf depends only on the extra argument `key` and on the leaf's
  key path, not on the order of the leaves or on their sharding.

  Returns:
    The score, float32. Its update needs the extra argument `key`.
  """

  def update(grads, state, params=None, *, key, **extra):
    del params, extra
    return keys.uniform_like(key, grads), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _average(decay: float) -> optax.GradientTransformation:
  """The exponential average, which forgets what is not finite.

  A batch with NaN or infinity gives a score that is not finite, by which no
  mask moves, but it leaves the average as it was.
  """
  if not 0 <= decay < 1:
    raise ValueError(f"got decay={decay}, wanted one in [0, 1)")

  def init(params):
    return {"average": _wide_zeros(params)}

  def update(grads, state, params=None):
    del params
    old = state["average"]
    new = jax.tree.map(
      lambda a, g: decay * a + (1 - decay) * wide(g), old, grads
    )
    kept = jax.tree.map(lambda n, o: jnp.where(jnp.isfinite(n), n, o), new, old)
    return new, {"average": kept}

  return optax.GradientTransformation(init, update)


def _wide_zeros(params):
  return jax.tree.map(lambda p: jnp.zeros_like(wide(p)), params)


def wide(x: jax.Array) -> jax.Array:
  """Converts to float32, unless wider."""
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
