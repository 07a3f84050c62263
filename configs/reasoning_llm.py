"""Generated questions with exact answers: SmolLM2 learns them, sparse.

    python -m experiments.main --config=configs/reasoning_llm.py:chain_sum \
      --workdir=DIR

SmolLM2-135M-Instruct is fine-tuned on a task of reasoning-gym, pruned to 50 %
by SparseGPT with the questions as calibration data, and recovered by SEFT and
by training all non-zeros with SquareHead. The measure is the share of exact
answers, generated greedily. Questions are generated, the same for everybody.
No numbers of these methods are published for them.

Argument: the task, `chain_sum` (the default), `word_sequence_reversal`,
`number_filtering` or `gsm_symbolic`; or `smoke`.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import recovery
from experiments.llm.text import questions
from experiments.recipes import llm

# Tokens of the longest question with its answer, rounded up.
LENGTHS = {
  "chain_sum": 64,
  "word_sequence_reversal": 104,
  "number_filtering": 96,
  "gsm_symbolic": 192,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: A task, `smoke`, or nothing.

  Returns:
    The config.
  """
  words = args.parse(arg, task=tuple(questions.TASKS), variant=llm.VARIANTS)
  variant, task, smoke = words.variant, words.task, words.smoke
  config = recovery.defaults()
  config.name = f"reasoning_llm {task}"
  config.base = llm.run(variant, steps=200, batch_size=4)
  base = config.base
  base.task = {
    "name": "reasoning",
    "task": task,
    "train": 16 if smoke else 4000,
    "test": 4 if smoke else 200,
    "length": 128 if smoke else LENGTHS[task],
    "batch": 4 if smoke else 50,
  }
  if smoke:
    base.model = {**base.model.to_dict(), "context": 256}
  tuned = llm.setting({"name": "full"}, learning_rate=5e-5, warmup=5)
  config.dense = {**tuned, "save": True}
  config.starts = llm.starts(
    ("sparsegpt",),
    (0.5,),
    sequences=4 if smoke else 64,
    length=base.task.length,
  )
  config.bases = tuple(config.starts)
  seft = {"name": "seft", "rank": 8, "every": max(1, base.steps // 10)}
  config.settings = {
    "seft": llm.setting(seft, learning_rate=1e-3, warmup=5),
    "fixed mask, squarehead": {
      **llm.setting({"name": "fixed"}, learning_rate=1e-4, warmup=5),
      "loss": {"cross_entropy": 1.0, "square_head": 1.0},
      "teacher": {"name": "dense"},
    },
  }
  config.methods = ("none", *config.settings)
  return config
