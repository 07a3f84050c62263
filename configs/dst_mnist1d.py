"""The rows of RigL's tables on MNIST-1D: the convolutional net of its paper.

    python -m experiments.sweep --config=configs/dst_mnist1d.py --root=DIR
    python -m experiments.tables --table=dst_mnist1d --root=DIR

Dense, small-dense, SNIP, and, uniform and ERK, static, SET, SNFS, RigL, RigL
five times as long, and gradual pruning, at 80, 90, 95 and 98 %, five seeds
each: 420 runs. `:smoke` takes two sparsities, one seed and a few steps.

Net, data and recipe are those of configs/rigl_mnist1d.py: 4,000 steps of 100
signals, SGD with a cosine of the learning rate; a drop fraction of 0.3 that a
cosine anneals, an update every 100 steps until 75 % of the training (Evci et
al., arXiv:1911.11134, section 4). Uniform sparsities are those of all layers,
so that they keep as many weights as ERK, and once more (`first dense`) those of
all but the first, as the paper has it: 250 of 17,750 weights, but at 98 % two
fifths of all that are left.

Nobody has published these rows on MNIST-1D. What papers report is an
order: static below SET below RigL, which is at most as good as pruning; ERK
above uniform; RigL 5x above RigL; small-dense below RigL. results/README.md
says what came of it.
"""

import functools

import ml_collections

from experiments.config import args, defaults
from experiments.recipes import rigl, vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config of the dense run.

  Args:
    arg: `smoke` or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  return _run("dense", smoke=smoke)


def _run(
  algorithm: str,
  distribution: str = "uniform",
  times: int = 1,
  *,
  smoke: bool,
) -> ml_collections.ConfigDict:
  config = defaults.training_run()
  config.name = "dst_mnist1d"
  config.steps = times * (40 if smoke else 4000)
  config.batch_size = 100
  config.data = {"name": "mnist1d"}
  config.model = {"name": "mnist1d_conv", "channels": 50}
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
  config.schedule = {"name": "cosine", "learning_rate": 0.05}
  config.log_every = times * (20 if smoke else 500)
  config.eval_every = times * (20 if smoke else 500)
  config.checkpoint_every = config.steps
  config.tensorboard = False
  every = 10 if smoke else 100
  config.algorithm = vision.algorithm(
    algorithm,
    sparsity=0.9,
    distribution=distribution,
    delta_t=every,
    t_end=config.steps * 3 // 4,
    fraction=0.3,
    begin=config.steps // 4 // every * every,
    end=config.steps * 3 // 4 // every * every,
    prune_every=every,
  )
  return config


def sweep(arg: str = ""):
  """The rows; see `rigl.table_runs`.

  Args:
    arg: As for `get_config`.

  Returns:
    For each run its row, and what to change in the config.
  """
  smoke = args.parse(arg).smoke
  return rigl.table_runs(
    get_config(arg),
    functools.partial(_run, smoke=smoke),
    sparsities=(0.8, 0.98) if smoke else (0.8, 0.9, 0.95, 0.98),
    seeds=range(1 if smoke else 5),
    shape=(40, 1),
    num_classes=10,
    first="^conv1/",
  )


EXPECTED = rigl.expected_orders(first=True)
PUBLISHED = rigl.published_accuracies(rigl.IMAGENET, rigl.SOURCE)
SAME = False  # another net, other data
