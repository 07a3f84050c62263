"""RigL's tables on Fashion-MNIST: LeNet-300-100.

    python -m experiments.sweep --config=configs/dst_fashion_mnist.py --root=DIR
    python -m experiments.tables --table=dst_fashion_mnist --root=DIR

Dense, small-dense, SNIP and, with uniform and with ERK sparsities, static, SET,
SNFS, RigL, RigL for 100 epochs, and gradual pruning, at 80, 90, 95 and 98 %
with five seeds each: 285 runs, of 20 epochs but for that one.

Mask updates as in Evci et al., Rigging the Lottery (arXiv:1911.11134, section
4): every 100 steps until 75 % of training, with a drop fraction of 0.3 that is
annealed by a cosine. Uniform sparsities apply to all layers here, so that they
keep as many weights as ERK. Batch size and learning rate are those of the other
configs of this data set.

Expected: nobody has published this table for Fashion-MNIST. Papers report an
order: static < SET < RigL <= pruning; uniform < ERK; RigL < RigL 5x;
small-dense < RigL. See results/README.md for ours.

Argument: `smoke` for two sparsities, one seed and a few steps.
"""

import functools

import ml_collections

from experiments.config import args
from experiments.recipes import rigl, vision

STEPS = 9376  # 20 epochs and one step, evaluated eight times


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
  config = vision.fashion_mnist("lenet", STEPS, times=times, smoke=smoke)
  config.name = "dst_fashion_mnist"
  config.batch_size = 128
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  config.schedule = {"name": "cosine", "learning_rate": 0.05}
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
    shape=(28, 28, 1),
    num_classes=10,
  )


EXPECTED = rigl.expected_orders()
PUBLISHED = rigl.published_accuracies(rigl.IMAGENET, rigl.SOURCE)
SAME = False  # another net, other data
