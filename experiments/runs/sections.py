"""What configs of language models can have."""

from experiments.config import sections
from experiments.config.defaults import fine_tuning_run
from experiments.config.schema import Key, Section, of_defaults
from experiments.llm.evaluate import tasks
from experiments.llm.io import load
from experiments.llm.prune import pruners
from experiments.llm.text import corpora
from experiments.runs import finetune_step
from experiments.runs.finetune_step import NONE

_TEXT = Section("text", corpora.TEXTS)
MODEL = Section("model", load.MODELS)
TASK = Section(
  "task", tasks.TASKS, after=1, inner={"train": _TEXT, "test": _TEXT}
)
PRUNER = Section(
  "one-shot method",
  pruners.METHODS,
  plain={NONE},
  after=2,
  in_code={"advance"},
)
_METHOD = Section(
  "method",
  finetune_step.METHODS,
  after=1,
  in_code={"key", "prunable"},
  more={
    "rank": Key(
      8, int, "As many weights are trained as by LoRA of this rank.", "k"
    ),
    "k": Key(None, int | None, "Weights that are trained of each matrix.", "k"),
    "t_end": Key(None, int | None, "The step from which they stay.", "t_end"),
  },
)
FINE_TUNING = Section(
  more=of_defaults(fine_tuning_run),
  inner={
    "model": MODEL,
    "task": TASK,
    "prune": PRUNER,
    "method": _METHOD,
    "optimizer": sections.OPTIMIZER._replace(
      table=finetune_step.OPTIMIZERS, plain={NONE}
    ),
    "schedule": sections.SCHEDULE,
    "loss": Section(
      more={
        "cross_entropy": Key(0.0, float, "Its weight."),
        "kl": Key(0.0, float, "The weight of the divergence from the teacher."),
        "square_head": Key(0.0, float, "The weight of SquareHead."),
        "temperature": Key(1.0, float, "What logits are divided by in `kl`."),
      }
    ),
    "teacher": MODEL._replace(plain={NONE, "dense"}),
    "prune_again": PRUNER,
  },
)
RECOVERY = Section(
  inner={
    "timing": Section(
      more={
        "tokens": Key(0, int, "Tokens to generate; 0 to measure nothing."),
        "prompt": Key(64, int, "Tokens before them."),
        "rounds": Key(5, int, "How often, in turns with the dense model."),
      }
    ),
    "base": FINE_TUNING,
    "dense": FINE_TUNING,
    "starts": Section(inner={"*": FINE_TUNING}),
    "only": Section(),
    "settings": Section(inner={"*": FINE_TUNING}),
  },
  instead={
    r"(base|(starts|settings)\.[^.]*)\.seed": "seeds",
    r"(starts|settings)\.[^.]*\.model(\..*)?": "base.model",
  },
)
# What the table varies is not a pruner's own.
_OF_TABLE = PRUNER._replace(
  plain=frozenset(), in_code={"advance", "sparsity", "n_of_m", "seed"}
)
PRUNING = Section(
  inner={
    "model": MODEL,
    "task": TASK,
    "calibration": Section(
      more={
        "sequences": Key(128, int, "The number of windows."),
        "length": Key(2048, int, "Tokens of each."),
      }
    ),
    "pruners": Section(inner={"*": _OF_TABLE}),
  },
)
