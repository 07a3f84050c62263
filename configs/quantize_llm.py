"""INT8 and sparsity of language models: rounding, and training with it.

    python -m experiments.main --config=configs/quantize_llm.py --workdir=DIR

SparseGPT prunes SmolLM2-135M-Instruct, or any LLaMA-type model, to 50 and 75 %;
what it keeps is left in floats, or rounded to INT8 with one scale an output: to
the nearest integer; by GPTQ, where later weights make up for it; or jointly,
while it prunes.

    python -m experiments.main --config=configs/quantize_llm.py:trained \
      --workdir=DIR

repairs the pruned models by SquareHead, as configs/squarehead_llm.py does, and
rounds them afterwards, or trains with rounding in the forward pass.

Expected: a perplexity that rounding changes by less than pruning does by far.
Kurtic et al., arXiv:2310.06927, report MPT-7B on GSM8K, repaired and then
quantized to INT8, weights and activations: dense 28.2 %, with INT8 27.8 %; 60 %
sparse 28.8 %, with INT8 28.35 % (model cards of neuralmagic/mpt-7b-gsm8k-*).

Argument: `bytes` for the byte-level model of configs/byte_llama.py, with three
seeds; `trained`, see above; `smoke` for a random model, in seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import prune_llm, recovery
from experiments.recipes import llm
from experiments.recipes.llm import BYTES, SMOKE, SMOLLM2

SPARSITIES = (0.5, 0.75)
ROUNDINGS = {
  "float32": {},
  "int8, nearest": {"int8": "nearest"},
  "int8, gptq": {"int8": "gptq"},
  "int8, joint": {"int8": "joint"},
}
TRAINED = {
  "squarehead": "none",
  "squarehead, int8 after": "after",
  "squarehead, int8 trained": "trained",
}
# As in configs/squarehead_llm.py.
LEARNING_RATES = {SMOLLM2: 3e-4, BYTES: 1e-4, SMOKE: 3e-4}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `bytes` or `smoke` or neither, and `trained` or not.

  Returns:
    The config.
  """
  words = args.parse(arg, variant=llm.VARIANTS, how=("rounded", "trained"))
  if words.how == "trained":
    return _trained(words.variant)
  variant = words.variant
  config = prune_llm.defaults()
  config.name = f"quantize_llm {variant}"
  config.model = llm.model(variant)
  config.task = llm.text(variant)
  sequences = 4 if variant == SMOKE else 32
  config.calibration = {"sequences": sequences, "length": config.task.length}
  config.pruners = {
    name: {"name": "sparsegpt", **options}
    for name, options in ROUNDINGS.items()
  }
  config.methods = tuple(ROUNDINGS)
  config.sparsities = SPARSITIES[:1] if variant == SMOKE else SPARSITIES
  if variant == BYTES:
    config.seeds = (0, 1, 2)
  return config


def _trained(variant: str) -> ml_collections.ConfigDict:
  config = recovery.defaults()
  config.name = f"quantize_llm {variant} trained"
  config.base = llm.run(
    variant, steps=100, batch_size=4 if variant == BYTES else 1
  )
  config.starts = llm.starts(
    ("sparsegpt",),
    SPARSITIES[:1] if variant == SMOKE else SPARSITIES,
    sequences=4 if variant == SMOKE else 32,
    length=config.base.task.length,
  )
  config.bases = tuple(config.starts)
  rate = LEARNING_RATES[variant]
  config.settings = {
    name: {
      **llm.setting({"name": "fixed"}, learning_rate=rate, warmup=5),
      "loss": {"cross_entropy": 1.0, "square_head": 1.0},
      "teacher": {"name": "dense"},
      "int8": int8,
    }
    for name, int8 in TRAINED.items()
  }
  config.methods = ("none", *TRAINED)
  return config
