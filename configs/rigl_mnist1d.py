"""RigL on MNIST-1D: a small convolutional net.

    python -m experiments.main --config=configs/rigl_mnist1d.py --workdir=DIR

At 90 % sparsity. Mask updates as in Evci et al., Rigging the Lottery
(arXiv:1911.11134, section 4): every 100 steps until 75 % of training, with a
drop fraction of 0.3 that is annealed by a cosine.

Expected: no published number applies. Net and data are those of Greydanus and
Kobak (arXiv:2011.14439), whose dense net reaches 94 % by another recipe.

Four sparsities with five seeds each:

    python -m experiments.sweep --config=configs/rigl_mnist1d.py --root=DIR

Argument: an algorithm (`rigl`, `set`, `snfs`, `seft`, `static`, `gmp`,
`dense`), and `smoke` for a run of seconds: `set,smoke`. Any other algorithm by
--config.algorithm=NAME.
"""

import ml_collections

from experiments.config import args, defaults
from experiments.config.entry import Entry
from experiments.recipes import rigl, vision


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
  config.name = f"{algorithm}_mnist1d"
  config.steps = 60 if smoke else 4000
  config.batch_size = 100
  config.data = {"name": "mnist1d"}
  config.model = {"name": "mnist1d_conv", "channels": 50}
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
  config.schedule = {"name": "cosine", "learning_rate": 0.05}
  config.log_every = 10 if smoke else 100
  config.eval_every = 30 if smoke else 500
  config.checkpoint_every = 30 if smoke else 1000

  steps = config.get_ref("steps")
  config.algorithm = vision.algorithm(
    algorithm,
    sparsity=0.9,
    distribution="erdos_renyi_kernel",
    delta_t=10 if smoke else 100,
    fraction=0.3,
    t_end=steps * 3 // 4,
    begin=steps // 4,
  )
  return config


def sweep(arg: str = "") -> rigl.Runs:
  """Plans runs at four sparsities, with five seeds for each.

  Args:
    arg: As for `get_config`.

  Returns:
    For each run its row, and by dotted key what to change in the config.
  """
  algorithm = args.parse(arg, algorithm=vision.COMMON).algorithm
  return [
    (
      Entry(algorithm, sparsity),
      {"algorithm.sparsity": sparsity, "seed": seed},
    )
    for sparsity in (0.8, 0.9, 0.95, 0.98)
    for seed in range(5)
  ]
