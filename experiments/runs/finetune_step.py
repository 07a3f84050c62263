"""A fine-tuning step of a language model: transformation, losses, program.

The loss is any mix of cross-entropy, KL divergence and SquareHead; what is
trained, and how it becomes a model, is for `sparsejax.finetune`.
"""

import functools
import json
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

import sparsejax
from experiments import names
from experiments.config import calling, optimizers, parts
from experiments.errors import UserError, unknown
from experiments.llm.families import protocol, registry
from experiments.llm.families.protocol import Config, Network
from experiments.llm.prune import kernels
from experiments.llm.text.examples import Examples
from experiments.runs import devices
from experiments.runs.step import NEVER
from sparsejax import distill, finetune, quantize
from sparsejax.keys import wrapped
from sparsejax.masks import path_name

NONE = "none"  # a part of the config that is not there
LOSSES = ("cross_entropy", "kl", "square_head")
INT8 = (NONE, "after", "trained")

METHODS = {
  "full": finetune.full,
  "fixed": finetune.fixed,
  "spiel": finetune.spiel,
  "seft": finetune.seft,
  "lora": finetune.lora,
  "masked_lora": finetune.masked_lora,
  "spp": finetune.spp,
  "spiel_sm3": finetune.spiel_sm3,
}
_OWN_OPTIMIZER = {"spiel_sm3"}  # what takes a learning rate in place of one
OPTIMIZERS = {**optimizers.OPTIMIZERS, "delta_adamw": finetune.adamw}
SENSITIVITIES = {
  "saliency": finetune.saliency,
  "magnitude": finetune.magnitude,
}


class Sums(NamedTuple):
  """What training adds up from one log point to the next.

  Attributes:
    losses: float32 by name: the sums of the batches' losses, and `loss` of all.
    steps: int32: batches.
    bad: int32: the first step whose loss was not finite, or the largest int.
  """

  losses: dict[str, jax.Array]
  steps: jax.Array
  bad: jax.Array


class State(NamedTuple):
  """All that a run carries from step to step, and into checkpoints.

  Attributes:
    step: int32: the steps that have been taken.
    values: What is trained.
    tuned: The state of the fine-tuning transformation, the base in it.
    sums: Since the last log point.
  """

  step: jax.Array
  values: Any
  tuned: finetune.FineTuneState
  sums: Sums


class Program(NamedTuple):
  """The compiled functions of a run.

  Attributes:
    step: `(state, batch, teacher's params or None, update_masks) -> state`.
    merged: `(values, tuned) -> params`, rounded if that is wanted.
    moves: `step -> update_masks`, False on most steps.
  """

  step: Callable[[State, Examples, Any, Hashable], State]
  merged: Callable[[Any, finetune.FineTuneState], Any]
  moves: Callable[[int], Hashable]


def transformation(
  config: ml_collections.ConfigDict, key: jax.Array
) -> finetune.FineTuning:
  """Builds the fine-tuning transformation.

  Args:
    config: The run's config.
    key: Of its draws.

  Returns:
    The transformation.

  Raises:
    UserError: If a name, a keyword or a value is wrong.
  """
  rate = calling.call(
    "schedule", optimizers.SCHEDULES, config.schedule, steps=config.steps
  )
  name, options = calling.parted(config.method)
  if name not in METHODS:
    raise unknown("method", name, METHODS)
  inner = _optimizer(config, rate)
  known, _ = names.keywords(METHODS[name], after=1)
  if "rank" in options and "rank" not in known and "k" in known:
    options["k"] = finetune.as_many_as_lora(options.pop("rank"))
  if "sensitivity" in options:
    given = options["sensitivity"]
    if given not in SENSITIVITIES:
      raise unknown("sensitivity", given, SENSITIVITIES)
    options["sensitivity"] = SENSITIVITIES[given]
  fixed = {"key": key}
  if "prunable" in known:
    fixed["prunable"] = kernels.prunable
  if "t_end" in known:
    options.setdefault("t_end", config.steps)
  method = {"name": name, **options}
  return calling.call("method", METHODS, method, inner, **fixed)


