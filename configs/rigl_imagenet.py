"""RigL on ImageNet: ResNet-50.

    python -m experiments.main --config=configs/rigl_imagenet.py --workdir=DIR
    python -m experiments.main --config=configs/rigl_imagenet.py:erk,5x ...

The recipe of Evci et al., Rigging the Lottery (arXiv:1911.11134, section 4.1):
32,000 steps with batches of 4,096; SGD with momentum 0.9 and L2 1e-4; label
smoothing 0.1; a learning rate that rises to 1.6 over 5 epochs and is divided by
10 at epochs 30, 70 and 90; an update every 100 steps until step 25,000, with a
drop fraction of 0.3 that is annealed by a cosine. In `5x` all of this lasts
five times as long, but for the interval between updates and the rise of the
learning rate. Nesterov momentum is from the released code
(github.com/google-research/rigl, rigl/imagenet_resnet).

Uniform sparsity leaves the first convolution dense; `erk` makes all layers
sparse. The sparsity is 0.8, or --config.algorithm.sparsity.

Expected test accuracy in percent, from the paper's figure 2 and table 4, means
of 3 seeds; dense 76.8. FLOPs relative to dense are in results/flops.csv.

    sparsity       static  SNIP  SET   RigL  RigL 5x  pruning
    0.8  uniform   70.6    72.0  72.9  74.6  76.6     75.6
    0.9  uniform   65.8    67.2  69.6  72.0  75.7     73.9
    0.95 uniform   59.5    57.8  64.4  67.5  73.1     70.6
    0.8  ERK       72.1    -     -     75.1  77.1     -
    0.9  ERK       67.7    -     -     73.0  76.4     -
    0.95 ERK       -       -     -     69.7  74.5     -

Not run in full: no GPU, no ImageNet. The whole table:

    python -m experiments.sweep --config=configs/rigl_imagenet.py --root=DIR
    python -m experiments.tables --table=rigl_imagenet --root=DIR

Argument: words with commas between: an algorithm (`rigl`, `set`, `snfs`,
`seft`, `static`, `gmp`, `dense`), `erk`, `5x`, and `smoke` for a few steps of a
small net.
"""

import functools

import ml_collections

from experiments.config import args
from experiments.recipes import rigl, vision


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: Words with commas between; see above.

  Returns:
    The config.
  """
  words = args.parse(
    arg,
    algorithm=vision.COMMON,
    distribution=rigl.WORDS,
    times={"1x": 1, "5x": 5},
  )
  return _run(
    words.algorithm, words.distribution, words.times, smoke=words.smoke
  )


def _run(
  algorithm: str, distribution: str, times: int, *, smoke: bool
) -> ml_collections.ConfigDict:
  config = vision.imagenet(32_000, batch_size=4096, times=times, smoke=smoke)
  config.name = f"{algorithm}_imagenet"
  at = vision.epoch_to_step(config, 32_000 * 4096 / 1_281_167)
  config.label_smoothing = 0.1
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
  }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 1.6,
    # As many passes over the data however long the training; `at` counts
    # epochs of the plain length.
    "warmup": at(5 / times),
    "boundaries": (at(30), at(70), at(90)),
    "factor": 0.1,
  }
  config.algorithm = vision.algorithm(
    algorithm,
    sparsity=0.8,
    distribution=distribution,
    delta_t=4 if smoke else 100,
    t_end=config.steps * 25 // 32,
    fraction=0.3,
    # Gale et al., arXiv:1902.09574, prune by another recipe. Here pruning
    # begins after an eighth of training and ends with RigL's updates.
    begin=config.steps // 8,
    prune_every=1 if smoke else 100,
  )
  if algorithm != "dense" and distribution == "uniform":
    config.algorithm.prunable = "^(stage|logits).*kernel"
  return config


def sweep(arg: str = "") -> rigl.Runs:
  """Plans the runs of the table; see `rigl.table_runs`.

  Args:
    arg: `smoke` for one sparsity and one seed, or nothing.

  Returns:
    For each run its row, and by dotted key what to change in the config.

  Raises:
    UserError: If a word of the argument is unknown.
  """
  smoke = args.parse(arg).smoke
  return rigl.table_runs(
    get_config(arg),
    functools.partial(_run, smoke=smoke),
    sparsities=(0.8,) if smoke else (0.8, 0.9, 0.95, 0.965),
    seeds=range(1 if smoke else 3),
    shape=(224, 224, 3),
    num_classes=1000,
  )


EXPECTED = rigl.expected_orders()
PUBLISHED = rigl.published_accuracies(rigl.IMAGENET, rigl.SOURCE)
