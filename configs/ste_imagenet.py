"""Straight-through magnitude pruning on ImageNet: ResNet-50 at 80 %.

    python -m experiments.main --config=configs/ste_imagenet.py --workdir=DIR

The recipe of Lee et al., JaxPruner (arXiv:2304.14082), from its released config
(github.com/google-research/jaxpruner, baselines/scenic/configs/
imagenet_resnet_config.py): 100 epochs of 312 steps with batches of 4,096; SGD
with momentum 0.9 and L2 1e-4; a learning rate that rises to 1.6 over 5 epochs
and falls by a cosine; no label smoothing; uniform sparsity, the first
convolution dense. The largest weights are chosen anew at every step, with a
sparsity that follows a cubic from step 10,000 to 25,000. The net is Scenic's
(github.com/google-research/scenic, projects/baselines/resnet.py): LeCun
initialization, and the last norm of a block begins with a scale of 0.

Expected test accuracy in percent, from that repository's README, whose table
does not say at which sparsity; the config has 80 %:

    dense   straight-through   gradual magnitude pruning
    76.67   73.54              75.53

Differences: there the L2 term is of the masked weights, so that pruned ones do
not decay; here all do. Its cubic runs one step ahead. Not run in full: that
takes a GPU and the data.

Argument: `smoke` for a few steps of a small net.
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
  config = vision.imagenet(31_200, batch_size=4096, smoke=smoke)
  config.name = "ste_imagenet"
  at = vision.epoch_to_step(config, 100)
  config.model = {
    **config.model,
    "zero_init": True,
    "kernel_init": "lecun_normal",
  }
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  config.schedule = {"name": "cosine", "learning_rate": 1.6, "warmup": at(5)}
  config.algorithm = {
    "name": "ste",
    "sparsity": 0.8,
    "distribution": "uniform",
    "prunable": "^(stage|logits).*kernel",
    "begin": 5 if smoke else 10_000,
    "end": 15 if smoke else 25_000,
  }
  return config
