"""The compiled half of training: pure functions of state, data and keys.

Seed and data are arguments, so the runs of one config that differ in their
seed share these programs. What happens when is for train.py.
"""

import contextlib
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn
from jax import lax

import sparsejax
from experiments import data, models
from experiments.config import calling
from experiments.config import parts as build
from experiments.errors import UserError
from experiments.models import convolutions
from sparsejax import lottery
from sparsejax import masks as masks_lib
from sparsejax.linen import packed_layers

NEVER = np.iinfo(np.int32).max
# What `inspect` counts in a layer.
COUNTS = ("nnz", "new", "new_since_start", "explored")


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


class Scores(NamedTuple):
  """What evaluation adds up.

  Attributes:
    loss: float32: the sum of the examples' losses.
    correct: int32: right predictions.
    examples: int32: how many there were.
  """

  loss: jax.Array
  correct: jax.Array
  examples: jax.Array


class State(NamedTuple):
  """All that a run carries from step to step, and into checkpoints.

  Attributes:
    step: int32: the steps that have been taken.
    params: The model's parameters, zero where inactive.
    batch_stats: The running averages of BatchNorm; empty without.
    opt_state: The optimizer's state, with the masks.
    keys: uint32[2] by stream: the run's randomness, see `build.streams`.
    sums: Since the last log point.
    first_masks: The masks before the first step, packed to bits.
    seen_masks: The masks at the last evaluation, likewise.
    ever_masks: What was active at any time so far, likewise.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  keys: dict[str, jax.Array]
  sums: Sums
  first_masks: Any
  seen_masks: Any
  ever_masks: Any


class Batches(NamedTuple):
  """Examples in device memory, and which of them each step takes.

  Attributes:
    x: Inputs [n, ...].
    y: int32[n] labels.
    order: int32[steps, batch_size] indices into them; None if they are the
      batch of the one step.
    first: int32: the step that takes the first row of `order`.
  """

  x: jax.Array
  y: jax.Array
  order: jax.Array | None
  first: jax.Array

  def taken(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The batch of a step."""
    if self.order is None:
      return self.x, self.y
    rows = self.order[step - self.first]
    return self.x[rows], self.y[rows]


class Steps(NamedTuple):
  """Training steps of one kind; both programs donate the state.

  Attributes:
    one: `(State, Batches) -> State`.
    many: `(State, Batches, until, numbers=None) -> State`: steps up to
      `until`, which is traced: one program serves all lengths. The numbers are
      those of `build.NUMBERS`, by their keys, that are not the config's.
  """

  one: Callable[..., State]
  many: Callable[..., State]


class Programs(NamedTuple):
  """The jitted functions of one config.

  Attributes:
    draw: `(keys) -> variables` of the model. Models share it, whatever the
      algorithm.
    initial: `(keys, variables, Batches) -> masks` of the method that the
      config names, from the batches of the first steps.
    begin: `(keys, variables, masks=None) -> State`: with masks drawn by the
      algorithm, or with those given.
    rewind: `(State, params, batch_stats, masks, keys) -> State`: starts again
      at the step of a state, from these params and with these masks.
    ordinary: Steps on which masks stay.
    moving: Steps on which they move.
    evaluate: `(Scores, variables, x, y) -> Scores`: adds a batch of the test
      set; a label of -1 marks what only fills it up.
    inspect: `(State) -> (dict, seen_masks)`: where the zeros are now.
    pack: `(State) -> State`: from what checkpoints hold, and `begin` and
      `rewind` give, to what steps take; the same in masked mode.
    unpack: Back.
    trim: `(State) -> State`: leaves out slots that masks no longer use, which
      has steps compiled anew; where none are, the same state.
  """

  draw: Callable[..., Any]
  initial: Callable[..., Any]
  begin: Callable[..., State]
  rewind: Callable[..., State]
  ordinary: Steps
  moving: Steps
  evaluate: Callable[..., Scores]
  inspect: Callable[..., tuple[dict, Any]]
  pack: Callable[[State], State]
  unpack: Callable[[State], State]
  trim: Callable[[State], State]


def get(
  config: ml_collections.ConfigDict, *, products: bool = False
) -> Programs:
  """Returns the programs of a config, from memory if there are any.

  Args:
    config: A checked config. Only what is compiled in distinguishes programs:
      the seed does not.
    products: Whether to run convolutions as products of matrices; see
      `models.convolutions`.

  Returns:
    The programs.
  """
  compiled_in = {k: v for k, v in calling.plain(config).items() if k in _BAKED}
  return _make(json.dumps(compiled_in), products)


