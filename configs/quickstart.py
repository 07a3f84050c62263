"""Six ways to train a small convolutional net on MNIST-1D at 90 % sparsity.

    python -m experiments.main --config=configs/quickstart.py --workdir=DIR

Dense, static, SET, RigL, sensitivity-based drop-and-grow (SEFT's rule) and
gradual magnitude pruning, with three seeds each: a few minutes on two cores.
Data set and net are those of Greydanus and Kobak, Scaling down Deep Learning
with MNIST-1D (arXiv:2011.14439); the package generates the data.

Expected: nobody has published these on MNIST-1D. Papers report an order (Evci
et al., arXiv:1911.11134, figure 2 and section 4.3): static below SET and RigL,
RigL below or near pruning, pruning near dense. The report says whether it
appears.

Argument: `smoke` for a run of seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import compare
from experiments.recipes import vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` for a run of seconds, or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = compare.defaults()
  config.name = "quickstart"
  config.seeds = (0,) if smoke else (0, 1, 2)

  base = config.base
  base.steps = 40 if smoke else 3000
  base.batch_size = 100
  base.data = {"name": "mnist1d"}
  base.model = {"name": "mnist1d_conv", "channels": 50}
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
  base.schedule = {"name": "cosine", "learning_rate": 0.05}
  base.log_every = 20 if smoke else 100
  base.eval_every = 20 if smoke else 200
  base.checkpoint_every = 20 if smoke else 1000
  base.tensorboard = False

  steps = base.get_ref("steps")
  config.methods = ("dense", "static", "set", "rigl", "seft", "gmp")
  config.algorithms = {
    name: vision.algorithm(
      name,
      sparsity=0.9,
      distribution="erdos_renyi_kernel",
      delta_t=10 if smoke else 100,
      fraction=0.3,
      t_end=steps * 3 // 4,
      begin=steps // 4,
    )
    for name in config.methods
  }
  config.expected = (
    ("static", "set"),
    ("static", "rigl"),
    ("rigl", "gmp"),
    ("gmp", "dense"),
  )
  return config
