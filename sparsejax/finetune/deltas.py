"""Sparse deltas on a frozen base, at positions that move: SpIEL and SEFT."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sparsejax import distributions
from sparsejax.distributions import Prunable
from sparsejax.finetune import slots as support
from sparsejax.finetune.moving import GradientEvolution, Schedule
from sparsejax.finetune.optimizers import scale_by_aged_adam
from sparsejax.finetune.sm3 import Sm3Evolution
from sparsejax.finetune.transform import FineTuning, fine_tune
from sparsejax.keys import wrapped
from sparsejax.nodes import each


def adamw(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Makes AdamW for deltas: counts steps per weight, decays towards the base.

  As in the released code, and unlike in `optax.adamw`, the delta decays after
  its step, and `eps` is added before the bias correction; see
  `scale_by_aged_adam`.

  Args:
    learning_rate: A number or an optax schedule.
    b1: The decay of the mean.
    b2: The decay of the mean square.
    eps: A number to add to the root of the mean square.
    weight_decay: Each step multiplies a delta by
      1 - learning rate * weight_decay.

  Returns:
    The optimizer: v + u -> (1 - rate * weight_decay) (v + u), where u is the
    step of Adam.

  References:
    Ansell et al., Scaling Sparse Fine-Tuning to Large Language Models,
    arXiv:2401.16405, 2024; its released code.
  """
  scale = optax.scale_by_learning_rate(learning_rate)

  def update(updates, state, values=None):
    steps, after = scale.update(updates, state)
    if not weight_decay:
      return steps, after
    # `scale` is linear: the same rate, of what the step leads to.
    decays, _ = scale.update(
      jax.tree.map(lambda v, u: weight_decay * (v + u), values, steps), state
    )
    return jax.tree.map(jnp.add, steps, decays), after

  return optax.chain(
    scale_by_aged_adam(b1, b2, eps),
    optax.identity(),  # Checkpoints hold a state here.
    optax.GradientTransformation(scale.init, update),
  )


