"""Seventeen ways to train a sparse net, on Fashion-MNIST at 50 to 95 %.

    python -m experiments.main --config=configs/families_fashion_mnist.py \
      --workdir=DIR

The argument is a net (`lenet`, LeNet-300-100 for ten epochs, the default; or
`conv`, two small convolutions and two dense layers for three), `smoke`, or both
with a comma between. Each method has its paper's schedule, scaled to these
steps (`recipes.family`), ERK, and the common optimizer; Top-KAST trains twice
the weights that the forward pass sees, with its own penalty in place of the
common weight decay. Soft movement pruning and STR find their sparsity
themselves: the strength that is to lead near each one was chosen by single
runs, and the table says where they ended.

Nobody has published these on Fashion-MNIST. What papers report: static below
SET below RigL (Evci et al., arXiv:1911.11134); Top-KAST above static
(Jayakumar et al., arXiv:2106.03517); straight-through magnitudes near gradual
pruning (Lee et al., arXiv:2304.14082); SRigL close to RigL (Lasby et al.,
arXiv:2305.02299); GraNet and RigL-ITOP above RigL (Liu et al.,
arXiv:2106.10404 and arXiv:2102.02887); AC/DC near dense (Peste et al.,
arXiv:2106.12379).
"""

import ml_collections

from experiments.config import args
from experiments.drivers import compare
from experiments.recipes import vision

METHODS = (
  *("dense", "static", "set", "rigl", "rigl_itop", "srigl", "mest", "mest_s"),
  *("gmp", "granet", "ac_dc", "ste", "sr_ste", "top_kast"),
  *("movement", "soft_movement", "str"),
)
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
STEPS = {"lenet": 4800, "conv": 1600}
SETTINGS = {
  "lenet": {
    "soft_movement": (26.0, 70.0, 115.0, 160.0),
    "str": (0.0046, 0.014, 0.0225, 0.031),
  },
  "conv": {
    "soft_movement": (30.0, 140.0, 280.0, 560.0),
    "str": (0.0043, 0.0096, 0.0143, 0.0218),
  },
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: A net, `smoke`, or both with a comma between.

  Returns:
    The config.
  """
  words = args.parse(arg, net=tuple(STEPS))
  net, smoke = words.net, words.smoke
  config = compare.defaults()
  config.name = f"families_fashion_mnist_{net}"
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.sparsities = (0.9,) if smoke else SPARSITIES

  base = vision.fashion_mnist(net, STEPS[net], smoke=smoke)
  base.batch_size = 128
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  base.schedule = {"name": "cosine", "learning_rate": 0.05}
  config.base = base

  config.methods = METHODS
  config.algorithms = {
    name: vision.algorithm_by_shares(
      name,
      steps=base.steps,
      every=base.steps // 40,
      output="^logits",
    )
    for name in METHODS
  }
  config.algorithms.sr_ste.pattern = {"name": "unstructured"}
  config.optimizers = {"top_kast": {**base.optimizer, "weight_decay": 0.0}}
  config.settings = {
    "top_kast": tuple(
      (s, {"backward_sparsity": round(max(0.0, 2 * s - 1), 6)})
      for s in config.sparsities
    ),
    "soft_movement": _settings(config, net, "soft_movement", "penalty"),
    "str": tuple(
      (s, {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": w}})
      for s, w in zip(SPARSITIES, SETTINGS[net]["str"], strict=True)
      if s in config.sparsities
    ),
  }
  config.expected = (
    ("static", "set"),
    ("set", "rigl"),
    ("rigl", "gmp"),
    ("gmp", "dense"),
    ("static", "top_kast"),
    ("static", "ste"),
    ("static", "srigl"),
    ("srigl", "rigl"),
    ("rigl", "rigl_itop"),
    ("rigl", "granet"),
    ("mest", "mest_s"),
    ("static", "mest"),
    ("ac_dc", "dense"),
  )
  return config


def _settings(config, net, method, key):
  return tuple(
    (s, {key: value})
    for s, value in zip(SPARSITIES, SETTINGS[net][method], strict=True)
    if s in config.sparsities
  )
