"""Top-KAST on ImageNet: ResNet-50, 90 % sparse forward and 80 % backward.

    python -m experiments.main --config=configs/top_kast_imagenet.py \
      --workdir=DIR

Jayakumar et al., Top-KAST: Top-K Always Sparse Training (arXiv:2106.03517). Its
code is not public, and we could not read its recipe. A reimplementation
(github.com/neuralmagic/sparseml, pull request 1674 and
modifier_pruning_topkast.py) says: SGD without momentum; both sets chosen layer
by layer and anew at every step (every 100 steps were as good); weights of the
forward set decay, the others of the backward set by that divided by the
density, with a coefficient that is 1e-4 by default there.

The rest is the recipe of RigL (Evci et al., arXiv:1911.11134, section 4.1),
which need not be this paper's: 32,000 steps with batches of 4,096; a learning
rate that rises to 1.6 over 5 epochs and is divided by 10 at epochs 30, 70 and
90; label smoothing 0.1; uniform sparsity, the first convolution dense.

Expected test accuracy in percent: 73.0 in the paper, as quoted in that pull
request, whose own run of 100 epochs with batches of 400 reached 72.5. Not run
in full: that takes a GPU and the data.

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
  config = vision.imagenet(32_000, batch_size=4096, smoke=smoke)
  config.name = "top_kast_imagenet"
  at = vision.epoch_to_step(config, 32_000 * 4096 / 1_281_167)
  config.label_smoothing = 0.1
  config.optimizer = {"name": "sgd", "momentum": 0.0}
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 1.6,
    "warmup": at(5),
    "boundaries": (at(30), at(70), at(90)),
    "factor": 0.1,
  }
  config.algorithm = {
    "name": "top_kast",
    "sparsity": 0.9,
    "backward_sparsity": 0.8,
    "penalty": 1e-4,
    "distribution": "uniform",
    "prunable": "^(stage|logits).*kernel",
  }
  return config
