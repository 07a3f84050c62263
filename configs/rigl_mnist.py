"""RigL on MNIST: LeNet-300-100, and the architecture that it finds.

    python -m experiments.main --config=configs/rigl_mnist.py \
      --config.data.data_dir=FOLDER --workdir=DIR

The recipe of Evci et al., Rigging the Lottery (arXiv:1911.11134, appendix B,
and the released code, github.com/google-research/rigl,
rigl/mnist/mnist_train_eval.py): sparsity 99 % in the first layer, 89.1 % in the
second, a dense output layer; 200 epochs with batches of 100; SGD with Nesterov
momentum 0.9 and L2 1e-4; a learning rate of 0.2, divided by 3 after 75 and 95
epochs; an update every 100 steps until step 50,000, with a drop fraction of 0.3
that is annealed by a cosine. Pruning goes from step 2,000 to 30,000, every 500.
Images are not normalized, but scaled to [0, 1].

Expected, from table 2 of the paper: 408-100-69 units left (input pixels and
neurons with any weight), which is 87.0 % of zeros among the weights between
them; an error of 1.44 % at best and 1.48 % at the end. What a run has found:

    from experiments.config import grid
    from experiments.runs import train
    from sparsejax import instruments

    config = grid.module("configs/rigl_mnist.py").get_config()
    masks = train.train(config, "DIR").masks
    layers = [masks[name]["kernel"] for name in ("dense1", "dense2")]
    print(instruments.units_left(layers))

FOLDER holds MNIST's four IDX files; `--config.data.source=tfds` takes the set
that TFDS has prepared. Not run in full: no MNIST.

Argument: an algorithm (`rigl`, `set`, `snfs`, `seft`, `static`, `gmp`,
`dense`), and `smoke` for a few steps.
"""

import ml_collections

from experiments.config import args, defaults
from experiments.recipes import vision

_EPOCH = 600  # steps


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: An algorithm, `smoke`, or both with a comma between.

  Returns:
    The config.
  """
  words = args.parse(arg, algorithm=vision.COMMON)
  algorithm, smoke = words.algorithm, words.smoke
  config = defaults.training_run()
  config.name = f"{algorithm}_mnist"
  config.steps = 40 if smoke else 200 * _EPOCH
  config.batch_size = 100
  config.data = {
    "name": "mnist",
    "data_dir": ml_collections.config_dict.placeholder(str),
    "source": "idx",
    "normalize": "unit",
  }
  config.model = {"name": "lenet_300_100", "kernel_init": "glorot_uniform"}
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
  }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 0.2,
    "boundaries": (75 * _EPOCH, 95 * _EPOCH),
    "factor": 1 / 3,
  }
  config.log_every = 20 if smoke else _EPOCH
  config.eval_every = 20 if smoke else _EPOCH
  config.checkpoint_every = 20 if smoke else 10 * _EPOCH
  part = vision.algorithm(
    algorithm,
    sparsity=0.99,
    distribution="uniform",
    fraction=0.3,
    delta_t=10 if smoke else 100,
    t_end=30 if smoke else 50_000,
    begin=10 if smoke else 2000,
    end=30 if smoke else 30_000,
    prune_every=10 if smoke else 500,
  )
  if algorithm != "dense":
    part["prunable"] = "^dense.*kernel"
    part["by_path"] = (("^dense2", 0.891),)
  config.algorithm = part
  return config
