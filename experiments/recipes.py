"""What config files share: arguments, keywords of algorithms, recipes."""

from collections.abc import Collection
from typing import Any

import ml_collections

from experiments import build, lottery
from experiments.errors import unknown


def parse(
  arg: str, *, algorithm: str = "rigl", variants: Collection[str] = ()
) -> tuple[str, str | None, bool]:
  """Reads a config's argument, words with commas between.

  Args:
    arg: What follows the colon in `--config=FILE.py:ARG`.
    algorithm: The algorithm if no word names one.
    variants: Other words that the config knows; one may be given.

  Returns:
    The algorithm, the variant or None, and whether `smoke` is among them.

  Raises:
    UserError: If a word is none of these.
  """
  variant, smoke = None, False
  for word in filter(None, arg.split(",")):
    if word == "smoke":
      smoke = True
    elif word in variants:
      variant = word
    elif word in build.ALGORITHMS:
      algorithm = word
    else:
      known = {"smoke", *variants, *build.ALGORITHMS}
      raise unknown("argument of the config", word, known)
  return algorithm, variant, smoke


def algorithm(
  name: str,
  *,
  sparsity: float,
  delta_t: int,
  t_end: Any,
  begin: Any,
  end: Any,
  prune_every: int,
  fraction: float = 0.3,
  distribution: str = "erdos_renyi_kernel",
) -> dict[str, Any]:
  """The part `algorithm` of a config, from the keywords of all of them.

  Args:
    name: The algorithm.
    sparsity: The share of zeros; of no use to `dense`.
    delta_t: Steps between mask updates of dynamic sparse training.
    t_end: Its step from which masks stay, or a reference to one.
    begin: First step that prunes, of `gmp`, or a reference.
    end: Last step that prunes, or a reference.
    prune_every: Steps between two of them.
    fraction: The share of active weights that moves at first.
    distribution: How weights are shared out among layers.

  Returns:
    The mapping.
  """
  if name == "dense":
    return {"name": name}
  config = {"name": name, "sparsity": sparsity, "distribution": distribution}
  if name == "gmp":
    config |= {"delta_t": prune_every, "begin": begin, "end": end}
  elif name != "static":
    config |= {"delta_t": delta_t, "t_end": t_end, "fraction": fraction}
  return config


def imp_cifar10(*, rewind: int, smoke: bool) -> ml_collections.ConfigDict:
  """Iterative magnitude pruning on CIFAR-10, as open_lth trains its nets.

  Args:
    rewind: The step that weights are rewound to.
    smoke: Whether to take a few steps only, of small batches.

  Returns:
    The config of lottery tickets, but for its name and its model.
  """
  epoch = 391  # batches of 128, the last one smaller there
  config = lottery.defaults()
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.levels = 2 if smoke else 14
  base = config.base
  base.steps = 4 if smoke else 160 * epoch
  base.batch_size = 8 if smoke else 128
  base.augment = True
  base.data = {
    "name": "cifar10",
    "data_dir": ml_collections.config_dict.placeholder(str),  # TFDS's own
    "mode": "constant",
  }
  base.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_vectors": True,
  }
  base.schedule = {
    "name": "piecewise",
    "learning_rate": 0.1,
    "boundaries": (80 * epoch, 120 * epoch),
    "factor": 0.1,
  }
  base.log_every = 2 if smoke else epoch
  base.eval_every = 2 if smoke else 10 * epoch
  base.eval_batch_size = 8 if smoke else 1000
  base.checkpoint_every = 2 if smoke else 20 * epoch
  rewind = 1 if smoke else rewind
  config.branches = {
    "rewound": {"retrain": "weights", "step": rewind},
    "ticket": {"retrain": "weights", "step": 0},
    "reinit": {
      "retrain": "reinit",
      "step": rewind,
      "masks": "same",
      "of": "rewound",
    },
    "random": {"retrain": "weights", "step": rewind, "masks": "random"},
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
