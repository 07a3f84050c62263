"""A byte-level LLaMA of 4.9 M weights, trained on State of the Union addresses.

    python -m experiments.main --config=configs/byte_llama.py \
      --workdir=runs/byte_llama

A model that trains in minutes on two cores, so that every cell of the tables of
language models can be run with several seeds. `prune_llm.py:bytes` and the like
start from it. It is trained on the addresses before 2000 and tested on those
from 2000 on, in windows of 256 bytes. No numbers are published for it.

Argument: `smoke` trains a smaller model on Python's own help texts, in seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import finetune
from experiments.recipes import llm


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg, variant=llm.VARIANTS).smoke
  config = finetune.defaults()
  config.name = "byte_llama"
  config.steps = 8 if smoke else 700
  config.batch_size = 4 if smoke else 16
  config.model = {
    "name": "random",
    "seed": 0,
    "dim": 16 if smoke else 256,
    "layers": 2 if smoke else 6,
    "heads": 2 if smoke else 4,
    "hidden": 32 if smoke else 704,
    "context": 64 if smoke else 512,
  }
  config.task = llm.text("smoke" if smoke else "bytes")
  config.method = {"name": "full"}
  config.optimizer = {
    "name": "adamw",
    "b2": 0.95,
    "weight_decay": 0.1,
    "clip": 1.0,
  }
  config.schedule = {
    "name": "cosine",
    "learning_rate": 3e-3,
    "warmup": 2 if smoke else 50,
    "end": 1e-4,
  }
  config.log_every = 4 if smoke else 20
  config.eval_every = 4 if smoke else 350
  config.checkpoint_every = 4 if smoke else 200
  return config
