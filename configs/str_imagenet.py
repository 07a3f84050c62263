"""STR on ImageNet: a ResNet-50 with learned thresholds, 90.23 % sparse.

    python -m experiments.main --config=configs/str_imagenet.py --workdir=DIR

The recipe of Kusupati et al., Soft Threshold Weight Reparameterization for
Learnable Sparsity (arXiv:2002.03231), from the released config
(github.com/RAIVNLab/STR, configs/largescale/resnet50-str.yaml): 100 epochs with
batches of 256; SGD with momentum 0.875 and L2 2.251757813e-5 on all parameters;
a learning rate that rises to 0.256 over 5 epochs and falls by a cosine,
constant within an epoch; label smoothing 0.1. Every layer has a threshold
sigmoid(s), trained by the same optimizer from s = -3200: there sigmoid(s) and
its slope are 0 in float32, and only L2 moves s until, between epochs 20 and 30,
the threshold begins to prune.

The sparsity therefore results from L2, s, learning rate and momentum together.
Other rows of the paper have another L2, which we could not read.

Expected test accuracy in percent, from that repository's README: 74.31 at
90.23 % sparsity; dense 77.00.

Differences: its output layer has no biases. Not run in full: that takes a GPU
and the data.

Argument: `smoke` for a few steps of a small net, which prune nothing.
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