def spiel(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  t_end: int,
  k: int | Callable[[tuple[int, int]], int],
  every: int = 20,
  accumulate: int = 5,
  fraction: Callable[[jax.Array], jax.Array] | float = 0.2,
  candidates: float = 1.0,
  on_zeros: bool = True,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains deltas that move to large accumulated gradients: SpIEL.

  `accumulate` steps before positions move, those with the largest gradients
  become candidates, and their gradients add up until the move. The first move
  replaces all positions. A sparse base does not stay sparse unless `on_zeros`
  is False.

  Args:
    inner: Any optax optimizer; the paper uses `finetune.adamw`.
    key: PRNG key of the initial positions, drawn uniformly.
    t_end: The number of training steps.
    k: How many weights of a matrix to train, or a function of its shape.
    every: Steps from one move to the next.
    accumulate: The number of steps over which to gather gradients.
    fraction: The share of a matrix's deltas that move: a schedule of the steps
      done, or the initial value of one that falls linearly to 0 at `t_end`.
    candidates: The number of candidates, in multiples of k.
    on_zeros: Whether to train positions where the base is 0.
    prunable: Which leaves to fine-tune.

  Returns:
    The transformation.

  Raises:
    ValueError: If a number is out of range.

  References:
    Ansell et al., Scaling Sparse Fine-Tuning to Large Language Models,
    arXiv:2401.16405, 2024 (SpIEL-AG).
  """
  _check_steps(every, accumulate)
  if candidates <= 0:
    raise ValueError(f"got candidates={candidates}, wanted more")
  evolution = GradientEvolution(
    Schedule(
      first=accumulate,
      every=every,
      accumulate=accumulate,
      stop=t_end,
      fraction=_linear(fraction, accumulate, t_end),
    ),
    most=1.0,
    candidates=candidates,
    revive=on_zeros,
    at_random=False,
    fold=False,
    sensitivity=None,
  )
  begin = functools.partial(_begin, k=k, on_zeros=on_zeros)
  return fine_tune(
    inner, begin, key=key, prunable=prunable, evolution=evolution
  )


def spiel_sm3(
  learning_rate: optax.ScalarOrSchedule,
  *,
  key: jax.Array,
  t_end: int,
  k: int | Callable[[tuple[int, int]], int],
  first: int = 5,
  every: int = 20,
  fraction: Callable[[jax.Array], jax.Array] | float = 0.2,
  weight_decay: float = 0.0,
  eps: float = 1e-8,
  on_zeros: bool = True,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains deltas with one optimizer state per row and column: SpIEL, SM3.

  SM3 keeps squared gradients by row and by column, instead of two moments for
  every weight. New positions grow where the product of the two is largest, so
  no gradients have to be gathered for them. The first move replaces all
  positions. A sparse base does not stay sparse unless `on_zeros` is False.

  Args:
    learning_rate: A number or an optax schedule.
    key: PRNG key of the initial positions, drawn uniformly.
    t_end: The number of training steps.
    k: How many weights of a matrix to train, or a function of its shape.
    first: Steps before the first move.
    every: Steps from one move to the next.
    fraction: The share of a matrix's deltas that move: a schedule of the steps
      done, or the initial value of one that falls linearly to 0 at `t_end`.
    weight_decay: Each step multiplies a delta by
      1 - learning rate * weight_decay.
    eps: A number to add to the squares before their root is taken.
    on_zeros: Whether to train positions where the base is 0.
    prunable: Which leaves to fine-tune.

  Returns:
    The transformation. It needs no probes.

  Raises:
    ValueError: If a number is out of range.

  References:
    Ansell et al., Scaling Sparse Fine-Tuning to Large Language Models,
    arXiv:2401.16405, 2024 (SpIEL-MA); its released code.
    Anil et al., Memory-Efficient Adaptive Optimization, arXiv:1901.11150, 2019,
    algorithm SM3-II.

  Example:
    >>> tx = spiel_sm3(1e-3, key=jax.random.key(0), t_end=100, k=30)
    >>> values, state = tx.start({"w": jnp.ones((40, 50))})
    >>> jax.tree.map(jnp.size, (values, state.harvest))
    ({'w': 30}, {'w': Accumulators(rows=40, columns=50)})
  """
  if first < 1 or every < 1:
    raise ValueError(
      f"got first={first} and every={every}, wanted at least 1 step before the "
      "first move and from one to the next"
    )
  if eps <= 0:
    raise ValueError(f"got eps={eps}, wanted more: gradients may be 0")
  schedule = Schedule(
    first=first,
    every=every,
    accumulate=1,
    stop=t_end,
    fraction=_linear(fraction, first, t_end),
  )
  inner = optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
  begin = functools.partial(_begin, k=k, on_zeros=on_zeros)
  evolution = Sm3Evolution(schedule, on_zeros, eps)
  return fine_tune(
    inner, begin, key=key, prunable=prunable, evolution=evolution
  )


def saliency(weights: jax.Array, gradients: jax.Array) -> jax.Array:
  """Computes |w g|, by which SEFT prunes."""
  return jnp.abs(weights * gradients)


def magnitude(weights: jax.Array, gradients: jax.Array) -> jax.Array:
  """Computes |w|, the alternative to `saliency`."""
  del gradients
  return jnp.abs(weights)


def seft(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  t_end: int,
  k: int | Callable[[tuple[int, int]], int],
  every: int = 60,
  accumulate: int = 1,
  fraction: Callable[[jax.Array], jax.Array] | float = 0.2,
  revive: bool = True,
  grow_at_random: bool = False,
  fold: bool = False,
  sensitivity: Callable[[jax.Array, jax.Array], jax.Array] = saliency,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains sparse deltas on a base that keeps its number of zeros: SEFT.

  Every `every` steps, the smallest deltas are dropped, and as many positions
  with the largest gradients grow, which may be zeros of the base. Then each
  matrix is pruned back to the number of non-zeros it began with, by the
  smallest |weight x gradient|. Weights that have just grown are not pruned,
  since theirs is 0. The paper's text and code could not be read. So whatever
  its reviews leave open is a keyword here, and the defaults of `every`,
  `fraction` and `accumulate` come from other re-implementations or from SpIEL.

  Args:
    inner: Any optax optimizer, such as `finetune.adamw`.
    key: PRNG key of the initial positions, drawn uniformly from the non-zeros.
    t_end: The number of training steps.
    k: How many weights of a matrix to train, or a function of its shape.
    every: Steps from one move to the next.
    accumulate: The number of steps over which to gather gradients for a move.
    fraction: The share of a matrix's deltas that move: a schedule of the steps
      done, or the initial value of a cosine that falls to 0 at `t_end`.
    revive: Whether zeros of the base may grow. If not, zeros stay where they
      are, and a pattern such as 2:4 is kept.
    grow_at_random: Whether positions grow at random, as an ablation.
    fold: Whether a dropped delta stays in the base as part of its weight.
    sensitivity: `(weights, gradients) -> rank`: the lowest ranks are pruned
      first; `saliency` or `magnitude`.
    prunable: Which leaves to fine-tune.

  Returns:
    The transformation. Its `start` raises a ValueError that names the leaf if a
    leaf has no zeros.

  Raises:
    ValueError: If a number is out of range.

  References:
    SEFT, arXiv:2505.24037, 2025: drop, grow, adapt, as its reviews tell them.
  """
  _check_steps(every, accumulate)
  most = 1.0
  if not callable(fraction):
    _check_share(fraction)
    most = fraction
    fraction = optax.cosine_decay_schedule(most, t_end)
  evolution = GradientEvolution(
    Schedule(
      first=every,
      every=every,
      accumulate=accumulate,
      stop=t_end,
      fraction=fraction,
    ),
    most=most,
    candidates=1.0 + most,
    revive=revive,
    at_random=grow_at_random,
    fold=fold,
    sensitivity=sensitivity if revive else None,
  )

  def begin(path, leaf, key):
    _check_sparse(path, leaf)
    return _begin(path, leaf, key, k=k, on_zeros=False)

  return fine_tune(
    inner, begin, key=key, prunable=prunable, evolution=evolution
  )


def as_many_as_lora(rank: int) -> Callable[[tuple[int, int]], int]:
  """Makes a `k` that trains as many weights as LoRA does: rank x (in + out).

  Example:
    >>> as_many_as_lora(8)((768, 3072))
    30720
  """
  return lambda shape: rank * sum(shape)


def _linear(fraction, first, t_end):
  """Makes SpIEL's schedule: 1 at first, then fraction (1 - step / t_end)."""
  if callable(fraction):
    return fraction
  _check_share(fraction)

  def share(step):
    later = fraction * (1 - step / t_end)
    return jnp.where(step <= first, 1.0, jnp.maximum(later, 0))

  return share


def _begin(path, leaf, key, *, k, on_zeros):
  """Parts a leaf into its base, zero deltas, and slots at random places."""
  *stack, rows, columns = leaf.shape
  count = k((rows, columns)) if callable(k) else k
  if not 1 <= count <= rows * columns:
    raise ValueError(
      f"{path}: got k={count} weights to train, wanted 1 to "
      f"{rows * columns}, as many as a matrix of {leaf.shape} has"
    )
  keys = jax.random.key_data(jax.random.split(key, stack))
  slots = _drawn(leaf, keys, count=count, on_zeros=on_zeros)
  return leaf, jnp.zeros((*stack, count)), slots


# Compiled once for all leaves of one shape.
@functools.partial(jax.jit, static_argnames=("count", "on_zeros"))
def _drawn(leaf, keys, *, count, on_zeros):
  """Draws slots at random places of each matrix."""

  def one(base, key):
    key = wrapped(key)
    where = jnp.ones(base.shape, bool) if on_zeros else base != 0
    return support.draw(key, base, count, where)

  return each(one)(leaf, keys)


def _check_sparse(path, leaf):
  if isinstance(leaf, jax.core.Tracer) or bool(jnp.any(leaf == 0)):
    return
  raise ValueError(
    f"{path}: got {leaf.shape} without a zero, wanted a sparse base to keep "
    "sparse: prune it first, for example with sparsejax.oneshot, or use spiel"
  )


def _check_steps(every, accumulate):
  if not 1 <= accumulate <= every:
    raise ValueError(
      f"got every={every} and accumulate={accumulate}, wanted at least 1 step "
      "to gather gradients in, and no more than from one move to the next"
    )


def _check_share(share):
  if not 0 <= share <= 1:
    raise ValueError(f"got fraction={share}, wanted a share in [0, 1]")
