"""Channels pruned and taken out of a ResNet-20 on Fashion-MNIST.

    python -m experiments.main --config=configs/shrink_fashion_mnist.py \
      --workdir=DIR

A narrow ResNet-20 (8, 16 and 32 channels) loses half, then three quarters of
the channels inside its blocks: masks of whole channels follow gradual magnitude
pruning; then the channels are taken out, with what norms and the optimizer's
momentum hold for them, and the smaller net trains on. The net between blocks
stays as wide as it is, so FLOPs fall by the share of channels. The table has
parameters, FLOPs, the time of a forward pass and of a step, and accuracies.

Expected: nobody has published this net on Fashion-MNIST. Filters that are
pruned so cost ResNet-56 on CIFAR-10 next to nothing at 27.6 % of its FLOPs (Li
et al., arXiv:1608.08710, table 1).

    --config.base.optimizer.group_lasso=1e-4

adds a penalty that makes channels small before they are pruned (Wen et al.,
arXiv:1608.03665).

Argument: `smoke` for a run of seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import shrink
from experiments.recipes import vision

STEPS = 400
SHRINK_AT = 280


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = shrink.defaults()
  config.name = "shrink_fashion_mnist"
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.sparsities = (0.5,) if smoke else (0.0, 0.5, 0.75)

  base = vision.fashion_mnist("conv", STEPS, smoke=smoke)
  base.batch_size = 16 if smoke else 32
  base.model = {"name": "resnet20", "width": 8, "shortcut": "B"}
  if smoke:
    base.model = {"name": "resnet", "depth": 8, "width": 4, "shortcut": "B"}
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  base.schedule = {"name": "cosine", "learning_rate": 0.05}
  base.eval_every = base.steps // 2
  config.base = base
  steps = base.steps
  config.shrink_at = steps * SHRINK_AT // STEPS
  base.algorithm = {
    "name": "gmp",
    "sparsity": 0.0,
    "begin": steps // 8,
    "end": steps // 2,
    "delta_t": steps // 40,
    "pattern": {"name": "channels"},
    "distribution": "uniform",
    "prunable": r"block\d+/conv1/kernel$",
  }
  # Steps go on being counted, so that it begins at 0.06 (1 - 280 / 400).
  config.then = {"schedule": {"name": "linear", "learning_rate": 0.06}}
  config.rounds = 3 if smoke else 15
  return config
