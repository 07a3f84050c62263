"""A training step: a pure function of a run's state and its batches.

What is compiled of it is in programs.py; what happens when, in loop.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import sparsejax
from experiments.config import parts
from experiments.runs.model import Batches, Keys, Model
from sparsejax import masks as masks_lib
from sparsejax.keys import wrapped

NEVER = np.iinfo(np.int32).max
# What `inspect` counts in a layer.
COUNTS = ("nnz", "new", "new_since_start", "explored", "lost")


class Sums(NamedTuple):
  """What training adds up from one log point to the next.

  Attributes:
    loss: float32: the sum of the batches' losses.
    correct: int32: right predictions.
    steps: int32: batches.
    bad: int32: the first step whose loss was not finite, or the largest int.
  """

  loss: jax.Array
  correct: jax.Array
  steps: jax.Array
  bad: jax.Array


class State(NamedTuple):
  """All that a run carries from step to step, and into checkpoints.

  Attributes:
    step: int32: the steps that have been taken.
    params: The model's parameters, zero where inactive.
    batch_stats: The running averages of BatchNorm; empty without.
    opt_state: The optimizer's state, with the masks.
    keys: uint32[2] by stream: the run's randomness, see `parts.streams`.
    sums: Since the last log point.
    first_masks: The masks before the first step, as `_bits_of` packs them.
    seen_masks: The masks at the last evaluation, packed so.
    ever_masks: What was active at any time so far, packed so.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  keys: Keys
  sums: Sums
  first_masks: Any
  seen_masks: Any
  ever_masks: Any


@jax.jit
def no_sums() -> Sums:
  """Makes the sums of no batches."""
  return Sums(
    loss=jnp.zeros([]),
    correct=jnp.zeros([], jnp.int32),
    steps=jnp.zeros([], jnp.int32),
    bad=jnp.full([], NEVER, jnp.int32),
  )


def start(
  step: jax.Array, params: Any, batch_stats: Any, opt_state: Any, keys: Keys
) -> State:
  """Makes the state in which training starts, or starts again at a step."""
  packed = _bits_of(sparsejax.get_masks(opt_state))
  return State(
    step=step,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
    keys=keys,
    sums=no_sums(),
    first_masks=packed,
    seen_masks=packed,
    ever_masks=packed,
  )


def model_variables(state: State) -> dict[str, Any]:
  """Returns what the model of a state is evaluated with."""
  return {
    "params": sparsejax.forward_params(state.params, state.opt_state),
    "batch_stats": state.batch_stats,
  }


def step(
  model: Model,
  state: State,
  batches: Batches,
  numbers: Mapping[str, jax.Array] | None = None,
  *,
  update_masks: bool,
) -> State:
  """Takes one training step.

  Args:
    model: The model, with the run's config.
    state: The state; its step says which batch it is.
    batches: The examples.
    numbers: Float32 scalars in place of the config's, by keys of
      `parts.NUMBERS`; they may be traced.
    update_masks: Whether masks move.

  Returns:
    The next state.
  """
  x, y = model.batch(state.keys, batches, state.step)

  def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    return model.loss(params, state.batch_stats, state.keys, state.step, x, y)

  config = model.config
  if numbers:
    config = parts.with_numbers(config, numbers)
  tx = parts.transformation(config, wrapped(state.keys["masks"]))
  (loss, (correct, batch_stats)), grads = sparsejax.value_and_grad(
    loss_of, tx, has_aux=True
  )(state.params, state.opt_state, update_masks=update_masks)
  updates, opt_state = tx.update(
    grads, state.opt_state, state.params, update_masks=update_masks
  )
  sums = state.sums
  bad = jnp.where(jnp.isfinite(loss), NEVER, state.step)
  ever_masks = state.ever_masks
  # Masks that stay add nothing: an ordinary step does without packing them.
  if update_masks:
    packed = _bits_of(sparsejax.get_masks(opt_state))
    ever_masks = jax.tree.map(jnp.bitwise_or, ever_masks, packed)
  return state._replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
    sums=Sums(
      loss=sums.loss + loss,
      correct=sums.correct + correct,
      steps=sums.steps + 1,
      bad=jnp.minimum(sums.bad, bad),
    ),
    ever_masks=ever_masks,
  )


def inspect(state: State) -> tuple[dict[str, Any], Any]:
  """Counts where the zeros are.

  Args:
    state: The state.

  Returns:
    `layers`, by path and then by name of COUNTS, int32: weights that are
    active, that became active since the last evaluation and since the start,
    that ever were, and that are inactive and not 0. And the masks of
    sparse leaves, packed to bits.
  """
  masks = sparsejax.get_masks(state.opt_state)
  packed = _bits_of(masks)
  weights = sparsejax.packed.unpack(
    sparsejax.forward_params(state.params, state.opt_state)
  )
  lost = jax.tree.map(
    lambda m, w: jnp.sum((w != 0) & ~m, dtype=jnp.int32), masks, weights
  )
  layers = {}
  for path, zeros in jax.tree_util.tree_leaves_with_path(lost):
    if (name := masks_lib.path_name(path)) in packed:
      now, seen = packed[name], state.seen_masks[name]
      first, ever = state.first_masks[name], state.ever_masks[name]
      active = map(_count, (now, now & ~seen, now & ~first, ever))
      layers[name] = dict(zip(COUNTS, (*active, zeros), strict=True))
  return {"layers": layers}, packed


def _bits_of(masks: Any) -> dict[str, jax.Array]:
  """Packs the masks of sparse leaves to bits, by key path."""
  leaves = jax.tree_util.tree_leaves_with_path(masks)
  sparse = {masks_lib.path_name(path): m for path, m in leaves if m.ndim}
  return masks_lib.pack_bits(sparse)


def _count(x: jax.Array) -> jax.Array:
  return jnp.sum(lax.population_count(x), dtype=jnp.int32)
