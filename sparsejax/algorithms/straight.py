"""Methods that keep dense weights, and mask them in the forward pass.

The loss has to use `sparsejax.forward_params(params, opt_state)`.
"""

import jax
import jax.numpy as jnp
import optax

from sparsejax import distributions, patterns, schedules, scores, updates
from sparsejax.algorithms.common import check_span, leaf_options
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import apply_masks
from sparsejax.patterns import Patterns
from sparsejax.transform import SparseTransformation, straight_through
from sparsejax.updates.state import with_dense


def ste(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  delta_t: int = 1,
  begin: int | None = None,
  end: int | None = None,
  score: scores.Score | None = None,
  initial_sparsity: float = 0.0,
  scope: str = "layer",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
) -> SparseTransformation:
  """Magnitude pruning with the straight-through estimator.

  The forward pass sees only the weights that are largest at that step. The
  gradient reaches all weights, so a pruned weight may come back.

  Args:
    inner: Any optax optimizer.
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key, used only by a random score.
    delta_t: Steps between choices of masks.
    begin: The first step that prunes, along a cubic from `initial_sparsity`;
      None for the final sparsity from the start.
    end: The step at which the final sparsity is reached; None if `begin` is.
    score: Decides which weights to keep; |w| by default.
    initial_sparsity: The sparsity at `begin`.
    scope: "layer", or "global" for one threshold over all sparse leaves.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range, or only one of begin and end is
      given.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, arXiv:1308.3432, 2013, section 4.
    Lee et al., JaxPruner: A Concise Library for Sparsity Research,
    arXiv:2304.14082, 2023: with magnitudes, every step.

  Example:
    >>> import jax.numpy as jnp, sparsejax
    >>> tx = ste(optax.adam(1e-3), 0.9, key=jax.random.key(0))
    >>> params, state = sparsejax.init(tx, {"w": jnp.ones((10, 10))})
    >>> seen = sparsejax.forward_params(params, state)
    >>> int(seen["w"].sum()), int(params["w"].sum())
    (10, 100)
  """
  update = updates.best(
    sparsity=sparsity,
    score=scores.magnitude() if score is None else score,
    progress=_cubic(begin, end),
    initial_sparsity=initial_sparsity,
    scope=scope,
    **leaf_options(distribution, prunable, pattern),
  )
  return straight_through(inner, update, when=_every(delta_t), key=key)


def sr_ste(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  pattern: Patterns | None = None,
  decay: float = 2e-4,
  delta_t: int = 1,
  scope: str = "layer",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
) -> SparseTransformation:
  """SR-STE: straight-through N:M training that decays what is pruned.

  Adds lambda w to the gradients of pruned weights, before the optimizer sees
  them.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros, 1 - N / M.
    key: PRNG key.
    pattern: The shape of zeros; 2:4 along the inputs by default.
    decay: lambda. The paper uses 2e-4. Code that adds the decay on each device,
      and then sums the gradients of a loss averaged over devices, has an
      effective lambda that is larger by the number of devices.
    delta_t: Steps between choices of masks.
    scope: "layer", or "global" for one threshold over all sparse leaves.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If the sparsity is not that of the pattern.

  References:
    Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks
    From Scratch, arXiv:2102.04010, 2021, section 4.
  """
  update = updates.best(
    sparsity=sparsity,
    score=scores.magnitude(),
    scope=scope,
    **leaf_options(distribution, prunable, pattern or patterns.n_of_m(2, 4)),
  )

  def decayed(grads, params, state):
    def leaf(g, w, mask):
      if mask.ndim == 0:
        return g
      return g + jnp.where(mask, 0, decay * w).astype(g.dtype)

    return jax.tree.map(leaf, grads, params, state.masks)

  return straight_through(
    inner, update, when=_every(delta_t), key=key, gradients=decayed
  )


def top_kast(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  backward_sparsity: float,
  delta_t: int = 1,
  t_end: int | None = None,
  penalty: float = 1e-4,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
) -> SparseTransformation:
  """Top-KAST: runs the largest weights forward, and trains some more weights.

  The forward pass sees a set A of the largest weights; the gradient step trains
  a larger set B of the largest weights. An exploration penalty makes room for
  others: |w|^2 / 2 on A, and |w|^2 / (2 D) on the rest of B, where D is the
  density of A. Weights outside B keep their values.

  Args:
    inner: Any optax optimizer; the penalty is its weight decay.
    sparsity: The share of zeros in the forward pass, in [0, 1).
    key: PRNG key.
    backward_sparsity: The share that is not trained, at most `sparsity`.
    delta_t: Steps between choices of the sets. The paper chooses them at every
      step, and finds that every 100 steps works as well.
    t_end: The step of the last choice, from which only A is trained; None to
      explore to the end.
    penalty: The coefficient of all terms of the exploration penalty.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape of zeros in the forward pass.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Jayakumar et al., Top-KAST: Top-K Always Sparse Training,
    arXiv:2106.03517, 2021, section 2.
  """
  update = updates.nested(
    sparsity=sparsity,
    backward_sparsity=backward_sparsity,
    score=scores.magnitude(),
    until=t_end,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
  )

  def penalised(grads, params, state):
    def leaf(g, w, mask, budget):
      if mask.ndim == 0:
        return g
      size = mask.size // budget.size  # of one layer, if several are stacked
      strength = penalty * jnp.where(mask, 1.0, size / budget)
      return g + (strength * w).astype(g.dtype)

    return jax.tree.map(leaf, grads, params, state.masks, state.budget)

  return straight_through(
    inner,
    update,
    when=_every(delta_t, t_end),
    key=key,
    gradients=penalised,
    trained=lambda state: with_dense(state.scores.backward, jnp.array(True)),
  )


