"""The rows of RigL's tables on Fashion-MNIST: LeNet-300-100 for 20 epochs.

    python -m experiments.sweep --config=configs/dst_fashion_mnist.py --root=DIR
    python -m experiments.tables --table=dst_fashion_mnist --root=DIR

Dense, small-dense, SNIP, and, uniform and ERK, static, SET, SNFS, RigL, RigL
for 100 epochs, and gradual pruning, at 80, 90, 95 and 98 %, five seeds each:
285 runs. `:smoke` takes two sparsities, one seed and a few steps.

A drop fraction of 0.3 that a cosine anneals, an update every 100 steps until
75 % of the training (Evci et al., arXiv:1911.11134, section 4); batches of 128
and a cosine of the learning rate, as in the other configs of this data here.
Nobody has published these rows on Fashion-MNIST. What papers report is an
order: static below SET below RigL, which is at most as good as pruning; ERK
above uniform; RigL 5x above RigL; small-dense below RigL. results/README.md
says what came of it.
"""

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
  config = vision.fashion_mnist("lenet", 40 if smoke else STEPS, smoke)
  config.name = "dst_fashion_mnist"
  return config


def sweep(arg: str = ""):
  """The rows; see `paper_rows.by_steps`.

  Args:
    arg: As for `get_config`.

  Returns:
    For each run its row, and what to change in the config.
  """
  smoke = args.parse(arg).smoke
  return rigl.by_steps(get_config(arg), shape=(28, 28, 1), smoke=smoke)


EXPECTED = rigl.expected()
PUBLISHED = rigl.published(rigl.IMAGENET, rigl.SOURCE)
SAME = False  # another net, other data
