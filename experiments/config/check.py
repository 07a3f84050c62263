"""Checks of configs before any work: keys, types, ranges, names."""

import functools
from collections.abc import Collection
from typing import Any

import jax
import ml_collections
from absl import logging

from experiments import names
from experiments.config import algorithms, calling, defaults, parts
from experiments.errors import UserError, check_known, unknown


def training_run(config: ml_collections.ConfigDict) -> None:
  """Checks the config of a training run: keys, types, ranges and names.

  Warns, once in a process, of an algorithm without a cost model.

  Args:
    config: The config.

  Raises:
    UserError: If a key is unknown, missing, or of the wrong type or size, or
      a name or keyword of the optimizer, schedule or algorithm is wrong.
  """
  keys(
    config,
    defaults.training_run(),
    may_be_zero=("seed", "checkpoint_every"),
    where="experiments/config/defaults.py",
  )
  if not 0 <= config.label_smoothing < 1:
    raise UserError(
      f"config.label_smoothing is {config.label_smoothing}; wanted a share in "
      "[0, 1)"
    )
  for step in config.keep_steps:
    if not isinstance(step, int) or not 0 <= step <= config.steps:
      raise UserError(
        f"config.keep_steps has {step!r}; wanted steps of the run, 0 to "
        f"{config.steps}"
      )
  check_known("mode", config.mode, parts.MODES)
  parts.transformation(config, jax.random.key(0))
  _warn_without_cost_model(config.algorithm.name)
  _check_initial(config)


# Cached, or every run of a grid would warn.
@functools.cache
def _warn_without_cost_model(algorithm: str) -> None:
  if algorithms.find(algorithm).cost is None:
    logging.warning(
      "algorithm %s has no cost model: tables and reports will estimate its "
      'training FLOPs by density, marked "~". An Algorithm of '
      "experiments.config.algorithms can bring one.",
      algorithm,
    )


def _check_initial(config: ml_collections.ConfigDict) -> None:
  """Checks the names in `initial`; its numbers when masks are made."""
  name, options = calling.parted(config.initial)
  if name != parts.DRAWN and name not in parts.INITIAL:
    raise unknown("initial", name, {parts.DRAWN, *parts.INITIAL})
  known = set()
  if name != parts.DRAWN:
    known = {"batches", "temperature", "shuffle", "reinit", "by_path"}
    known |= names.keywords(parts.INITIAL[name], after=4)[0]
    known -= {"key", "prunable"}
    if algorithms.find(config.algorithm.name).chooses_first_masks:
      raise UserError(
        f"config.initial is {name}, but algorithm {config.algorithm.name} "
        f"chooses its first masks by itself; wanted initial {parts.DRAWN}"
      )
  names.check_options(f"initial {name}", options, known)
  if options.get("score", "sensitivity") not in parts.SCORES:
    raise unknown("score", options["score"], parts.SCORES)


def keys(
  config: ml_collections.ConfigDict,
  wanted: ml_collections.ConfigDict,
  *,
  may_be_zero: Collection[str] = ("seed",),
  where: str = "",
) -> None:
  """Checks a config's keys, and the types and signs of its values.

  Args:
    config: The config.
    wanted: Its defaults.
    may_be_zero: The integers that need not be positive.
    where: The module that makes the defaults, for the error.

  Raises:
    UserError: If a key is unknown or missing, a value of the wrong type, or an
      integer too small.
  """
  for key in config:
    check_known("key of a config", key, wanted.keys())
  for key, default in wanted.items():
    if key not in config:
      raise UserError(f"the config lacks {key}; see {where}")
    _check_value(key, config[key], default, 0 if key in may_be_zero else 1)


def _check_value(key: str, value: Any, default: Any, least: int) -> None:
  if isinstance(default, ml_collections.ConfigDict):
    named = "name" in default
    fits = isinstance(value, ml_collections.ConfigDict)
    if not fits or (named and "name" not in value):
      wanted = "a mapping with a name" if named else "a mapping"
      raise UserError(f"config.{key} is {value!r}; wanted {wanted}")
    return
  if isinstance(default, tuple):
    value = tuple(value) if isinstance(value, list) else value
  fits = type(value) is type(default)
  if not fits and not (isinstance(default, float) and type(value) is int):
    raise UserError(
      f"config.{key} is {value!r}, a {type(value).__name__}; wanted a "
      f"{type(default).__name__} such as {default!r}"
    )
  if type(default) is int and value < least:
    raise UserError(f"config.{key} is {value}; wanted at least {least}")
