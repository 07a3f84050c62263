"""What to do between levels: rewind weights, rewind the rate, or fine-tune.

    python -m experiments.main --config=configs/imp_rewinding.py --workdir=DIR

Iterative magnitude pruning, 20 % of all weights left a round, of the
convolutional net of MNIST-1D (arXiv:2011.14439) with 50 channels. Branches:
weights rewound to steps 0, 50, 200 and 1000 of 3000, with the error barrier
between two children of each; the learning rate rewound; fine-tuning at the last
learning rate; and one-shot pruning with weights rewound. As in the papers, the
learning rate is divided by 10 at half and three quarters of training.

Expected: nobody has published these on MNIST-1D. Papers report that
learning-rate rewinding is at or above weight rewinding, and both are above
fine-tuning (Renda et al., arXiv:2003.02389, section 4); and that sparse nets
depend on the order of the data if rewound to step 0, but are stable and as good
as dense if rewound a little later (Frankle et al., arXiv:1912.05671, section
4).

Argument: `smoke` for two levels, in seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import lottery


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` for a run of seconds, or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = lottery.defaults()
  config.name = "imp_rewinding"
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.levels = 2 if smoke else 12
  config.rate = 0.2

  base = config.base
  base.steps = 40 if smoke else 3000
  base.batch_size = 100
  base.data = {"name": "mnist1d"}
  base.model = {"name": "mnist1d_conv", "channels": 50}
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
  base.schedule = {
    "name": "piecewise",
    "learning_rate": 0.05,
    "boundaries": (20, 30) if smoke else (1500, 2250),
    "factor": 0.1,
  }
  base.log_every = 20 if smoke else 300
  base.eval_every = 20 if smoke else 300
  base.checkpoint_every = 20 if smoke else 3000
  base.tensorboard = False

  steps = (0, 5) if smoke else (0, 50, 200, 1000)
  weights = {f"weights_{k}": {"retrain": "weights", "step": k} for k in steps}
  config.branches = {
    **weights,
    "learning_rate": {"retrain": "learning_rate", "step": 0},
    "fine_tuning": {"retrain": "fine_tune", "step": 0},
    "one_shot": {"retrain": "weights", "step": steps[-1], "masks": "one_shot"},
  }
  config.methods = (*weights, "learning_rate", "fine_tuning", "one_shot")
  config.stability = {
    "branches": tuple(weights),
    "levels": (0, 1) if smoke else (0, 3, 6, 9, 12),
    "points": 30,
  }
  late = f"weights_{steps[-1]}"
  config.expected = (
    ("weights_0", late),
    ("fine_tuning", late),
    (late, "learning_rate"),
    ("one_shot", late),
  )
  return config
