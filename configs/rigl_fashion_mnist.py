"""RigL on Fashion-MNIST: LeNet-300-100, or a small convolutional net.

    python -m experiments.main --config=configs/rigl_fashion_mnist.py \
      --workdir=DIR

Mask updates as in Evci et al., Rigging the Lottery (arXiv:1911.11134, section
4): every 100 steps until 75 % of training, with a drop fraction of 0.3 that is
annealed by a cosine; ERK.

Expected: no published number applies. The paper trains this LeNet on MNIST
(appendix B). Papers report an order: static < SET < RigL, and RigL near dense.

Argument: a model (`lenet`, the default, or `conv`), an algorithm (`rigl`,
`set`, `snfs`, `seft`, `static`, `gmp`, `dense`) and `smoke`, with commas
between: `conv,set,smoke`.
"""

import ml_collections

from experiments.config import args, defaults
from experiments.recipes import vision

MODELS = {"lenet": "lenet_300_100", "conv": "small_conv"}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: A model, an algorithm, `smoke`, with commas between.

  Returns:
    The config.
  """
  words = args.parse(arg, algorithm=vision.COMMON, model=tuple(MODELS))
  algorithm, model, smoke = words.algorithm, words.model, words.smoke
  config = defaults.training_run()
  config.name = f"{algorithm}_fashion_mnist_{model}"
  config.steps = 40 if smoke else 24_000
  config.batch_size = 100
  config.data = vision.fashion_mnist_files()
  config.model = {"name": MODELS[model]}
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  config.schedule = {"name": "cosine", "learning_rate": 0.05}
  config.log_every = 20 if smoke else 200
  config.eval_every = 20 if smoke else 2000
  config.checkpoint_every = 20 if smoke else 4000
  steps = config.get_ref("steps")
  config.algorithm = vision.algorithm(
    algorithm,
    sparsity=0.95,
    distribution="erdos_renyi_kernel",
    delta_t=10 if smoke else 100,
    fraction=0.3,
    t_end=steps * 3 // 4,
    begin=steps // 4,
  )
  return config
