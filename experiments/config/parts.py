"""The parts of a run, from the names in its config: the tables of functions.

Keywords in a config are those of the functions; wrong ones raise a UserError.
Algorithms have a table of their own, in algorithms.py.
"""

import contextlib
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.nn import initializers

import sparsejax
from experiments import data, names
from experiments.config import algorithms, calling
from experiments.config.optimizers import OPTIMIZERS, SCHEDULES
from experiments.errors import UserError, check_known
from sparsejax import (
  distributions,
  initial,
  lottery,
  patterns,
  schedules,
  scores,
)
from sparsejax.keys import wrapped

# What may be traced, so that runs that differ in it share a program.
NUMBERS = ("schedule.learning_rate", "algorithm.fraction")
STREAMS = ("init", "masks", "data", "dropout", "augment")
DRAWN = "drawn"  # first masks as the algorithm draws them


def streams(seed: int) -> dict[str, jax.Array]:
  """Derives a key per use of randomness from the one seed.

  Args:
    seed: The config's.

  Returns:
    Raw key data uint32[2] by the name of the stream, folded in by a hash that
    is the same in every process; other streams leave these as they are.
  """
  root = jax.random.key(seed, impl="threefry2x32")

  def stream(name: str) -> jax.Array:
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return jax.random.key_data(jax.random.fold_in(root, number))

  return {name: stream(name) for name in STREAMS}


def folded(
  keys: Mapping[str, jax.Array], name: str, number: int
) -> dict[str, jax.Array]:
  """Folds a number into the key of one stream; the others stay."""
  other = jax.random.key_data(jax.random.fold_in(wrapped(keys[name]), number))
  return {**keys, name: other}


def dataset(options: Mapping[str, Any]) -> data.Dataset:
  """Loads a data set, once for all runs of a process."""
  return _load(json.dumps(options, sort_keys=True))


@functools.lru_cache(maxsize=2)
def _load(text: str) -> data.Dataset:
  return data.load(**json.loads(text))


def transformation(
  config: ml_collections.ConfigDict, key: jax.Array, masks: Any = None
) -> sparsejax.SparseTransformation:
  """Builds the sparse optimizer.

  Args:
    config: The run's config.
    key: The key of masks; may be traced, so that seeds share a program.
    masks: The masks to begin with; drawn by the algorithm if None.

  Returns:
    The gradient transformation; its `moves` says at which steps masks move.

  Raises:
    UserError: If a name, a keyword or a value is wrong.
  """
  rate = _schedule(config)
  inner = calling.call("optimizer", OPTIMIZERS, config.optimizer, rate)
  name = config.algorithm.name
  row = algorithms.find(name)
  drawn = {"key": key} if row.takes("key") else {}
  if masks is not None:
    drawn["masks"] = masks
  tx = calling.call(
    "algorithm",
    {name: row.function},
    {"name": name, **algorithm_functions(config)},
    inner,
    excluded=IN_CODE,
    **drawn,
  )
  try:
    return MODES[config.get("mode", "masked")](tx)
  except ValueError as error:
    raise UserError(
      f"config.mode is {config.mode!r} with algorithm {name}: {error}"
    ) from error


def with_numbers(
  config: ml_collections.ConfigDict, numbers: Mapping[str, jax.Array]
) -> ml_collections.ConfigDict:
  """Replaces numbers of a config by others, which may be traced.

  Args:
    config: The config.
    numbers: Float32 scalars by key of NUMBERS.

  Returns:
    The config, for `transformation` only: JSON cannot hold it.
  """
  one = config.copy_and_resolve_references()
  for key, number in numbers.items():
    part, name = key.split(".")
    with one[part].unlocked(), one[part].ignore_type():
      one[part][name] = number
  return one


