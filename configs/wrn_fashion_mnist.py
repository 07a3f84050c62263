"""RigL's tables on Fashion-MNIST: the Wide ResNet 22-2 of CIFAR-10.

    python -m experiments.sweep --config=configs/wrn_fashion_mnist.py --root=DIR
    python -m experiments.tables --table=wrn_fashion_mnist --root=DIR

The grid of configs/dst_fashion_mnist.py with three seeds each: 171 runs. Net
and recipe are those of configs/rigl_cifar10.py (Evci et al., Rigging the
Lottery, arXiv:1911.11134, section 4.3).

Expected: nobody has published this table. Papers report an order:
static < SET < RigL <= pruning; uniform < ERK; RigL < RigL 5x;
small-dense < RigL. Not run: no GPU.

Arguments: `tenth` for the dense net, and static masks, SET, RigL and pruning
with ERK at 90 and 95 %, each for a tenth of the steps, with every boundary of
its schedules at a tenth ("RigL 0.1x" in the table): 27 runs, for

    python -m experiments.sweep --config=configs/wrn_fashion_mnist.py:tenth \
      --launcher=population --root=DIR
    python -m experiments.tables --table=wrn_fashion_mnist --arg=tenth \
      --root=DIR

`smoke` for two sparsities, one seed and a few steps of a small net.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import ml_collections

from experiments.config import args, defaults
from experiments.config.entry import Entry
from experiments.recipes import rigl, vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config of the dense run.

  Args:
    arg: `smoke` or nothing.

  Returns:
    The config.
  """
  return _run("dense", "uniform", smoke=_parse(arg).smoke)


def _parse(arg: str) -> Any:
  return args.parse(arg, share=("whole", "tenth"))


def _run(
  algorithm: str, distribution: str, times: float = 1, *, smoke: bool
) -> ml_collections.ConfigDict:
  def scaled(steps: int) -> int:
    return round(times * steps)

  config = defaults.training_run()
  config.name = "wrn_fashion_mnist"
  config.steps = scaled(6 if smoke else 97_656)
  config.batch_size = 8 if smoke else 128
  config.augment = True
  config.data = {
    "name": "fashion_mnist",
    "data_dir": ml_collections.config_dict.placeholder(str),  # Debian's
    "normalize": "image",
  }
  config.model = {
    "name": "wrn",
    "depth": 10 if smoke else 22,
    "width": 1 if smoke else 2,
    "dropout": 0.3,
    "kernel_init": "glorot_uniform",
  }
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
  }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 0.1,
    "boundaries": (scaled(30_000), scaled(60_000), scaled(90_000)),
    "factor": 0.2,
  }
  config.log_every = 2 if smoke else 500
  config.eval_every = 3 if smoke else 2000
  config.eval_batch_size = 8 if smoke else 1000
  config.checkpoint_every = 3 if smoke else 5000
  config.algorithm = vision.algorithm(
    algorithm,
    sparsity=0.9,
    distribution=distribution,
    delta_t=2 if smoke else 100,
    t_end=scaled(5 if smoke else 75_000),
    fraction=0.3,
    # Pruning as in the released code: steps 20,000 to 75,000, every 1,000.
    begin=1 if smoke else scaled(20_000),
    end=5 if smoke else scaled(75_000),
    prune_every=2 if smoke else scaled(1000),
  )
  return config


def sweep(arg: str = "") -> rigl.Runs:
  """Plans the runs of the table; see `rigl.table_runs`.

  Args:
    arg: As for `get_config`.

  Returns:
    For each run its row, and by dotted key what to change in the config.
  """
  smoke, share = _parse(arg).smoke, _parse(arg).share
  if share == "tenth":
    return _tenth(smoke=smoke)
  return rigl.table_runs(
    get_config(arg),
    functools.partial(_run, smoke=smoke),
    sparsities=(0.8, 0.98) if smoke else (0.8, 0.9, 0.95, 0.98),
    seeds=range(1 if smoke else 3),
    shape=(28, 28, 1),
    num_classes=10,
  )


def _tenth(*, smoke: bool) -> Iterator[tuple[Entry, dict[str, Any]]]:
  times = 1 if smoke else 0.1
  base, seeds = get_config("smoke" if smoke else ""), range(1 if smoke else 3)
  dense = _run("dense", "uniform", times, smoke=smoke)
  yield from rigl.with_seeds(Entry("dense 0.1x"), base, dense, seeds)
  for sparsity in (0.9, 0.95):
    for method in _CUT:
      algorithm, erk = rigl.METHODS[method], rigl.DISTRIBUTIONS["ERK"]
      config = _run(algorithm, erk, times, smoke=smoke)
      entry = Entry(f"{method} 0.1x (ERK)", sparsity)
      yield from rigl.with_seeds(entry, base, config, seeds)


_CUT = ("static", "SET", "RigL", "pruning")
EXPECTED = [
  *rigl.expected_orders(),
  *(
    (f"{worse} 0.1x (ERK)", f"{better} 0.1x (ERK)")
    for worse, better in itertools.pairwise(_CUT)
  ),
]
PUBLISHED = rigl.published_accuracies(rigl.IMAGENET, rigl.SOURCE)
SAME = False  # another net, other data
