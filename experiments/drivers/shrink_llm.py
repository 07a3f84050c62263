"""Makes a language model of any family a smaller function, and reports on it.

In the workdir lie the exported functions, which `experiments.generate` and
`experiments.llm.io.functions.read` take; the same command goes on with those
that are missing.
"""

from pathlib import Path

import ml_collections

from experiments.config import calling, check, schema
from experiments.llm.evaluate import tasks
from experiments.llm.io import load
from experiments.llm.prune import structured
from experiments.runs import progress as progress_lib
from experiments.runs import sections, shrink_llm
from experiments.runs import workdir as workdir_lib
from experiments.tables import functions as report

# What may change in a workdir: each function has files of its own.
_FREE = ("sparsities",)


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of functions that are smaller than a model.

  Keys:
    driver: What runs the config.
    name: A title, for people.
    seed: Of calibration windows, and of random scores.
    model: The model, a name of `load.MODELS` and keywords.
    task: What it is tested on, of `tasks.TASKS`; calibration windows are drawn
      from its text.
    calibration: The number `sequences` of windows, and their `length`.
    sparsities: Shares of heads, and of hidden units, that leave.
    score: What is summed over a unit, of `structured.SCORES`.
    round_to: What widths that are kept are a multiple of, where they can be.
    batch_size: Sequences that an exported function takes at once.
    rounds: How often to time the functions, in turns; 0 for never.

  Returns:
    The config.
  """
  config = ml_collections.ConfigDict()
  config.driver = "shrink_llm"
  config.name = "shrink_llm"
  config.seed = 0
  config.model = {"name": "smollm2"}
  config.task = {"name": "text"}
  config.calibration = {"sequences": 16, "length": 256}
  config.sparsities = (0.25, 0.5)
  config.score = structured.SCORES[0]
  config.round_to = 8
  config.batch_size = 1
  config.rounds = 7
  return config.lock()


# What a config can have.
SECTION = sections.PRUNING._replace(more=schema.of_defaults(defaults))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Makes the functions that are missing, and writes the report.

  Raises:
    UserError: If something is wrong with the config, the directory or the data.
  """
  check.keys(
    config,
    defaults(),
    may_be_zero=("seed", "rounds"),
    where="experiments/drivers/shrink_llm.py",
  )
  shrink_llm.check_config(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    model = calling.call("model", load.MODELS, config.model)
    task = tasks.make(model, config.task)
    inputs = shrink_llm.inputs_of(config, model, task)
    lines = [shrink_llm.whole(path, model, task, inputs)]
    with progress_lib.bar() as progress:
      for sparsity in config.sparsities:
        lines.append(
          shrink_llm.line(config, path, model, task, sparsity, progress)
        )
    speeds = {}
    if config.rounds:
      speeds = shrink_llm.speeds(
        path, model, lines[1:], inputs, rounds=config.rounds
      )
    report.write_report(path, config, lines, speeds, task)
  print(f"\nThe report is {Path(workdir) / 'report.md'}")