def algorithm_functions(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns an algorithm's keywords, with functions in place of names."""
  name, options = calling.parted(config.algorithm)
  _replace_names(options)
  for key in ("prunable", "never_ablate"):
    if options.get(key) is not None:
      with _telling(key, options[key]):
        re.compile(options[key])
        options[key] = distributions.matching(options[key])
    else:  # a placeholder that nobody has filled in
      options.pop(key, None)
  if options.get("pattern") is not None:
    options["pattern"] = _pattern(options["pattern"])
  if "grown_values" in options:
    options["grown_values"] = calling.call(
      "initializer", GROWN, options["grown_values"]
    )
  if isinstance(options.get("restart"), (tuple, list)):
    options["restart"] = schedules.at(*options["restart"])
  for key in ("restart", "grown_moments", "fraction", "surplus"):
    if isinstance(options.get(key), str):
      known = RESTARTS if key == "restart" else {}
      options[key] = names.find(key, options[key], known)
  if "optimizer" in options:
    options["optimizer"] = _second_optimizer(
      name, options["optimizer"], _schedule(config)
    )
  return options


def _replace_names(options: dict[str, Any]) -> None:
  """Puts functions in place of the names of a distribution and of a score."""
  if "distribution" in options or "by_path" in options:
    options["distribution"] = _distribution(options)
  if "score" in options:
    options["score"] = calling.call("score", SCORES, {"name": options["score"]})


def _second_optimizer(
  name: str, config: Mapping[str, Any], rate: optax.Schedule
) -> optax.GradientTransformation:
  """Makes what trains an algorithm's own scalars, at a multiple of the rate."""
  kind = f"optimizer of {name}"
  if not isinstance(config, calling.MAPPINGS) or "name" not in config:
    raise UserError(f"the {kind} is {config!r}; wanted a mapping with a name")
  config = {"decay_vectors": True, **config}
  factor = config.pop("rate_factor", 1.0)
  return calling.call(
    kind, OPTIMIZERS, config, lambda step: factor * rate(step)
  )


def learning_rate(config: ml_collections.ConfigDict, step: int) -> float:
  """Returns the learning rate of a run at a step."""
  return float(_schedule(config)(step))


def _schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
  return calling.call(
    "schedule", SCHEDULES, config.schedule, steps=config.steps
  )


def initial_masks(
  config: ml_collections.ConfigDict,
  params: Any,
  *,
  loss: Callable[..., jax.Array],
  outputs: Callable[[Any, jax.Array], jax.Array],
  x: jax.ShapeDtypeStruct,
  key: jax.Array,
) -> Any:
  """Finds the masks that training starts with, by the method of `initial`.

  Args:
    config: The run's config. `initial` holds, besides a `name` of INITIAL and
      that function's keywords: `batches`, how many batches of training data
      to take (1); `temperature`, by which to divide logits (200 for GraSP, as
      its authors' code does, else 1); `shuffle`, whether to shuffle the masks
      within each layer; `reinit`, whether to train other weights than those
      that the masks were found for.
    params: The model's parameters.
    loss: `(params, step, temperature) -> loss` on the batch of that step.
    outputs: `(params, x) -> logits` of a model in evaluation mode.
    x: Shape and dtype of its inputs.
    key: PRNG key.

  Returns:
    The masks.

  Raises:
    UserError: If a name, a keyword or a value is wrong.
  """
  name, options = calling.parted(config.initial)
  options.pop("reinit", None)
  shuffled = options.pop("shuffle", False)
  batches = list(range(options.pop("batches", 1)))
  temperature = options.pop("temperature", 200.0 if name == "grasp" else 1.0)
  draw, rest = jax.random.split(key)
  fixed = {}
  if name == "random":
    fixed["key"] = draw
  loss = functools.partial(loss, temperature=temperature)
  if name == "synflow":
    loss, batches = outputs, [x]
  _replace_names(options)
  if "prunable" in config.algorithm:
    fixed["prunable"] = distributions.matching(config.algorithm.prunable)
  masks = calling.call(
    "initial",
    INITIAL,
    {"name": name, **options},
    loss,
    params,
    batches,
    config.algorithm.sparsity,
    **fixed,
  )
  return lottery.shuffle(masks, key=rest) if shuffled else masks


# How an algorithm runs; checkpoints are those of masked mode in all of them.

MODES = {
  "masked": lambda tx: tx,  # dense arrays with zeros in place
  "packed": sparsejax.modes.packed,
  "kernels": sparsejax.modes.kernels,
}

IN_CODE = {"masks"}  # a tree, which a config cannot name

# First values of newly grown weights, and when moments start from zero.
_INITIALIZERS = (
  *("normal", "truncated_normal", "uniform", "constant", "variance_scaling"),
  *("glorot_normal", "glorot_uniform", "he_normal", "he_uniform"),
  *("lecun_normal", "lecun_uniform", "orthogonal"),
)
GROWN = {
  "zeros": lambda: initializers.zeros,
  "ones": lambda: initializers.ones,
  **{name: getattr(initializers, name) for name in _INITIALIZERS},
}
RESTARTS = {"never": schedules.never, "always": schedules.always}

PATTERNS = {
  "unstructured": patterns.unstructured,
  "n_of_m": patterns.n_of_m,
  "transposable_n_of_m": patterns.transposable_n_of_m,
  "blocks": patterns.blocks,
  "fan_in": patterns.fan_in,
  "channels": patterns.channels,
  "heads": patterns.heads,
}

POOLS = {"mean": jnp.mean, "max": jnp.max}

# Masks before training: what `initial` may name, besides DRAWN.

INITIAL = {
  "random": initial.random,
  "magnitude": initial.magnitude,
  "snip": initial.snip,
  "grasp": initial.grasp,
  "synflow": initial.synflow,
  "force": initial.force,
}

SCORES = {
  "magnitude": scores.magnitude,
  "sensitivity": scores.sensitivity,
  "gradient": scores.gradient,
  "random": scores.random,
}


@contextlib.contextmanager
def _telling(key: str, value: Any) -> Iterator[None]:
  """Says which keyword of an algorithm is no name, rule or expression."""
  try:
    yield
  except (TypeError, ValueError, re.error) as error:
    raise UserError(f"algorithm.{key} is {value!r}: {error}") from error


def _distribution(options: dict[str, Any]) -> distributions.Distribution:
  """Takes a distribution out of options, and the rules of `by_path` with it.

  Rules are [regular expression, sparsity] pairs.
  """
  name = options.pop("distribution", "erdos_renyi_kernel")
  with _telling("distribution", name):
    rest = distributions.named(name)
  pairs = options.pop("by_path", ())
  with _telling("by_path", pairs):
    rules = {re.compile(rule).pattern: sparsity for rule, sparsity in pairs}
    return distributions.by_path(rules, rest=rest) if rules else rest


def _pattern(config: Any) -> patterns.Patterns:
  """Makes a pattern, from a name with keywords or from rules by path.

  Rules are [regular expression, pattern] pairs; "" holds for all the rest.
  """
  if isinstance(config, (str, *calling.MAPPINGS)):
    return _one_pattern(config)
  with _telling("pattern", config):
    return patterns.by_path(
      {re.compile(rule).pattern: _one_pattern(one) for rule, one in config}
    )


def _one_pattern(config: Mapping[str, Any] | str) -> patterns.Patterns:
  if isinstance(config, str):
    with _telling("pattern", config):
      return patterns.named(config)
  options = dict(config)
  if "pool" in options:
    check_known("pool", options["pool"], POOLS)
    options["pool"] = POOLS[options["pool"]]
  if "shape" in options:
    options["shape"] = tuple(options["shape"])
  return calling.call("pattern", PATTERNS, options)
