"""Straight-through magnitude pruning on ImageNet: ResNet-50 at 80 %.

    python -m experiments.main --config=configs/ste_imagenet.py --workdir=DIR

Recipe, to the letter: JaxPruner's (Lee et al., arXiv:2304.14082), by its
released config (github.com/google-research/jaxpruner, baselines/scenic/configs/
imagenet_resnet_config.py): batches of 4,096 for 100 epochs of 312 steps; SGD
with momentum 0.9, L2 1e-4, a learning rate of 1.6 that rises over 5 epochs and
falls by a cosine; no label smoothing; the same sparsity in all layers but the
first convolution, which stays dense. Magnitudes choose the weights anew at
every step, along a cubic from step 10,000 to 25,000. The net is Scenic's
(github.com/google-research/scenic, projects/baselines/resnet.py): the last norm
of a block begins with a scale of 0, LeCun initialization.

Expected test accuracy in percent, by that repository's README, whose table
does not say at which sparsity; the config's is 80 %:

    dense   straight-through   gradual magnitude pruning
    76.67   73.54              75.53

Where this differs: there the L2 term is taken of the masked weights, so that
pruned ones do not decay; here all do. Their cubic runs one step ahead. Not run
in full: it takes a GPU and the data.

The argument is `smoke`, for a few steps of a small net, or nothing.
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
