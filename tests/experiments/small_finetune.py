"""A config that fine-tunes by SEFT in seconds, and needs no file."""

import ml_collections

from experiments.config.defaults import fine_tuning_run
from experiments.runs import finetune

SIZES = {"dim": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 64}
TEXT = {
  "name": "text",
  "train": {"name": "python_help", "test": False},
  "test": {"name": "python_help", "test": True},
  "length": 16,
  "test_tokens": 129,
}
WANDA = {"name": "wanda", "sparsity": 0.5, "sequences": 2, "length": 16}
SEFT = {"name": "seft", "k": 12, "every": 2}
DELTAS = {"name": "delta_adamw"}


def make(**changes) -> ml_collections.ConfigDict:
  """Makes a config of six steps."""
  config = fine_tuning_run()
  config.steps = 6
  config.batch_size = 2
  config.model = {"name": "random", "seed": 0, **SIZES}
  config.task = TEXT
  config.prune = WANDA
  config.schedule = {"name": "constant", "learning_rate": 0.01}
  config.log_every = 2
  config.eval_every = 3
  config.checkpoint_every = 2
  config.tensorboard = False
  for key, value in changes.items():
    config[key] = value
  return config


def get_config() -> ml_collections.ConfigDict:
  """Makes a longer one, for processes to be killed in."""
  config = make(method=SEFT, optimizer=DELTAS, steps=100, eval_every=25)
  finetune.check_config(config)
  return config
