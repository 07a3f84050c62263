"""Lottery tickets in ResNet-20 on CIFAR-10, rewound to step 500.

    python -m experiments.main --config=configs/imp_resnet20_cifar10.py \
      --workdir=DIR

The recipe of Frankle, Dziugaite, Roy and Carbin, Linear Mode Connectivity and
the Lottery Ticket Hypothesis (arXiv:1912.05671), from their code
(github.com/facebookresearch/open_lth, models/cifar_resnet.py): 160 epochs with
batches of 128; SGD with momentum 0.9 and L2 1e-4; a learning rate of 0.1,
divided by 10 at epochs 80 and 120; BatchNorm's scales drawn from [0, 1). Each
of 14 rounds prunes 20 % of all weights left, the output layer included.

Expected, from the paper as cited elsewhere: a test error of the dense net near
8.3 %. Tickets rewound to step 500 are as good and stable (an error barrier
below 2 %) down to 13.4 % of the weights, those rewound to step 0 neither; the
dense net is stable from step 2000 on.

Differences: images are normalised by CIFAR-10's mean and deviation before they
are padded; in the released code, by ImageNet's and after. Not run in full: no
GPU.

Argument: `smoke` for a few steps of a small net.
"""

import ml_collections

from experiments.config import args
from experiments.recipes import lottery

_EPOCH = 391  # steps; the last batch is smaller in the released code


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` for a few steps of a small net, or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = lottery.rewinding(levels=14, step=500, smoke=smoke)
  config.name = "imp_resnet20_cifar10"
  config.rate = 0.2  # of the weights left, each time

  base = config.base
  base.steps = 4 if smoke else 160 * _EPOCH
  base.batch_size = 8 if smoke else 128
  base.augment = True  # padded by zeros, cropped, mirrored
  base.data = {
    "name": "cifar10",
    "data_dir": ml_collections.config_dict.placeholder(str),  # TFDS's own
    "mode": "constant",
  }
  base.model = {
    "name": "resnet",
    "depth": 8 if smoke else 20,
    "shortcut": "B",
    "width": 2 if smoke else 16,
    "norm_scale": "uniform",
  }
  base.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_vectors": True,
  }
  base.schedule = {
    "name": "piecewise",
    "learning_rate": 0.1,
    "boundaries": (80 * _EPOCH, 120 * _EPOCH),
    "factor": 0.1,
  }
  base.log_every = 2 if smoke else _EPOCH
  base.eval_every = 2 if smoke else 10 * _EPOCH
  base.eval_batch_size = 8 if smoke else 1000
  base.checkpoint_every = 2 if smoke else 20 * _EPOCH
  return config
