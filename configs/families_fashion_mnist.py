"""Seventeen ways to train a sparse net, on Fashion-MNIST at 50 to 95 %.

    python -m experiments.main --config=configs/families_fashion_mnist.py \
      --workdir=DIR

Each method follows its paper's shares of training, scaled to these steps
(`vision.algorithm_by_shares`), with ERK and one optimizer for all. Top-KAST
trains twice the weights of the forward pass, and its own penalty replaces the
weight decay. Soft movement pruning and STR cannot be given a sparsity; the
strengths below come near each one, by single runs, and the table shows the
sparsity that each reached.

Expected: nobody has published these on Fashion-MNIST. Papers report:
static < SET < RigL (Evci et al., arXiv:1911.11134); Top-KAST above static
(Jayakumar et al., arXiv:2106.03517); straight-through magnitudes near gradual
pruning (Lee et al., arXiv:2304.14082); SRigL close to RigL (Lasby et al.,
arXiv:2305.02299); GraNet and RigL-ITOP above RigL (Liu et al.,
arXiv:2106.10404 and arXiv:2102.02887); AC/DC near dense (Peste et al.,
arXiv:2106.12379).

Argument: a net, `lenet` (LeNet-300-100 for ten epochs, the default) or `conv`
(two small convolutions and two dense layers, for three epochs), and `smoke`.
"""

from collections.abc import Sequence

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
# Penalty of soft movement pruning, and weight decay of STR's thresholds, for
# each of SPARSITIES.
STRENGTHS = {
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
  if smoke and net == "lenet":
    # So that seventeen programs compile in a minute.
    base.model = {**base.model, "hidden": (32,)}
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
  config.optimizers = {"top_kast": {**base.optimizer, "weight_decay": 0.0}}
  config.settings = {
    "top_kast": tuple(
      (s, {"backward_sparsity": round(max(0.0, 2 * s - 1), 6)})
      for s in config.sparsities
    ),
    "soft_movement": tuple(
      (s, {"penalty": strength})
      for s, strength in _strengths("soft_movement", net, config.sparsities)
    ),
    "str": tuple(
      (s, {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": w}})
      for s, w in _strengths("str", net, config.sparsities)
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


def _strengths(
  method: str, net: str, sparsities: Sequence[float]
) -> list[tuple[float, float]]:
  """Pairs each of the sparsities with the strength that leads near it."""
  pairs = zip(SPARSITIES, STRENGTHS[net][method], strict=True)
  return [(s, strength) for s, strength in pairs if s in sparsities]
