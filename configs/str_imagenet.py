"""STR on ImageNet: ResNet-50 with learned thresholds, 90.23 % sparse.

    python -m experiments.main --config=configs/str_imagenet.py --workdir=DIR

Recipe, to the letter (Kusupati et al., Soft Threshold Weight Reparameterization
for Learnable Sparsity, arXiv:2002.03231), by its released config
(github.com/RAIVNLab/STR, configs/largescale/resnet50-str.yaml): batches of 256
for 100 epochs; SGD with momentum 0.875, L2 2.251757813e-5 on all parameters, a
learning rate of 0.256 that rises over 5 epochs and falls by a cosine, the same
within an epoch; label smoothing 0.1. Every layer has a threshold, trained by
the same optimizer from s = -3200: there sigmoid(s) and its slope are 0 in
float32, and only L2 moves it until, between epochs 20 and 30, it bites.

So the sparsity comes out of L2, s, learning rate and momentum together. That
of other rows of the paper takes another L2, and which one we could not read.

Expected test accuracy in percent, by that repository's README: 74.31 at 90.23 %
sparsity; dense 77.00. Its output layer has no biases, ours has. Not run in
full: it takes a GPU and the data.

The argument is `smoke`, for a few steps of a small net, which prune nothing, or
nothing.
"""

import ml_collections

from experiments.config import args
from experiments.recipes import vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` for a few steps of a small net, or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = vision.imagenet(100 * 5005, batch_size=256, smoke=smoke)
  config.name = "str_imagenet"
  at = vision.epoch_to_step(config, 100)
  config.label_smoothing = 0.1
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.875,
    "weight_decay": 2.251757813e-5,
    "decay_vectors": True,
  }
  config.schedule = {
    "name": "cosine",
    "learning_rate": 0.256,
    "warmup": at(5),
    "epoch": at(1),
  }
  config.algorithm = {
    "name": "str",
    "initial": -3200.0,
    "optimizer": {
      **config.optimizer,
      "weight_decay": config.optimizer.get_ref("weight_decay"),
    },
  }
  return config
