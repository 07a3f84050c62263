"""JaxPruner's table: nine methods on a ResNet-50 and ImageNet, at 80 %.

    python -m experiments.sweep \
      --config=configs/jaxpruner_imagenet.py --root=DIR
    python -m experiments.tables --table=jaxpruner_imagenet --root=DIR

The recipe of Lee et al., JaxPruner (arXiv:2304.14082), from its released config
(github.com/google-research/jaxpruner, baselines/scenic/configs/
imagenet_resnet_config.py): 100 epochs of 312 steps with batches of 4,096; SGD
with momentum 0.9 and L2 1e-4; a learning rate that rises to 1.6 over 5 epochs
and falls by a cosine; uniform sparsity, the first convolution dense. Pruning
follows a cubic from step 10,000 to 25,000, every 1,000 steps, by magnitude, by
saliency |w g|, at random, or by magnitude with one threshold for all layers.
SET and RigL move a tenth of the weights every 1,000 steps from 10,000 to
25,000; this RigL is not its paper's recipe.

Expected test accuracy in percent, from the README of that repository, whose
table does not say at which sparsity; the config has 80 %:

    dense  random  magnitude  saliency  global  STE    static  SET    RigL
    76.67  70.19   75.53      74.93     75.49   73.54  71.34   74.57  74.75

Differences: mask updates of SET and RigL begin with training, not at step
10,000, and their fraction is annealed by a cosine; JaxPruner's cubic runs one
step ahead. Not run: that takes a GPU and the data.

Argument: `smoke` for a few steps of a small net. A single run prunes by
magnitude.
"""

from typing import Any

import ml_collections

from experiments.config import args, grid
from experiments.config.entry import Entry
from experiments.recipes import rigl, vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config of gradual magnitude pruning.

  Args:
    arg: `smoke` for a few steps of a small net, or nothing.

  Returns:
    The config.
  """
  return _run("magnitude", arg)


def _run(row: str, arg: str) -> ml_collections.ConfigDict:
  smoke = args.parse(arg).smoke
  config = vision.imagenet(31_200, batch_size=4096, smoke=smoke)
  config.name = "jaxpruner_imagenet"
  at = vision.epoch_to_step(config, 100)
  config.model = {
    **config.model,
    "zero_init": True,
    "kernel_init": "lecun_normal",
  }
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  config.schedule = {"name": "cosine", "learning_rate": 1.6, "warmup": at(5)}
  config.algorithm = _algorithm(row, smoke)
  return config


def _algorithm(row: str, smoke: bool) -> dict[str, Any]:
  if row == "dense":
    return {"name": "dense"}
  begin, end = (5, 15) if smoke else (10_000, 25_000)
  every = 5 if smoke else 1000
  shared = {
    "sparsity": 0.8,
    "distribution": "uniform",
    "prunable": "^(stage|logits).*kernel",
  }
  pruning = {"name": "gmp", "begin": begin, "end": end, "delta_t": every}
  dynamic = {"delta_t": every, "t_end": end, "fraction": 0.1}
  by_row = {
    "random": {**pruning, "score": "random"},
    "magnitude": pruning,
    "saliency": {**pruning, "score": "sensitivity"},
    "global magnitude": {**pruning, "scope": "global"},
    "magnitude STE": {"name": "ste", "begin": begin, "end": end},
    "static": {"name": "static"},
    "SET": {"name": "set", **dynamic},
    "RigL": {"name": "rigl", **dynamic},
  }
  return {**shared, **by_row[row]}


_TABLE = {
  "dense": 76.67,
  "random": 70.19,
  "magnitude": 75.53,
  "saliency": 74.93,
  "global magnitude": 75.49,
  "magnitude STE": 73.54,
  "static": 71.34,
  "SET": 74.57,
  "RigL": 74.75,
}


def sweep(arg: str = "") -> rigl.Runs:
  """Plans the runs of the table, with three seeds for each row.

  Args:
    arg: As for `get_config`; `smoke` takes one seed.

  Returns:
    For each run its row, and by dotted key what to change in the config.
  """
  smoke = args.parse(arg).smoke
  base = get_config(arg)
  return [
    (entry, {**grid.replaced(base, _run(entry.method, arg)), "seed": seed})
    for entry in _ENTRIES
    for seed in range(1 if smoke else 3)
  ]


_ENTRIES = [Entry(row, None if row == "dense" else 0.8) for row in _TABLE]
EXPECTED = (
  ("random", "static"),
  ("static", "SET"),
  ("SET", "RigL"),
  ("RigL", "magnitude"),
  ("saliency", "magnitude"),
)
PUBLISHED = rigl.published_accuracies(
  {entry.method: {entry.sparsity: _TABLE[entry.method]} for entry in _ENTRIES},
  "google-research/jaxpruner, README",
)
