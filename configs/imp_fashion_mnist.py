"""Lottery tickets in LeNet-300-100 on Fashion-MNIST, down to 4 % of weights.

    python -m experiments.main --config=configs/imp_fashion_mnist.py \
      --workdir=DIR

Iterative magnitude pruning, 20 % of all weights left in each of 14 rounds, in
four ways: `ticket`, back to the first weights; `rewound`, back to those of step
500; `reinit`, the ticket's masks on newly drawn weights; `random`, masks pruned
at random, on the first weights.

Net, optimizer and rate are those of open_lth's LeNet on MNIST
(github.com/facebookresearch/open_lth): SGD with a learning rate of 0.1 and
batches of 128, no momentum, no decay; the output layer is not pruned. Its 40
epochs are 26 here. No number has been published for Fashion-MNIST; what Frankle
and Carbin report on MNIST (The Lottery Ticket Hypothesis, arXiv:1803.03635,
section 2 and figure 4) is a shape: tickets stay at or above the dense net's
accuracy far down, reinitialised and random nets fall at once. `:smoke` runs two
levels of it in seconds.
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
  config.name = "imp_fashion_mnist"
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.levels = 2 if smoke else 14
  config.rate = 0.2

  base = config.base
  base.steps = 40 if smoke else 12_000
  base.batch_size = 128
  base.data = {
    "name": "fashion_mnist",
    "data_dir": ml_collections.config_dict.placeholder(str),  # Debian's
    "source": "idx",
  }
  base.model = {"name": "lenet_300_100"}
  base.algorithm.prunable = r"dense\d/kernel"
  base.optimizer = {"name": "sgd", "momentum": 0.0}
  base.schedule = {"name": "constant", "learning_rate": 0.1}
  base.log_every = 20 if smoke else 500
  base.eval_every = 20 if smoke else 1000
  base.eval_batch_size = 10_000
  base.checkpoint_every = 20 if smoke else 12_000
  base.tensorboard = False

  config.branches = {
    "ticket": {"retrain": "weights", "step": 0},
    "rewound": {"retrain": "weights", "step": 10 if smoke else 500},
    "reinit": {"retrain": "reinit", "masks": "same", "of": "ticket"},
    "random": {"retrain": "weights", "masks": "random"},
  }
  config.methods = ("ticket", "rewound", "reinit", "random")
  config.expected = (
    ("reinit", "ticket"),
    ("random", "ticket"),
    ("dense", "ticket"),
    ("ticket", "rewound"),
  )
  return config
