"""RigL on ImageNet: ResNet-50, and MobileNet-v1.

    python -m experiments.main --config=configs/rigl_imagenet.py --workdir=DIR
    python -m experiments.main --config=configs/rigl_imagenet.py:erk,5x ...

Recipe, to the letter (Evci et al., Rigging the Lottery, arXiv:1911.11134,
section 4.1): batches of 4,096 for 32,000 steps; SGD with momentum 0.9, L2 1e-4,
label smoothing 0.1, a learning rate of 1.6 that rises over 5 epochs and is
divided by 10 at epochs 30, 70 and 90; an update every 100 steps until step
25,000, with a drop fraction of 0.3 that a cosine anneals. `5x` lasts five times
as long, and so do all its parts but the interval of updates and the rise. Where
the paper is silent, its released code speaks (github.com/google-research/rigl,
rigl/imagenet_resnet): Nesterov momentum. MobileNet has that code's schedule:
a rise over 8 epochs, and divisions at 40, 75 and 95; its depthwise convolutions
stay dense.

Uniform sparsity leaves the first convolution dense; `erk` makes all layers
sparse, but for those. Sparsity is 0.8 (MobileNet: 0.75), another by
--config.algorithm.sparsity.

Expected test accuracy in percent, by the paper's figure 2 and table 4, means of
3 seeds; dense 76.8. FLOPs relative to dense are in results/flops.csv.

    sparsity       static  SNIP  SET   RigL  RigL 5x  pruning
    0.8  uniform   70.6    72.0  72.9  74.6  76.6     75.6
    0.9  uniform   65.8    67.2  69.6  72.0  75.7     73.9
    0.95 uniform   59.5    57.8  64.4  67.5  73.1     70.6
    0.8  ERK       72.1    -     -     75.1  77.1     -
    0.9  ERK       67.7    -     -     73.0  76.4     -
    0.95 ERK       -       -     -     69.7  74.5     -

MobileNet-v1, 5x: dense 72.1; RigL 71.5 at 0.75 and 67.0 at 0.9, with ERK 71.9
and 68.1; pruning 67.7 and 61.8; small dense nets (`--config.model.width`) 66.0
and 57.7. Not run here in full: no GPU, no ImageNet.

All rows of ResNet-50:

    python -m experiments.sweep --config=configs/rigl_imagenet.py --root=DIR
    python -m experiments.tables --table=rigl_imagenet --root=DIR

The argument is words with commas between: an algorithm (`rigl`, `set`, `snfs`,
`seft`, `static`, `gmp`, `dense`), `mobilenet`, `erk`, `5x`, and `smoke` for a
few steps of a small net.
"""

import ml_collections

from experiments import paper_rows, recipes

_EPOCHS = 32_000 * 4096 / 1_281_167
_WORDS = ("mobilenet", "erk", "5x")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: Words with commas between; see above.

  Returns:
    The config.
  """
  words = [word for word in arg.split(",") if word]
  mine = {word for word in words if word in _WORDS}
  rest = ",".join(word for word in words if word not in mine)
  algorithm, _, smoke = recipes.parse(rest, variants=_WORDS)
  times = 5 if "5x" in mine else 1
  config = recipes.imagenet(32_000 * times, batch_size=4096, smoke=smoke)
  config.name = "_".join([algorithm, "imagenet", *sorted(mine)])
  at = recipes.epochs(config, _EPOCHS)
  config.label_smoothing = 0.1
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
  }
  mobile = "mobilenet" in mine
  if mobile:
    config.model = {"name": "mobilenet_v1"}
    if smoke:
      config.model = {
        "name": "mobilenet_v1",
        "width": 0.25,
        "blocks": ((64, 1), (128, 2)),
      }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 1.6,
    "warmup": at((8 if mobile else 5) / times),
    "boundaries": tuple(map(at, (40, 75, 95) if mobile else (30, 70, 90))),
    "factor": 0.1,
  }
  part = recipes.algorithm(
    algorithm,
    sparsity=0.75 if mobile else 0.8,
    delta_t=4 if smoke else 100,
    t_end=config.steps * 25 // 32,
    # Pruning of Gale et al., arXiv:1902.09574, is another recipe; these are
    # the shares of training in which RigL moves weights.
    begin=config.steps // 8,
    end=config.steps * 25 // 32,
    prune_every=4 if smoke else 100,
    distribution="erdos_renyi_kernel" if "erk" in mine else "uniform",
  )
  if algorithm != "dense" and mobile:
    part["prunable"] = "(pointwise|logits).*kernel"
  elif algorithm != "dense" and "erk" not in mine:
    part["prunable"] = "^(stage|logits).*kernel"
  config.algorithm = part
  return config


def sweep(arg: str = ""):
  """All rows of ResNet-50, with three seeds each; see `paper_rows.rows`.

  Args:
    arg: `smoke` for one sparsity and one seed, or nothing.

  Returns:
    For each run its row, and what to change in the config.

  Raises:
    UserError: If the argument is another.
  """
  _, _, smoke = recipes.parse(arg)

  def make(algorithm, distribution, times):
    more = [arg, algorithm]
    more += ["erk"] if distribution == "erdos_renyi_kernel" else []
    more += ["5x"] if times == 5 else []
    return get_config(",".join(more))

  return paper_rows.rows(
    get_config(arg),
    make,
    sparsities=(0.8,) if smoke else (0.8, 0.9, 0.95, 0.965),
    seeds=range(1 if smoke else 3),
    shape=(224, 224, 3),
    num_classes=1000,
  )


EXPECTED = paper_rows.expected()
PUBLISHED = paper_rows.published(paper_rows.IMAGENET, paper_rows.SOURCE)
