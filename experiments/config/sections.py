"""What configs of training runs, comparisons and lottery tickets can have."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import data, models
from experiments.config import algorithms, defaults, parts
from experiments.config.optimizers import OPTIMIZERS, SCHEDULES
from experiments.config.schema import Key, Section, keywords, of_defaults

OPTIMIZER = Section("optimizer", OPTIMIZERS, after=1)
SCHEDULE = Section("schedule", SCHEDULES, in_code={"steps"})
_BY_PATH = Key(
  (),
  Sequence[Any],
  "Sparsities of other leaves, pairs of a regular expression and a sparsity.",
  needs="distribution",
)


def _fill(name: str, steps: int, options: Mapping[str, Any]) -> dict[str, Any]:
  """Makes an algorithm's keywords from the shares of its paper."""
  row = algorithms.find(name)
  every = options.get("delta_t") or max(1, steps // 40)
  filled = algorithms.by_shares(name, steps, every)
  if "never_ablate" in keywords(row.function):
    filled["never_ablate"] = f"^{models.OUTPUT}"
  filled = {k: v for k, v in filled.items() if k not in options}
  both = {**filled, **options}
  if row.last in both:
    begin, last = both.get("begin", 0), both[row.last]
    last -= (last - begin) % both.get("delta_t", every)
    if last != both[row.last]:
      filled[row.last] = last
  return filled


ALGORITHM = Section(
  "algorithm",
  {name: row.function for name, row in algorithms.ALGORITHMS.items()},
  after=1,
  in_code={"key", *parts.IN_CODE},
  more={"by_path": _BY_PATH},
  inner={
    "pattern": Section("pattern", parts.PATTERNS, words=True),
    "grown_values": Section("initializer", parts.GROWN),
    "optimizer": Section(
      "optimizer",
      OPTIMIZERS,
      after=1,
      more={
        "rate_factor": Key(1.0, float, "Its learning rate by that of the run.")
      },
    ),
  },
  lookup=lambda name: algorithms.find(name).function,
  fill=_fill,
)
_INITIAL = Section(
  "initial",
  parts.INITIAL,
  plain={parts.DRAWN},
  after=4,
  in_code={"key", "prunable"},
  more={
    "batches": Key(1, int, "Batches of training data to take."),
    "temperature": Key(None, float | None, "What logits are divided by."),
    "shuffle": Key(False, bool, "Whether to shuffle masks in each layer."),
    "reinit": Key(False, bool, "Whether to train newly drawn weights."),
    "by_path": _BY_PATH,
  },
)
TRAINING = Section(
  more=of_defaults(defaults.training_run),
  inner={
    "data": Section("data set", data.DATASETS),
    "model": Section(
      "model",
      models.MODELS,
      in_code={"num_classes", "parent", "name"},
      more={
        "widths": Key(
          None,
          Mapping[str, int] | None,
          "Features of layers by their paths, in place of the model's own.",
        )
      },
    ),
    "optimizer": OPTIMIZER,
    "schedule": SCHEDULE,
    "algorithm": ALGORITHM,
    "initial": _INITIAL,
  },
)
COMPARISON = Section(
  inner={
    "base": TRAINING,
    "algorithms": Section(inner={"*": ALGORITHM}),
    "initial": Section(inner={"*": _INITIAL}),
    "optimizers": Section(inner={"*": OPTIMIZER}),
    "settings": Section(inner={"*": Section()}),
  },
  instead={
    r"base\.algorithm(\..*)?": "algorithms.NAME",
    r"algorithms\.[^.]*\.sparsity": "sparsities",
    r"base\.seed": "seeds",
  },
)
SHRINKING = Section(
  inner={"base": TRAINING, "then": TRAINING},
  instead={
    r"base\.algorithm\.sparsity": "sparsities",
    r"(base|then)\.seed": "seeds",
  },
)
LOTTERY = Section(
  instead={r"base\.seed": "seeds"},
  inner={
    "base": TRAINING,
    "stability": Section(
      more={
        "branches": Key((), Sequence[str], "The branches to examine."),
        "levels": Key((), Sequence[int], "At which levels."),
        "points": Key(30, int, "Points of the line between two nets."),
      }
    ),
    "branches": Section(
      inner={
        "*": Section(
          more={
            "retrain": Key("weights", str, "What it does between levels."),
            "step": Key(0, int, "The step that it goes back to."),
            "masks": Key("pruned", str, "Where its masks come from."),
            "of": Key("", str, "The branch whose masks it takes."),
          }
        )
      }
    ),
  },
)
