"""Models, texts and grids that config files of language models share.

Three variants: the pretrained SmolLM2; a byte-level model that is trained here,
for full grids; and `smoke`, whose model and text need no file. Learning rates,
steps and methods stand in the config files.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections

from experiments.drivers import finetune

SMOLLM2, BYTES, SMOKE = "smollm2", "bytes", "smoke"
VARIANTS = (SMOLLM2, BYTES, SMOKE)


def model(variant: str) -> dict[str, Any]:
  """Makes a config's `model`.

  Args:
    variant: One of VARIANTS.

  Returns:
    The mapping.
  """
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
  """Makes a config's `task`: the State of the Union addresses.

  The smoke test takes Python's own help texts instead.

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


def run(
  variant: str, *, steps: int, batch_size: int
) -> ml_collections.ConfigDict:
  """Makes the config of a fine-tuning run, without a method.

  Args:
    variant: One of VARIANTS.
    steps: Training steps; 6 in a smoke test.
    batch_size: Windows of text in each; 2 in a smoke test.

  Returns:
    The config.
  """
  smoke = variant == SMOKE
  config = finetune.defaults()
  config.name = variant
  config.steps = 6 if smoke else steps
  config.batch_size = 2 if smoke else batch_size
  config.model = model(variant)
  config.task = text(variant)
  config.log_every = 3 if smoke else 10
  config.eval_every = 0
  config.checkpoint_every = {SMOLLM2: 50, BYTES: 0, SMOKE: 3}[variant]
  config.tensorboard = False
  config.save = False
  return config


def starts(
  pruners: Sequence[str],
  sparsities: Sequence[float],
  *,
  sequences: int,
  length: int,
) -> dict[str, dict[str, Any]]:
  """Makes `starts` of a recovery config: each pruner at each sparsity.

  Args:
    pruners: Methods of one-shot pruning.
    sparsities: Shares of zeros.
    sequences: Number of calibration windows.
    length: Tokens of each window.

  Returns:
    The mapping, with names such as "wanda 60 %".
  """
  return {
    f"{name} {100 * sparsity:g} %": {
      "prune": {
        "name": name,
        "sparsity": sparsity,
        "sequences": sequences,
        "length": length,
      }
    }
    for name in pruners
    for sparsity in sparsities
  }


def setting(
  method: dict[str, Any], *, learning_rate: float, warmup: int
) -> dict[str, Any]:
  """Makes one of the `settings` of a recovery config: AdamW without decay.

  Args:
    method: The method's name and keywords.
    learning_rate: Its peak, from which it falls linearly to 0.
    warmup: Steps in which it rises from 0.

  Returns:
    The mapping.
  """
  deltas = method["name"] in ("spiel", "seft")
  optimizer = "delta_adamw" if deltas else "adamw"
  return {
    "method": method,
    "optimizer": {"name": optimizer, "weight_decay": 0.0},
    "schedule": {
      "name": "linear",
      "learning_rate": learning_rate,
      "warmup": warmup,
    },
  }