_BAKED = (
  *("steps", "augment", "label_smoothing", "data", "model"),
  *("optimizer", "schedule", "algorithm", "mode", "initial"),
)


def wrap(key: jax.Array) -> jax.Array:
  """Turns raw key data of `build.streams` into a key."""
  return jax.random.wrap_key_data(key, impl="threefry2x32")


def variables(state: State) -> dict[str, Any]:
  """What the model of a state is evaluated with."""
  return {
    "params": sparsejax.forward_params(state.params, state.opt_state),
    "batch_stats": state.batch_stats,
  }


def no_scores() -> Scores:
  """Scores of nothing."""
  return Scores(
    loss=jnp.zeros([]),
    correct=jnp.zeros([], jnp.int32),
    examples=jnp.zeros([], jnp.int32),
  )


def no_sums() -> Sums:
  """Sums of nothing."""
  return Sums(
    loss=jnp.zeros([]),
    correct=jnp.zeros([], jnp.int32),
    steps=jnp.zeros([], jnp.int32),
    bad=jnp.full([], NEVER, jnp.int32),
  )


@functools.lru_cache(maxsize=16)
def _make(text: str, products: bool) -> Programs:
  config = ml_collections.ConfigDict(json.loads(text))
  config.mode = config.get("mode", "masked")
  dataset, model = parts(config)
  masked_config = config.copy_and_resolve_references()
  masked_config.mode = "masked"

  def transformation(keys, masks=None, *, of=masked_config):
    return build.transformation(of, _key(keys, "masks"), masks)

  def apply(*args, **kwargs):
    with contextlib.ExitStack() as stack:
      stack.enter_context(nn.intercept_methods(packed_layers))
      if products:
        stack.enter_context(nn.intercept_methods(convolutions.as_products))
      return model.apply(*args, **kwargs)

  def begin(keys, variables, masks=None):
    params, opt_state = sparsejax.init(
      transformation(keys, masks), variables["params"]
    )
    zero = jnp.zeros([], jnp.int32)
    stats = variables.get("batch_stats", {})
    return _from(zero, params, stats, opt_state, keys)

  def rewind(state, params, batch_stats, masks, keys):
    params, opt_state = lottery.rewind(
      transformation(state.keys), params, state.opt_state, masks
    )
    return _from(state.step, params, batch_stats, opt_state, keys)

  def batch(keys, batches, step):
    x, y = batches.taken(step)
    x = dataset.prepare(x)
    if config.augment:
      key = jax.random.fold_in(_key(keys, "augment"), step)
      x = dataset.augment(key, x)
    return x, y

  def loss_fn(params, batch_stats, keys, step, x, y, temperature=1.0):
    variables = {"params": params, "batch_stats": batch_stats}
    dropout = jax.random.fold_in(_key(keys, "dropout"), step)
    logits, new = apply(
      variables, x, True, mutable=["batch_stats"], rngs={"dropout": dropout}
    )
    targets = jax.nn.one_hot(y, dataset.num_classes)
    targets = optax.smooth_labels(targets, config.label_smoothing)
    losses = optax.softmax_cross_entropy(logits / temperature, targets)
    correct = jnp.sum(logits.argmax(-1) == y, dtype=jnp.int32)
    return losses.mean(), (correct, new.get("batch_stats", {}))

  def initial(keys, variables, batches):
    stats = variables.get("batch_stats", {})

    def loss(params, step, temperature):
      x, y = batch(keys, batches, step)
      return loss_fn(params, stats, keys, step, x, y, temperature)[0]

    def outputs(params, x):
      return model.apply({"params": params, "batch_stats": stats}, x, False)

    return build.initial_masks(
      config,
      variables["params"],
      loss=loss,
      outputs=outputs,
      x=jax.ShapeDtypeStruct((1, *dataset.like.shape), jnp.float32),
      key=_key(keys, "masks"),
    )

  def step(state, batches, numbers=None, *, update_masks):
    x, y = batch(state.keys, batches, state.step)

    def loss_of(params):
      return loss_fn(params, state.batch_stats, state.keys, state.step, x, y)

    of = build.with_numbers(config, numbers) if numbers else config
    tx = transformation(state.keys, of=of)
    (loss, (correct, batch_stats)), grads = sparsejax.value_and_grad(
      loss_of, tx, has_aux=True
    )(state.params, state.opt_state, update_masks=update_masks)
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, update_masks=update_masks
    )
    sums = state.sums
    bad = jnp.where(jnp.isfinite(loss), NEVER, state.step)
    ever_masks = state.ever_masks
    if update_masks:
      packed = masks_lib.pack_bits(sparsejax.get_masks(opt_state))
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

  donating = functools.partial(jax.jit, donate_argnames="state")

  def steps(update_masks):
    one = functools.partial(step, update_masks=update_masks)

    def many(state, batches, until, numbers=None):
      return lax.while_loop(
        lambda s: s.step < until, lambda s: one(s, batches, numbers), state
      )

    return Steps(donating(one), donating(many))

  def evaluate(scores, variables, x, y):
    logits = apply(variables, dataset.prepare(x), False)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(y, 0)
    )
    right = jnp.sum(logits.argmax(-1) == y, dtype=jnp.int32)
    return Scores(
      loss=scores.loss + jnp.sum(losses, where=y >= 0),
      correct=scores.correct + right,
      examples=scores.examples + jnp.sum(y >= 0, dtype=jnp.int32),
    )

  def packing(change):
    """A change of params and optimizer state, where they are packed at all."""

    def function(state):
      if config.mode == "masked":
        return state
      tx = transformation(state.keys, of=config)
      try:
        params, opt_state = change(tx, state.params, state.opt_state)
      except ValueError as error:
        raise UserError(f"config.mode is {config.mode!r}: {error}") from error
      return state._replace(params=params, opt_state=opt_state)

    return function

  return Programs(
    draw=_draw(json.dumps([config.data.to_dict(), config.model.to_dict()])),
    initial=jax.jit(initial),
    begin=jax.jit(begin),
    rewind=jax.jit(rewind),
    ordinary=steps(update_masks=False),
    moving=steps(update_masks=True),
    evaluate=jax.jit(evaluate),
    inspect=jax.jit(_inspect),
    pack=packing(lambda tx, *state: tx.pack(*state)),
    unpack=packing(lambda tx, *state: tx.unpack(*state)),
    trim=packing(sparsejax.modes.trimmed),
  )


