"""Lottery tickets beside their controls: which branches to prune and compare.

How a net is trained stands in the config files.
"""

import ml_collections

from experiments.drivers import lottery


def rewinding(
  *, levels: int, step: int, smoke: bool
) -> ml_collections.ConfigDict:
  """Makes the config of tickets rewound to a step, to step 0, and controls.

  The branches are those of Frankle et al., arXiv:1912.05671: `rewound` to the
  weights of `step`; `ticket`, to those of step 0; `reinit`, the masks of
  `rewound` on newly drawn weights; `random`, masks pruned at random. The
  stability of the first two is measured at every level.

  Args:
    levels: How many times to prune.
    step: The training step that `rewound` returns to.
    smoke: Whether to prune twice only, with one seed, and rewind to step 1.

  Returns:
    The config, without a name and a base.
  """
  config = lottery.defaults()
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.levels = 2 if smoke else levels
  step = 1 if smoke else step
  config.branches = {
    "rewound": {"retrain": "weights", "step": step},
    "ticket": {"retrain": "weights", "step": 0},
    "reinit": {
      "retrain": "reinit",
      "step": step,
      "masks": "same",
      "of": "rewound",
    },
    "random": {"retrain": "weights", "step": step, "masks": "random"},
  }
  config.methods = ("rewound", "ticket", "reinit", "random")
  config.stability = {
    "branches": ("rewound", "ticket"),
    "levels": tuple(range(config.levels + 1)),
    "points": 3 if smoke else 30,
  }
  config.expected = (
    ("ticket", "rewound"),
    ("reinit", "rewound"),
    ("random", "rewound"),
    ("dense", "rewound"),
  )
  return config
