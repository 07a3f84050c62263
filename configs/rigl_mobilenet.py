"""RigL on ImageNet: MobileNet-v1, five times as long.

    python -m experiments.main --config=configs/rigl_mobilenet.py --workdir=DIR
    python -m experiments.main --config=configs/rigl_mobilenet.py:erk,1x ...

The recipe of configs/rigl_imagenet.py for five times as long, as the paper
trains every net of this table (Evci et al., Rigging the Lottery,
arXiv:1911.11134, section 4.1); `1x` is the plain length. The learning rate has
the schedule of the released code for this net (github.com/google-research/rigl,
rigl/imagenet_resnet): it rises over 8 epochs and is divided by 10 at 40, 75 and
95. The first convolution and the depthwise ones are dense, and sparsities are
those of the other layers: 0.75, or --config.algorithm.sparsity.

Expected test accuracy in percent, from the paper, means of 3 seeds; dense 72.1.
It quotes pruning from Zhu and Gupta, arXiv:1710.01878.

    sparsity   small-dense   pruning   RigL   RigL (ERK)
    0.75       66.0          67.7      71.5   71.9
    0.9        57.7          61.8      67.0   68.1

A net 1.98 times as wide at 75 % sparsity, which has as many weights as the
dense one: 76.4, and 77.0 with ERK. Not run in full: no GPU, no ImageNet. The
whole table:

    python -m experiments.sweep --config=configs/rigl_mobilenet.py --root=DIR
    python -m experiments.tables --table=rigl_mobilenet --root=DIR

Argument: words with commas between: an algorithm (`rigl`, `set`, `snfs`,
`seft`, `static`, `gmp`, `dense`), `erk`, `1x`, and `smoke` for a few steps of a
small net.
"""

import ml_collections

from experiments.config import args
from experiments.config.entry import Entry
from experiments.recipes import rigl, vision

_WIDE = 1.98  # 75 % sparse, as many weights as the dense net of width 1
_PRUNABLE = "(pointwise|logits).*kernel"
_DENSE = "^conv1|depthwise"  # all other kernels


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
    times={"5x": 5, "1x": 1},
  )
  return _run(
    words.algorithm, words.distribution, words.times, smoke=words.smoke
  )


def _run(
  algorithm: str,
  distribution: str = "uniform",
  times: int = 5,
  *,
  smoke: bool,
  width: float = 1.0,
) -> ml_collections.ConfigDict:
  config = vision.imagenet(32_000, batch_size=4096, times=times, smoke=smoke)
  config.name = f"{algorithm}_mobilenet"
  at = vision.epoch_to_step(config, 32_000 * 4096 / 1_281_167)
  config.model = {"name": "mobilenet_v1", "width": width}
  if smoke:
    small = {"width": width / 4, "blocks": ((64, 1), (128, 2))}
    config.model = {**config.model, **small}
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
    "warmup": at(8 / times),
    "boundaries": (at(40), at(75), at(95)),
    "factor": 0.1,
  }
  config.algorithm = vision.algorithm(
    algorithm,
    sparsity=0.75,
    distribution=distribution,
    delta_t=4 if smoke else 100,
    t_end=config.steps * 25 // 32,
    fraction=0.3,
    # Gale et al., arXiv:1902.09574, prune by another recipe. Here pruning
    # begins after an eighth of training and ends with RigL's updates.
    begin=config.steps // 8,
    prune_every=1 if smoke else 100,
  )
  if algorithm != "dense":
    config.algorithm.prunable = _PRUNABLE
  return config


def sweep(arg: str = "") -> rigl.Runs:
  """Plans the runs of the table, with three seeds for each row.

  Args:
    arg: `smoke` for one sparsity and one seed, or nothing.

  Yields:
    For each run its row, and by dotted key what to change in the config.

  Raises:
    UserError: If a word of the argument is unknown.
  """
  smoke = args.parse(arg).smoke
  base, dense = get_config(arg), _run("dense", smoke=smoke)
  options = dense.model.to_dict()
  net = {"shape": (224, 224, 3), "num_classes": 1000}
  prunable = rigl.sparse_share(options, _DENSE, **net)
  runs = {Entry("dense"): dense}
  for sparsity in (0.75,) if smoke else (0.75, 0.9):
    small = dense.copy_and_resolve_references()
    small.model = rigl.narrow_model(options, 1 - sparsity * prunable, **net)
    runs[Entry("small-dense", sparsity)] = small
    runs[Entry("pruning", sparsity)] = _run("gmp", smoke=smoke)
    for title, distribution in rigl.DISTRIBUTIONS.items():
      entry = Entry(f"RigL ({title})", sparsity)
      runs[entry] = _run("rigl", distribution, smoke=smoke)
  for title, distribution in rigl.DISTRIBUTIONS.items():
    runs[Entry(f"wide RigL ({title})", 0.75)] = _run(
      "rigl", distribution, smoke=smoke, width=_WIDE
    )
  for entry, config in runs.items():
    yield from rigl.with_seeds(entry, base, config, range(1 if smoke else 3))


EXPECTED = (
  ("small-dense", "RigL (uniform)"),
  ("pruning", "RigL (uniform)"),
  ("RigL (uniform)", "RigL (ERK)"),
  ("wide RigL (uniform)", "wide RigL (ERK)"),
)
PUBLISHED = rigl.published_accuracies(
  {
    "dense": {None: 72.1},
    "small-dense": {0.75: 66.0, 0.9: 57.7},
    "pruning": {0.75: 67.7, 0.9: 61.8},
    "RigL (uniform)": {0.75: 71.5, 0.9: 67.0},
    "RigL (ERK)": {0.75: 71.9, 0.9: 68.1},
    "wide RigL (uniform)": {0.75: 76.4},
    "wide RigL (ERK)": {0.75: 77.0},
  },
  "Evci et al. 2020, MobileNet-v1, ImageNet",
)
