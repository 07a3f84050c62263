"""AC/DC on ImageNet: a ResNet-50, dense and sparse in turn, 90 % at the end.

    python -m experiments.main --config=configs/ac_dc_imagenet.py --workdir=DIR

The recipe of Peste et al., AC/DC: Alternating Compressed/DeCompressed Training
of Deep Neural Networks (arXiv:2106.12379), from the released code
(github.com/IST-DASLab/ACDC, configs/neurips/
iht_imagenet_resnet50_insta_cosinelr_s90_ep100.yaml and the script of that
name): 100 epochs with batches of 256; SGD with momentum 0.875 and L2 2**-15 on
all parameters; a learning rate that rises to 0.256 over 5 epochs and falls by a
cosine, constant within an epoch; no label smoothing. Training is dense until
epoch 10, sparse and dense for 5 epochs each until epoch 75, dense until 85, and
sparse to the end. All layers, the first and the last included, are pruned by
one threshold. Momentum is reset to 0 when a dense phase begins.

Expected: we could not read the paper's table; its abstract claims higher
accuracy than sparse training at a similar cost.

Differences: the released code keeps one weight less than its budget and
computes in float16. Not run in full: that takes a GPU and the data.

Argument: `smoke` for a few steps of a small net, through all phases.
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
  config.name = "ac_dc_imagenet"
  at = vision.epoch_to_step(config, 100)
  config.model = {**config.model, "kernel_init": "he_normal_fan_out"}
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.875,
    "weight_decay": 2**-15,
    "decay_vectors": True,
  }
  config.schedule = {
    "name": "cosine",
    "learning_rate": 0.256,
    "warmup": at(5),
    "epoch": at(1),
  }
  config.algorithm = {
    "name": "ac_dc",
    "sparsity": 0.9,
    "phases": [at(epoch) for epoch in (*range(10, 80, 5), 85)],
  }
  return config
