"""Fewer heads and hidden units: a language model made narrower, and repaired.

    python -m experiments.main --config=configs/shrink_llm.py --workdir=DIR

A quarter of the hidden units leave each layer of SmolLM2-135M-Instruct, and one
query head of each three that share keys and values: together a quarter of the
layers' weights. Which ones, the sum of Wanda's score over the weights that read
a unit says, of the magnitude, or a random draw. What is left is a smaller dense
model, a folder of Hugging Face's layout in DIR/pruned, which everything reads
that reads the whole one:

    python -m experiments.generate --model=DIR/pruned/wanda --prompt=...
    python -m experiments.export --model=DIR/pruned/wanda --to=FILE.safetensors

Then all weights of the one that Wanda's score left are trained on the State of
the Union addresses, by cross-entropy alone and with SquareHead from the dense
model. Repaired models are in DIR/runs/*/model. The table gives the perplexity
on the addresses from 2000 on, in windows of 256 tokens, and tokens a second, in
turns with the dense model.

Expected: activations tell more than magnitudes (Sun et al., arXiv:2306.11695;
An et al., arXiv:2312.11983, for structured pruning) and than chance; SquareHead
more than cross-entropy (Kurtic et al., arXiv:2310.06927). Magnitudes need not
be ahead of chance: results/README.md says why.

Argument: `bytes` for the byte-level model of configs/byte_llama.py; `smoke` for
a run of seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import recovery
from experiments.recipes import llm
from experiments.recipes.llm import BYTES, SMOKE

SCORES = ("random", "magnitude", "wanda")
LOSSES = {
  "ce": {"cross_entropy": 1.0},
  "ce + squarehead": {"cross_entropy": 1.0, "square_head": 1.0},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `bytes`, `smoke` or nothing.

  Returns:
    The config.
  """
  variant = args.parse(arg, variant=llm.VARIANTS).variant
  config = recovery.defaults()
  config.name = f"shrink_llm {variant}"
  config.seeds = (0,)
  config.base = llm.run(
    variant, steps=40, batch_size=4 if variant == BYTES else 1
  )
  config.base.save = True
  config.starts = {
    score: {
      "prune": {
        "name": "structured",
        "score": score,
        # Two heads of the smoke test's model: half of them, or none.
        "sparsity": 0.5 if variant == SMOKE else 0.25,
        "sequences": 4 if variant == SMOKE else 16,
        "length": config.base.task.length,
      }
    }
    for score in SCORES
  }
  config.bases = SCORES
  config.settings = {
    name: {
      **llm.setting({"name": "full"}, learning_rate=1e-4, warmup=5),
      "loss": loss,
      "teacher": {"name": "dense" if len(loss) > 1 else "none"},
    }
    for name, loss in LOSSES.items()
  }
  config.methods = ("none", *LOSSES)
  config.only = dict.fromkeys(LOSSES, ("wanda",))
  config.timing = {
    "tokens": 8 if variant == SMOKE else 64,
    "prompt": 8 if variant == SMOKE else 64,
    "rounds": 2 if variant == SMOKE else 7,
  }
  config.expected = (
    ("none, magnitude", "none, wanda"),
    ("none, random", "none, wanda"),
    ("ce", "ce + squarehead"),
  )
  return config