@functools.lru_cache(maxsize=4)
def _draw(text: str) -> Callable[..., Any]:
  dataset, model = _parts(*json.loads(text))

  def draw(keys):
    x = jnp.zeros((1, *dataset.like.shape), dataset.like.dtype)
    return model.init(_key(keys, "init"), dataset.prepare(x), False)

  return jax.jit(draw)


def parts(config: ml_collections.ConfigDict) -> tuple[data.Dataset, nn.Module]:
  """The data set and the model of a run's config."""
  return _parts(config.data.to_dict(), config.model.to_dict())


def _parts(data_options, model_options):
  dataset = build.dataset(data_options)
  model = models.create(num_classes=dataset.num_classes, **model_options)
  return dataset, model


def _from(step, params, batch_stats, opt_state, keys) -> State:
  """The state in which training starts, or starts again."""
  packed = masks_lib.pack_bits(sparsejax.get_masks(opt_state))
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


def _inspect(state: State) -> tuple[dict, Any]:
  """Counts, leaf by leaf, weights that are active, new, or ever were."""
  masks = sparsejax.get_masks(state.opt_state)
  packed = masks_lib.pack_bits(masks)
  seen = sparsejax.forward_params(state.params, state.opt_state)
  seen = sparsejax.packed.unpack(seen)
  stray = jax.tree.map(
    lambda m, p: jnp.sum((p != 0) & ~m, dtype=jnp.int32), masks, seen
  )
  leaves = zip(
    jax.tree_util.tree_leaves_with_path(masks),
    *map(jax.tree.leaves, (packed, state.seen_masks)),
    *map(jax.tree.leaves, (state.first_masks, state.ever_masks)),
    strict=True,
  )
  layers = {
    masks_lib.path_name(path): dict(
      zip(
        COUNTS, map(_bits, (now, now & ~seen, now & ~first, ever)), strict=True
      )
    )
    for (path, mask), now, seen, first, ever in leaves
    if mask.ndim
  }
  return {"layers": layers, "stray": sum(jax.tree.leaves(stray))}, packed


def _bits(x: jax.Array) -> jax.Array:
  return jnp.sum(lax.population_count(x), dtype=jnp.int32)


def _key(keys: dict[str, jax.Array], name: str) -> jax.Array:
  return wrap(keys[name])
