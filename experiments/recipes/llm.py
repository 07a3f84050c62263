"""What the config files of language models share: models and texts.

Three variants: the pretrained SmolLM2; a byte-level model that is trained here,
for full grids; and `smoke`, whose model and text need no file.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections

from experiments.drivers import finetune
from experiments.errors import unknown

SMOLLM2, BYTES, SMOKE = "smollm2", "bytes", "smoke"
VARIANTS = (SMOLLM2, BYTES, SMOKE)


def parse(arg: str, *, others: Sequence[str] = ()) -> str:
  """The variant that a config's argument names, SmolLM2 if none.

  Args:
    arg: The argument.
    others: What the config knows besides, for the error.

  Returns:
    One of VARIANTS.

  Raises:
    UserError: If it is none of them.
  """
  if arg and arg not in VARIANTS:
    raise unknown("argument of the config", arg, (*VARIANTS, *others))
  return arg or SMOLLM2


def model(variant: str) -> dict[str, Any]:
  """The part `model` of a config."""
  if variant == SMOLLM2:
    return {"name": "smollm2"}
  if variant == BYTES:
    return {"name": "huggingface", "path": "runs/byte_llama/model"}
  return {
    "name": "random",
    "seed": 0,
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "hidden": 32,
    "context": 64,
  }


def text(variant: str) -> dict[str, Any]:
  """The part `task` of a config: the State of the Union addresses.

  Args:
    variant: One of VARIANTS.

  Returns:
    The mapping.
  """
  if variant == SMOKE:
    return {
      "name": "text",
      "train": {"name": "python_help", "test": False},
      "test": {"name": "python_help", "test": True},
      "length": 32,
      "test_tokens": 1025,
    }
  folder = ml_collections.FieldReference("data/sotu/package/data")
  union = {"name": "state_of_the_union", "data_dir": folder}
  return {
    "name": "text",
    "train": {**union, "years": (1790, 2000)},
    "test": {**union, "years": (2000, 2022)},
    "length": 256,
    "test_tokens": 16_385,
  }


def run(variant: str) -> ml_collections.ConfigDict:
  """The config of a run of finetune.py, without a method.

  Args:
    variant: One of VARIANTS.

  Returns:
    The config.
  """
  config = finetune.defaults()
  config.name = variant
  config.steps = {SMOLLM2: 100, BYTES: 100, SMOKE: 6}[variant]
  config.batch_size = {SMOLLM2: 1, BYTES: 4, SMOKE: 2}[variant]
  config.model = model(variant)
  config.task = text(variant)
  config.log_every = {SMOLLM2: 10, BYTES: 10, SMOKE: 3}[variant]
  config.eval_every = 0
  config.checkpoint_every = {SMOLLM2: 50, BYTES: 0, SMOKE: 3}[variant]
  config.tensorboard = False
  config.save = False
  return config


def starts(
  variant: str, pruners: Sequence[str], sparsities: Sequence[float]
) -> dict[str, dict[str, Any]]:
  """The part `starts` of a config of recovery.py.

  Args:
    variant: One of VARIANTS.
    pruners: Methods of one-shot pruning.
    sparsities: At each of which each of them prunes.

  Returns:
    The mapping, its names as in "wanda 60 %".
  """
  length = text(variant)["length"]
  calibration = {"sequences": 4 if variant == SMOKE else 32, "length": length}
  return {
    f"{name} {100 * sparsity:g} %": {
      "prune": {"name": name, "sparsity": sparsity, **calibration}
    }
    for name in pruners
    for sparsity in sparsities
  }


def method(options: dict[str, Any], *, rate: float) -> dict[str, Any]:
  """A part of `settings` of a config of recovery.py.

  Args:
    options: The method's name and keywords.
    rate: The learning rate, which falls linearly after a short warm-up.

  Returns:
    The mapping.
  """
  deltas = options["name"] in ("spiel", "seft")
  return {
    "method": options,
    "optimizer": {
      "name": "delta_adamw" if deltas else "adamw",
      "weight_decay": 0.0,
    },
    "schedule": {"name": "linear", "learning_rate": rate, "warmup": 5},
  }
