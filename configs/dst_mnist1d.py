"""RigL's tables on MNIST-1D: the convolutional net of that data set's paper.

    python -m experiments.sweep --config=configs/dst_mnist1d.py --root=DIR
    python -m experiments.tables --table=dst_mnist1d --root=DIR

Dense, small-dense, SNIP and, with uniform and with ERK sparsities, static, SET,
SNFS, RigL, RigL five times as long, and gradual pruning, at 80, 90, 95 and 98 %
with five seeds each: 420 runs.

Net, data and training are those of configs/rigl_mnist1d.py. Mask updates as in
Evci et al., Rigging the Lottery (arXiv:1911.11134, section 4): every 100 steps
until 75 % of training, with a drop fraction of 0.3 that is annealed by a
cosine. Uniform sparsities apply to all layers, so that they keep as many
weights as ERK; rows called "first dense" leave the first layer dense, as the
paper does. It has 250 of 17,750 weights, but at 98 % these are two fifths of
all that are left.

Expected: nobody has published this table for MNIST-1D. Papers report an order:
static < SET < RigL <= pruning; uniform < ERK; RigL < RigL 5x;
small-dense < RigL. See results/README.md for ours.

Argument: `smoke` for two sparsities, one seed and a few steps.
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
  return _run("dense", "uniform", smoke=smoke)


def _run(
  algorithm: str, distribution: str, times: int = 1, *, smoke: bool
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
  )
  return config


def sweep(arg: str = "") -> rigl.Runs:
  """Plans the runs of the table; see `rigl.table_runs`.

  Args:
    arg: As for `get_config`.

  Returns:
    For each run its row, and by dotted key what to change in the config.
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
