"""The rows of RigL's tables on Fashion-MNIST: the Wide ResNet 22-2 of CIFAR-10.

    python -m experiments.sweep --config=configs/wrn_fashion_mnist.py --root=DIR
    python -m experiments.tables --table=wrn_fashion_mnist --root=DIR

The grid of configs/dst_fashion_mnist.py, three seeds each: 171 runs. Net and
recipe are those of configs/rigl_cifar10.py: 97,656 steps of 128 images, padded,
cropped and mirrored, SGD with Nesterov momentum, a learning rate of 0.1 divided
by 5 every 30,000 steps, updates until step 75,000. `:smoke` takes two
sparsities, one seed and a few steps of a small net.

Nobody has published these rows. What papers report is an order: static below
SET below RigL, which is at most as good as pruning; ERK above uniform; RigL 5x
above RigL; small-dense below RigL. Not run here: no GPU.
"""

import functools

import ml_collections

from experiments.config import args
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


def _run(*args, smoke: bool) -> ml_collections.ConfigDict:
  config = vision.rigl_cifar10(*args, smoke=smoke)
  config.name = "wrn_fashion_mnist"
  config.data = {
    "name": "fashion_mnist",
    "data_dir": ml_collections.config_dict.placeholder(str),  # Debian's
    "normalize": "image",
  }
  return config


def sweep(arg: str = ""):
  """The rows; see `paper_rows.rows`.

  Args:
    arg: As for `get_config`.

  Returns:
    For each run its row, and what to change in the config.
  """
  smoke = args.parse(arg).smoke
  return rigl.rows(
    get_config(arg),
    functools.partial(_run, smoke=smoke),
    sparsities=(0.8, 0.98) if smoke else (0.8, 0.9, 0.95, 0.98),
    seeds=range(1 if smoke else 3),
    shape=(28, 28, 1),
    num_classes=10,
  )


EXPECTED = rigl.expected()
PUBLISHED = rigl.published(rigl.IMAGENET, rigl.SOURCE)
SAME = False  # another net, other data
