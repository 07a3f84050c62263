"""A T5 trained from scratch, pruned and repaired: CE, KL, SquareHead.

    python -m experiments.main --config=configs/t5_sotu.py \
      --workdir=runs/t5_sotu

Kurtic et al., arXiv:2310.06927, repair sparse T5 models of translation by
SquareHead on the hidden states of encoder and decoder. Here a byte-level T5 of
0.2 M weights learns T5's own task on the State of the Union addresses of 1950
to 1999: 15 % of the bytes are left out, in spans of 3 on average, and written
down (Raffel et al., arXiv 1910.10683, section 3.1.4). It is tested on those
from 2000 on, on windows of 128 bytes. SparseGPT prunes it to 50 and 75 %,
encoder first, and all non-zeros are trained, for the same steps and at the same
rate with each loss; the teacher is the dense model.

    python -m experiments.main --config=configs/t5_sotu.py:pairs \
      --config.base.model.path=FOLDER \
      --config.base.task.train_path=FILE.jsonl \
      --config.base.task.test_path=FILE.jsonl --workdir=DIR

does the same to a T5 from a Hugging Face folder, tuned first, on pairs of
texts, {"source": ..., "target": ...} a line.

Expected: they report English to German, BLEU: dense 25.91, 75 % 24.67 (as
others quote them); and that cross-entropy alone, or with KL, falls behind
SquareHead at high sparsity. No numbers are published for this model.

Argument: `pairs`, see above; `smoke` for a run of seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import recovery
from experiments.recipes import llm
from experiments.recipes.llm import SMOKE

SOTU, PAIRS = "sotu", "pairs"
LOSSES = {
  "ce": {"cross_entropy": 1.0},
  "ce + kl": {"cross_entropy": 1.0, "kl": 1.0},
  "ce + squarehead": {"cross_entropy": 1.0, "square_head": 1.0},
}
SPARSITIES = (0.5, 0.75)
LEARNING_RATE = 5e-4


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `pairs`, `smoke` or nothing.

  Returns:
    The config.
  """
  variant = args.parse(arg, variant=(SOTU, PAIRS, SMOKE)).variant
  smoke, pairs = variant == SMOKE, variant == PAIRS
  config = recovery.defaults()
  config.name = "t5_sotu" if variant == SOTU else f"t5_sotu {variant}"
  base = config.base
  base.steps = 6 if smoke else 40
  base.batch_size = 2 if smoke else 8
  base.model = _model(variant)
  base.task = _task(variant)
  base.optimizer = {"name": "adamw", "weight_decay": 0.0}
  base.schedule = {"name": "linear", "learning_rate": LEARNING_RATE}
  base.log_every = 3 if smoke else 10
  base.eval_every = 0
  base.checkpoint_every = 3 if smoke else 0
  base.tensorboard = False
  base.save = False
  config.dense = {"method": {"name": "full"}, "save": True}
  if not pairs:
    config.dense = {
      **config.dense,
      "steps": 8 if smoke else 600,
      "batch_size": 4 if smoke else 16,
      "optimizer": {"name": "adamw", "b2": 0.98, "weight_decay": 0.1},
      "schedule": {
        "name": "cosine",
        "learning_rate": 3e-3,
        "warmup": 2 if smoke else 50,
        "end": 1e-4,
      },
      "checkpoint_every": 4 if smoke else 150,
    }
  config.starts = llm.starts(
    ("sparsegpt",), SPARSITIES, sequences=4 if smoke else 64, length=128
  )
  config.bases = tuple(config.starts)
  config.settings = {
    name: {
      **llm.setting({"name": "fixed"}, learning_rate=LEARNING_RATE, warmup=5),
      "loss": loss,
      "teacher": {"name": "dense" if len(loss) > 1 else "none"},
    }
    for name, loss in LOSSES.items()
  }
  config.methods = ("none", *LOSSES)
  config.expected = (
    ("ce", "ce + kl"),
    ("ce + kl", "ce + squarehead"),
    ("ce", "ce + squarehead"),
  )
  return config


def _model(variant: str) -> dict[str, object]:
  """Makes `base.model`."""
  if variant == PAIRS:
    path = ml_collections.config_dict.placeholder(str)
    return {"name": "huggingface", "path": path}
  small = variant == SMOKE
  return {
    "name": "random",
    "family": "t5",
    "seed": 0,
    "dim": 16 if small else 64,
    "layers": 2,
    "heads": 2 if small else 4,
    "hidden": 32 if small else 128,
    "context": 64 if small else 128,
    "sentinels": 16,
  }


def _task(variant: str) -> dict[str, object]:
  """Makes `base.task`."""
  if variant == PAIRS:
    paths = {
      f"{part}_path": ml_collections.config_dict.placeholder(str)
      for part in ("train", "test")
    }
    return {"name": "pairs", **paths, "length": 128, "target_length": 128}
  text = llm.text(SMOKE if variant == SMOKE else llm.BYTES)
  small = variant == SMOKE
  years = {} if small else {"years": (1950, 2000)}
  return {
    "name": "span_corruption",
    "train": {**text["train"], **years},
    "test": text["test"],
    "length": 48 if small else 128,
    "density": 0.15,
    "span": 3.0,
    "batch": 8 if small else 64,
    "test_tokens": 960 if small else 32_768,
  }
