"""Fewer heads and hidden units in any language model: an exported function.

    python -m experiments.main --config=configs/shrink_function.py --workdir=DIR

A quarter, and half, of the heads and hidden units leave each layer of
SmolLM2-135M-Instruct. Layers lose others, and as many as it takes for their own
groups, so that no config describes what is left: it is exported as a function,
in DIR/functions. The table has its parameters, FLOPs, time and perplexity on
the State of the Union addresses from 2000 on, in windows of 256 tokens. Nothing
is trained afterwards; configs/shrink_llm.py repairs models that keep a config.

    python -m experiments.generate --model=DIR/functions/25.safetensors \
      --prompt=...

Other families, here an MPT, and the T5 of configs/t5_sotu.py:

    python -m experiments.main --config=configs/shrink_function.py \
      --config.model.name=huggingface --config.model.path=FOLDER --workdir=DIR
    python -m experiments.main --config=configs/shrink_function.py \
      --config.model.name=huggingface --config.batch_size=8 \
      --config.model.path=runs/t5_sotu/dense/model --config.task.length=128 \
      --config.task.name=span_corruption --workdir=DIR

Expected: perplexity as of the models of configs/shrink_llm.py before repair.

Argument: `smoke` for a run of seconds, of an untrained MPT.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import shrink_llm
from experiments.recipes import llm
from experiments.recipes.llm import SMOKE, SMOLLM2


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` or nothing.

  Returns:
    The config.
  """
  variant = args.parse(arg, variant=(SMOLLM2, SMOKE)).variant
  config = shrink_llm.defaults()
  with config.unlocked():
    config.name = f"shrink_function {variant}"
    config.model = llm.model(variant)
    config.task = llm.text(variant)
    config.sparsities = (0.25, 0.5)
    if variant == SMOKE:
      config.model.family = "mpt"
      config.task.test_tokens = 129
      config.calibration = {"sequences": 4, "length": 32}
      config.sparsities = (0.5,)
      config.rounds = 2
  return config
