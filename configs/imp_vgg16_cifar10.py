"""Lottery tickets in VGG-16 on CIFAR-10, rewound to step 1000.

    python -m experiments.main --config=configs/imp_vgg16_cifar10.py \
      --workdir=DIR

The recipe of Frankle, Dziugaite, Roy and Carbin, Linear Mode Connectivity and
the Lottery Ticket Hypothesis (arXiv:1912.05671), as their code has it
(github.com/facebookresearch/open_lth, models/cifar_vgg.py): batches of 128 for
160 epochs, SGD with momentum 0.9 and L2 1e-4, a learning rate of 0.1 divided by
10 at epochs 80 and 120, BatchNorm's scales drawn from [0, 1); 20 % of the
convolutions' weights pruned a round, the output layer left whole; 19 rounds.

To expect: a test error of the dense net near 6.3 %; tickets rewound to step
1000 as good as that and stable (an error barrier below 2 %) down to 1.5 % of
the weights, those rewound to step 0 neither; the dense net stable from step
1000 on. These are figures of the paper read at second hand.

Where this differs: images are normalised by CIFAR-10's mean and deviation
before they are padded (theirs by ImageNet's, after). Not run here in full: no
GPU. `:smoke` takes a few steps of a small net.
"""

import ml_collections

from experiments.recipes import vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` for a few steps of a small net, or nothing.

  Returns:
    The config.
  """
  smoke = arg == "smoke"
  config = vision.imp_cifar10(rewind=1000, smoke=smoke)
  config.name = "imp_vgg16_cifar10"
  config.levels = 2 if smoke else 19
  config.base.model = {"name": "vgg16", "norm_scale": "uniform"}
  if smoke:
    config.base.model.stages = ((2,), (2,), (4,))
  config.base.algorithm.prunable = r"conv\d+/kernel"
  return config