def _optimizer(
  config: ml_collections.ConfigDict, rate: optax.Schedule
) -> optax.GradientTransformation | optax.Schedule:
  """Makes the optimizer; methods that have their own take the schedule."""
  own = config.method.name in _OWN_OPTIMIZER
  if own != (config.optimizer.name == NONE):
    raise UserError(
      f"config.optimizer is {config.optimizer.name!r}; wanted "
      + (f"{NONE!r}: {config.method.name} has its own" if own else "one")
    )
  if own:
    return rate
  return calling.call("optimizer", OPTIMIZERS, config.optimizer, rate)


def keeps_zeros(config: ml_collections.ConfigDict) -> bool:
  """Returns whether a method must not add non-zeros to the base's."""
  name, options = calling.parted(config.method)
  if name in ("spiel", "spiel_sm3"):
    return not options.get("on_zeros", True)
  return name in ("fixed", "seft", "masked_lora", "spp")


def moves_zeros(config: ml_collections.ConfigDict) -> bool:
  """Returns whether zeros may become weights, and weights zeros."""
  name, options = calling.parted(config.method)
  return name == "seft" and options.get("revive", True)


def weights_of(loss: Mapping[str, float]) -> dict[str, float]:
  """Returns the weights of losses that are not 0, by name."""
  for name in loss:
    if name not in (*LOSSES, "temperature"):
      raise unknown("loss", name, (*LOSSES, "temperature"))
  weights = {name: float(loss.get(name, 0)) for name in LOSSES}
  if min(weights.values()) < 0 or not any(weights.values()):
    raise UserError(
      f"config.loss is {dict(loss)}; wanted weights that are not negative, one "
      "of them positive"
    )
  return {name: weight for name, weight in weights.items() if weight}


def needs_teacher(loss: Mapping[str, float]) -> bool:
  """Returns whether a loss compares with a teacher."""
  return bool(weights_of(loss).keys() - {"cross_entropy"})


def get(
  config: ml_collections.ConfigDict,
  model: Config,
  teacher: Config | None = None,
) -> Program:
  """Returns a run's program; runs that differ in their seed share it.

  Args:
    config: The run's config.
    model: The config of the model that is trained.
    teacher: That of the teacher, if it is not the same.
  """
  compiled_in = ("steps", "method", "optimizer", "schedule", "loss")
  compiled_in += ("remat", "dtype", "int8")
  plain = {k: v for k, v in calling.plain(config).items() if k in compiled_in}
  return _get(json.dumps(plain, sort_keys=True), model, teacher or model)


