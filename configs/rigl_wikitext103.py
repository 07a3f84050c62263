"""RigL on WikiText-103, character by character: the GRU of its paper.

    python -m experiments.main --config=configs/rigl_wikitext103.py \
      --config.data.data_dir=FOLDER --workdir=DIR

The recipe of Evci et al., Rigging the Lottery (arXiv:1911.11134, section 4.2
and appendix I): 256 characters, an embedding of 128 that input and output
share, a GRU of 512 units, a readout of 256 and 128; 200,000 steps with batches
of 32 sequences of 512; Adam with a learning rate of 7e-4, L2 5e-4, gradients
clipped to a norm of 10; 75 % sparsity in all layers; an update every 100 steps
to the end of training, with a drop fraction of 0.1 that is annealed by a
cosine. Pruning goes from step 50,000 to 150,000, every 1,000 steps. The
embedding, which the paper does not mention here, is dense.

FOLDER holds wiki.train.raw and wiki.valid.raw of wikitext-103-raw-v1. Bits per
character are the recorded loss divided by ln 2.

Expected: the paper shows only figure 4 (left), without numbers: RigL ahead of
SNFS, SET and static, and pruning ahead of RigL. Not run in full: no GPU, no
WikiText.

Argument: an algorithm (`rigl`, `set`, `snfs`, `seft`, `static`, `gmp`,
`dense`), and `smoke` for a few steps of a small net.
"""

import ml_collections

from experiments.config import args, defaults
from experiments.recipes import vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: An algorithm, `smoke`, or both with a comma between.

  Returns:
    The config.
  """
  words = args.parse(arg, algorithm=vision.COMMON)
  algorithm, smoke = words.algorithm, words.smoke
  config = defaults.training_run()
  config.name = f"{algorithm}_wikitext103"
  config.steps = 20 if smoke else 200_000
  config.batch_size = 4 if smoke else 32
  config.data = {
    "name": "wikitext103",
    "data_dir": ml_collections.config_dict.placeholder(str),
    "length": 32 if smoke else 512,
  }
  config.model = {"name": "character_gru"}
  if smoke:
    config.model = {"name": "character_gru", "embedding": 8, "units": 16}
  config.optimizer = {"name": "adam", "weight_decay": 5e-4, "clip": 10.0}
  config.schedule = {"name": "constant", "learning_rate": 7e-4}
  config.log_every = 10 if smoke else 500
  config.eval_every = 10 if smoke else 5000
  config.eval_batch_size = 4 if smoke else 32
  config.checkpoint_every = 10 if smoke else 5000
  part = vision.algorithm(
    algorithm,
    sparsity=0.75,
    distribution="uniform",
    fraction=0.1,
    delta_t=4 if smoke else 100,
    t_end=config.steps,
    begin=4 if smoke else 50_000,
    end=16 if smoke else 150_000,
    prune_every=4 if smoke else 1000,
  )
  if algorithm != "dense":
    part["prunable"] = "kernel"
  config.algorithm = part
  return config