def movement(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  begin: int,
  end: int,
  delta_t: int = 1,
  optimizer: optax.GradientTransformation | None = None,
  initial_sparsity: float = 0.0,
  scope: str = "layer",
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
) -> SparseTransformation:
  """Movement pruning, hard: keeps the weights that move away from zero.

  Scores begin at zero and learn from the straight-through gradient w dL/dw of
  the masked weights. The weights with the highest scores are kept, fewer and
  fewer along a cubic. Pruned weights get no gradient, and may come back with
  the values they had.

  Args:
    inner: Any optax optimizer of the weights.
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key.
    begin: The first step that prunes.
    end: The step at which the final sparsity is reached.
    delta_t: Steps between choices of masks.
    optimizer: The optimizer of the scores; by default Adam with a learning rate
      of 1e-2.
    initial_sparsity: The sparsity at `begin`.
    scope: "layer", or "global" for one threshold over all sparse leaves.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning,
    arXiv:2005.07683, 2020, sections 3 and 4.
  """
  update = updates.best(
    sparsity=sparsity,
    score=scores.movement(optimizer or optax.adam(1e-2)),
    progress=_cubic(begin, end),
    initial_sparsity=initial_sparsity,
    scope=scope,
    **leaf_options(distribution, prunable, pattern),
  )
  return straight_through(
    inner, update, when=_every(delta_t), key=key, gradients=_masked
  )


def soft_movement(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  begin: int,
  end: int,
  threshold: float = 0.1,
  penalty: float = 400.0,
  least: float = 0.005,
  delta_t: int = 1,
  optimizer: optax.GradientTransformation | None = None,
  prunable: Prunable = distributions.matrices,
) -> SparseTransformation:
  """Movement pruning, soft: keeps the weights whose score is above a threshold.

  Like `movement`, but the masks are sigmoid(S) > tau, and a penalty on the mean
  of sigmoid(S) determines how many weights each layer keeps. Threshold and
  penalty rise from 0 along a cubic.

  Args:
    inner: Any optax optimizer of the weights.
    key: PRNG key.
    begin: The step at which threshold and penalty begin to rise.
    end: The step at which they reach their final values.
    threshold: The final threshold tau, in (0, 1).
    penalty: The final penalty lambda, which determines the final sparsity.
    least: The share of its weights that every leaf keeps.
    delta_t: Steps between choices of masks.
    optimizer: The optimizer of the scores; by default Adam with a learning rate
      of 1e-2.
    prunable: Which leaves are sparse.

  Returns:
    The gradient transformation. Its masks have no budget.

  Raises:
    ValueError: If a number is out of range.

  References:
    Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning,
    arXiv:2005.07683, 2020, sections 3 and 4.
  """
  if not 0 < threshold < 1:
    raise ValueError(f"got threshold={threshold}, wanted one in (0, 1)")
  rise = schedules.cubic(begin, end)
  score = scores.movement(
    optimizer or optax.adam(1e-2),
    penalty=lambda step: penalty * rise(step),
    prunable=prunable,
  )

  def limit(step):
    tau = threshold * rise(step)
    return jnp.log(tau) - jnp.log1p(-tau)

  update = updates.above(
    score=score, threshold=limit, least=least, prunable=prunable
  )
  return straight_through(
    inner, update, when=_every(delta_t), key=key, gradients=_masked
  )


def str_(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  optimizer: optax.GradientTransformation,
  initial: float = -10.0,
  prunable: Prunable = distributions.matrices,
) -> SparseTransformation:
  """STR: learned soft thresholds, one per layer.

  The forward pass sees sign(w) relu(|w| - sigmoid(s)). Weight decay on s raises
  the thresholds, and so determines how sparse each layer becomes.

  Args:
    inner: Any optax optimizer of the weights.
    key: PRNG key.
    optimizer: The optimizer of the scalars s. The paper uses the optimizer of
      the weights, with its weight decay as L2 regularisation.
    initial: The initial s. Far below -100, such as the authors' -3200, sigmoid
      and gradient are 0 in float32, so at first only weight decay moves s.
    prunable: Which leaves are sparse.

  Returns:
    The gradient transformation. Its masks have no budget: they mark the weights
    that are not zero in the forward pass.

  References:
    Kusupati et al., Soft Threshold Weight Reparameterization for Learnable
    Sparsity, arXiv:2002.03231, 2020, section 3.
  """
  update = updates.soft_threshold(
    optimizer=optimizer, initial=initial, prunable=prunable
  )
  return straight_through(
    inner, update, when=schedules.always, key=key, gradients=_masked
  )


def _masked(grads, params, state):
  del params
  return apply_masks(grads, state.masks)


def _cubic(begin, end):
  if begin is None and end is None:
    return None
  if begin is None or end is None:
    raise ValueError(
      f"got begin={begin}, end={end}: wanted both steps, or neither"
    )
  return schedules.cubic(begin, end)


def _every(delta_t, t_end=None):
  if delta_t == 1 and t_end is None:
    return schedules.always
  if t_end is not None:
    check_span(0, t_end, delta_t)
    t_end += 1
  return schedules.every(delta_t, start=delta_t, stop=t_end)
