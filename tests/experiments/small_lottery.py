"""Lottery tickets in seconds: digits, a net of 64-8-10, all branches."""

import ml_collections

from experiments.drivers import lottery
from tests.experiments import small

STEP = 6
BRANCHES = {
  "ticket": {},
  "rewound": {"step": STEP},
  "learning_rate": {"retrain": "learning_rate", "step": STEP},
  "fine_tuning": {"retrain": "fine_tune", "step": STEP},
  "one_shot": {"masks": "one_shot"},
  "random": {"masks": "random"},
  "reinit": {"retrain": "reinit", "masks": "same", "of": "ticket"},
  "shuffled": {"masks": "shuffled", "of": "ticket"},
  "nested": {"masks": "nested", "of": "ticket"},
}


def make(
  seeds=(0,), levels=2, methods=tuple(BRANCHES), steps=16
) -> ml_collections.ConfigDict:
  """Makes the config of some of the branches."""
  config = lottery.defaults()
  config.name = "small tickets"
  config.seeds = seeds
  config.levels = levels
  base = small.get_config("dense")
  base.algorithm = {"name": "static", "sparsity": 0.0}
  base.steps = steps
  base.checkpoint_every = 8
  base.checkpoints_to_keep = 1
  base.schedule = {"name": "cosine", "learning_rate": 0.03, "end": 0.003}
  config.base = base
  config.branches = BRANCHES
  config.methods = methods
  config.stability = {
    "branches": tuple(m for m in methods if m in ("ticket", "rewound")),
    "levels": (0, 2),
    "points": 5,
  }
  config.expected = (("reinit", "ticket"), ("dense", "ticket"))
  return config


def get_config() -> ml_collections.ConfigDict:
  """A longer one, for processes to be killed in."""
  methods = ("rewound", "learning_rate", "random")
  return make(methods=methods, steps=200)