@functools.lru_cache(maxsize=32)
def _get(text: str, model: Config, teacher: Config) -> Program:
  config = ml_collections.ConfigDict(json.loads(text))
  # The key of draws is in the state; this one is of no use.
  tx = transformation(config, jax.random.key(0))
  network = functools.partial(
    registry.network, remat=config.remat, dtype=jnp.dtype(config.dtype)
  )
  losses = _losses(config.loss, network(model), network(teacher))
  fixed = protocol.fixed(registry.of(model))

  def loss(
    params: Any, batch: Examples, teacher: Any
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    if config.int8 == "trained":
      params = quantize.fake_quantize(params, prunable=kernels.prunable)
    parts = losses(params, batch, teacher)
    return parts["loss"], parts

  value_and_grad = sparsejax.value_and_grad(loss, tx, has_aux=True)

  @functools.partial(devices.jit, static_argnums=3, donate_argnums=0)
  def step(
    state: State, batch: Examples, teacher: Any, update_masks: Hashable
  ) -> State:
    (_, parts), grads = value_and_grad(
      state.values, state.tuned, batch, teacher, update_masks=update_masks
    )
    updates, tuned = tx.update(
      grads, state.tuned, state.values, update_masks=update_masks
    )
    bad = ~jnp.isfinite(parts["loss"])
    sums = Sums(
      jax.tree.map(jnp.add, state.sums.losses, parts),
      state.sums.steps + 1,
      jnp.minimum(state.sums.bad, jnp.where(bad, state.step + 1, NEVER)),
    )
    values = optax.apply_updates(state.values, updates)
    values = _restored(values, state.values, fixed)
    return devices.spread(State(state.step + 1, values, tuned, sums))

  def merged(values: Any, tuned: finetune.FineTuneState) -> Any:
    params = finetune.merge(values, tuned)
    if config.int8 == NONE:
      return params
    return quantize.fake_quantize(params, prunable=kernels.prunable)

  return Program(step, jax.jit(merged), tx.moves)


def _restored(values: Any, before: Any, fixed: Collection[str]) -> Any:
  """Takes back what an optimizer has done to fixed parameters, by decay."""
  if not fixed:
    return values
  return jax.tree_util.tree_map_with_path(
    lambda path, new, old: old if path_name(path) in fixed else new,
    values,
    before,
  )


def _losses(
  config: Mapping[str, float], llm: Network, guide: Network
) -> Callable[[Any, Examples, Any], dict[str, jax.Array]]:
  """Makes `(params, batch, teacher) -> losses` by name, `loss` of all.

  `guide` is the teacher's network.
  """
  weights = weights_of(config)
  temperature = float(config.get("temperature", 1))
  with_hidden = "square_head" in weights

  def run(llm: Network, params: Any, batch: Examples) -> tuple[jax.Array, Any]:
    variables = {"params": params}
    if with_hidden:
      return llm.apply(variables, **batch.inputs, method="with_hidden")
    return llm.apply(variables, **batch.inputs), None

  def losses(
    params: Any, batch: Examples, teacher: Any
  ) -> dict[str, jax.Array]:
    logits, hidden = run(llm, params, batch)
    logits, where = logits[:, :-1], batch.targets[:, 1:]
    parts = {}
    if "cross_entropy" in weights:
      parts["cross_entropy"] = distill.cross_entropy(
        logits, batch.tokens[:, 1:], where
      )
    if needs_teacher(config):
      wanted, features = jax.lax.stop_gradient(run(guide, teacher, batch))
    if "kl" in weights:
      # Where targets are predicted, as in cross-entropy. SquareHead's released
      # code takes the targets' own positions, one later; see BUILD_NOTES.md.
      parts["kl"] = distill.kl_divergence(
        logits, wanted[:, :-1], where, temperature=temperature
      )
    if with_hidden:
      parts["square_head"] = _square_head(hidden, features, batch)
    total = sum(weights[name] * part for name, part in parts.items())
    return {**parts, "loss": total}

  return losses


def _square_head(hidden: Any, features: Any, batch: Examples) -> jax.Array:
  """Computes SquareHead of all blocks, of an encoder and of a decoder."""
  if batch.source is None:
    return distill.square_head(hidden[1:], features[1:], batch.real)
  every = jnp.array(True)
  read = every if batch.source_real is None else batch.source_real
  parts = [
    distill.square_head(student[1:], teacher[1:], where)
    for student, teacher, where in zip(
      hidden, features, (read, batch.real), strict=True
    )
  ]
  return sum(parts)


def no_sums(config: ml_collections.ConfigDict) -> Sums:
  """Makes the sums of no batches."""
  names = (*weights_of(config.loss), "loss")
  return Sums(
    {name: jnp.zeros([]) for name in names},
    jnp.zeros([], jnp.int32),
    jnp.full([], NEVER, jnp.int32),
  )


def begin(config: ml_collections.ConfigDict, params: Any) -> State:
  """Makes the state before the first step.

  Args:
    config: The run's config.
    params: The pretrained parameters, pruned if that is wanted.

  Returns:
    The state, of arrays of its own.

  Raises:
    UserError: If these parameters cannot be fine-tuned so.
  """
  keys = parts.streams(config.seed)
  key = wrapped(keys["masks"])
  try:
    # Leaf by leaf: no device has to hold the whole model, not even at first.
    params = jax.tree.map(lambda x: devices.spread(jnp.array(x)), params)
    values, tuned = transformation(config, key).start(params)
  except ValueError as error:
    raise UserError(
      f"method {config.method.name} on {config.model.name}: {error}. "
      "config.prune says how to prune first."
    ) from error
  state = State(jnp.zeros([], jnp.int32), values, tuned, no_sums(config))
  return devices.spread(state)
