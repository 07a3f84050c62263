"""Channels pruned and taken out of a convolutional net on MNIST-1D.

    python -m experiments.main --config=configs/shrink_mnist1d.py --workdir=DIR

The net of the MNIST-1D paper, 64 channels wide, loses half, then three quarters
of the channels of each of its three convolutions: masks of whole channels
follow gradual magnitude pruning; then the channels are taken out, with their
biases and momentum, and the smaller net trains on, for as many steps in all as
the whole one. Minutes on a CPU, for five seeds.

Expected: nobody has published it. Dense nets of fewer channels do well on this
data set (results/dst_mnist1d.csv), so half of them should cost little.

    --config.base.optimizer.group_lasso=1e-4

adds a penalty that makes channels small before they are pruned (Wen et al.,
arXiv:1608.03665).

Argument: `smoke` for a run of seconds.
"""

import ml_collections

from experiments.config import args, defaults
from experiments.drivers import shrink


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = shrink.defaults()
  config.name = "shrink_mnist1d"
  config.seeds = (0,) if smoke else (0, 1, 2, 3, 4)

  base = defaults.training_run()
  base.steps = steps = 40 if smoke else 2000
  base.batch_size = 100
  base.data = {"name": "mnist1d"}
  base.model = {"name": "mnist1d_conv", "channels": 64}
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
  base.schedule = {"name": "cosine", "learning_rate": 0.05}
  base.log_every = base.eval_every = base.checkpoint_every = steps // 2
  base.tensorboard = False
  base.algorithm = {
    "name": "gmp",
    "sparsity": 0.0,
    "begin": steps // 8,
    "end": steps // 2,
    "delta_t": steps // 40,
    "pattern": {"name": "channels"},
    "distribution": "uniform",
    "prunable": r"^conv\d/kernel$",
  }
  config.base = base
  config.shrink_at = steps * 7 // 10
  # Steps go on being counted, so that it begins at 0.1 (1 - 7 / 10).
  config.then = {"schedule": {"name": "linear", "learning_rate": 0.1}}
  config.rounds = 3 if smoke else 100
  return config
