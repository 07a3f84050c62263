"""DST-EE on CIFAR-10: a ResNet-50 or VGG-19 at 95 % sparsity.

    python -m experiments.main --config=configs/dst_ee_cifar10.py --workdir=DIR

Huang et al., Dynamic Sparse Training via Balancing the Exploration-Exploitation
Trade-off (arXiv:2211.16667): RigL, but for the growth score, which is |g| plus
a bonus for weights that were seldom active; see `sparsejax.dst_ee`.

Expected, by the paper's abstract: the sparse ResNet-50 is more accurate than
the dense one on CIFAR-10, whose accuracy is 94.75 +- 0.01 in the recipe below;
"up to 98 % sparsity" is the largest studied. The paper's tables, and its values
of c, epsilon and delta_t, could not be looked up: its numbers are not here, and
these three are ours (--config.algorithm.c=..., ...epsilon=..., ...delta_t=...).

So is the rest of the recipe, which is that of Liu et al. (arXiv:2106.10404, see
granet_cifar10.py) for the same nets: 160 epochs with batches of 128; SGD with
Nesterov momentum 0.9 and L2 5e-4 on all parameters; a learning rate of 0.1,
divided by 10 at epochs 80 and 120; half of the weights moving at first, every
1,000 steps until the end. Not run in full: that takes a GPU and the data.

Argument: `resnet50` (the default) or `vgg19`, and `smoke` for a few steps of a
small net.
"""

import ml_collections

from experiments.config import args
from experiments.recipes import vision

MODELS = {
  "resnet50": {"name": "resnet50", "small_images": True},
  "vgg19": {"name": "vgg19"},
}
SMALL = {
  "resnet50": {"blocks": (1, 1), "width": 4},
  "vgg19": {"name": "vgg16", "stages": ((2,), (2,), (4,))},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: A net, `smoke`, or both with a comma between.

  Returns:
    The config.
  """
  words = args.parse(arg, net=tuple(MODELS))
  net, smoke = words.net, words.smoke
  config = vision.cifar10(
    160 * 391, batch_size=128, padding="reflect", smoke=smoke
  )
  config.name = f"dst_ee_cifar10_{net}"
  at = vision.epoch_to_step(config, 160)
  config.model = {**MODELS[net], **(SMALL[net] if smoke else {})}
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "decay_vectors": True,
  }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 0.1,
    "boundaries": (at(80), at(120)),
    "factor": 0.1,
  }
  config.algorithm = {
    "name": "dst_ee",
    "sparsity": 0.95,  # ERK, the default distribution
    "delta_t": 2 if smoke else 1000,
    "t_end": config.steps,
    "fraction": 0.5,
    "c": 1e-3,
    "epsilon": 1.0,
  }
  return config
