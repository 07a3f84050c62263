"""Lottery tickets in LeNet-300-100 on Fashion-MNIST, down to 4 % of weights.

    python -m experiments.main --config=configs/imp_fashion_mnist.py \
      --workdir=DIR

Iterative magnitude pruning: 14 rounds, each of which prunes 20 % of the weights
left, over all layers. Four branches: `ticket` rewinds to the initial weights;
`rewound`, to those of step 500; `reinit` puts the ticket's masks on new random
weights; `random` prunes at random and rewinds to the initial weights.

Net and training are those of open_lth's LeNet on MNIST
(github.com/facebookresearch/open_lth): batches of 128, SGD with a learning rate
of 0.1, no momentum, no weight decay; the output layer is not pruned. It trains
for 40 epochs, this for 26.

Expected: no numbers are published for Fashion-MNIST. On MNIST, Frankle and
Carbin (The Lottery Ticket Hypothesis, arXiv:1803.03635, section 2 and figure 4)
report that tickets stay at or above the dense net's accuracy far down,
while reinitialised and random nets fall at once.

Argument: `smoke` for two levels, in seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import lottery
from experiments.recipes import vision


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
  base.data = vision.fashion_mnist_files()
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
