"""Movement pruning, hard and soft, on Fashion-MNIST: LeNet-300-100.

    python -m experiments.main --config=configs/movement_fashion_mnist.py:soft \
      --workdir=DIR

The schedule of Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning
(arXiv:2005.07683), as the released code trains BERT on SQuAD
(github.com/huggingface/transformers, research_projects/movement-pruning): ten
epochs; a learning rate that rises over a tenth of them, about the share of its
5,400 steps, and falls linearly to 0; pruning along a cubic that begins then and
ends at 80 % of training; Adam without weight decay, gradients clipped to a norm
of 1; scores that begin at 0, with a learning rate of 1e-2 on the same schedule.
Hard movement pruning keeps 15 % of each layer, the output layer included. Soft
movement pruning has a threshold that rises to 0.1, and a penalty that rises
with it to 400.

Expected: no published number applies. The paper fine-tunes a trained model;
this trains from random weights, whose movement says less, so the learning rate
of weights is 1e-3 instead of 3e-5. Its gradient norm includes the scores'
gradients, and it also distills. In the soft variant the penalty alone decides
the sparsity: the paper's 400 left 0.7 % of this net's weights in one run.

Argument: `hard` (the default) or `soft`, and `smoke`.
"""

import ml_collections

from experiments.config import args
from experiments.recipes import vision

ALGORITHMS = {
  "hard": {"name": "movement", "sparsity": 0.85, "distribution": "uniform"},
  "soft": {"name": "soft_movement", "threshold": 0.1, "penalty": 400.0},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: A variant, `smoke`, or both with a comma between.

  Returns:
    The config.
  """
  words = args.parse(arg, variant=tuple(ALGORITHMS))
  variant, smoke = words.variant, words.smoke
  config = vision.fashion_mnist("lenet", 4800, smoke=smoke)
  config.batch_size = 128
  config.name = f"{variant}_movement_fashion_mnist"
  at = vision.epoch_to_step(config, 10)
  config.optimizer = {"name": "adam", "clip": 1.0}
  config.schedule = {"name": "linear", "learning_rate": 1e-3, "warmup": at(1)}
  config.algorithm = {
    **ALGORITHMS[variant],
    "begin": at(1),
    "end": at(8),
    "optimizer": {"name": "adam", "rate_factor": 10.0},
  }
  return config
