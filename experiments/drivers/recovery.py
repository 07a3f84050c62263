"""Prunes a language model in several ways, and repairs each by several methods.

In the workdir lie the dense model, tuned on the task if that is wanted; the
pruned ones; and the runs of finetune.py. What is there is not done again, so
the same command goes on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from experiments.config import calling, schema
from experiments.config.defaults import fine_tuning_run
from experiments.config.entry import Cell
from experiments.runs import devices, finetune, recovery, sections, signals
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.finetune_step import NONE
from experiments.runs.recorder import DivergedError
from experiments.tables import llm
from experiments.tables.llm import Measure

# What may change in a workdir: models and runs have configs of their own.
_FREE = (
  *("seeds", "settings", "methods", "starts", "bases"),
  *("only", "timing", "published", "expected", "base.devices"),
)


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a table of repaired models.

  Keys:
    driver: What runs the config.
    name: A title, for people.
    seeds: The seeds of each method.
    base: The config of a run of finetune.py but for what differs.
    dense: The keys of it in which the run differs that tunes the dense model on
      the task; empty to take the model as it is.
    starts: By name the keys in which runs on one pruned model differ, `prune`
      among them.
    bases: The starts to run, in the order of the table.
    settings: By method the keys in which its runs differ; a teacher called
      "dense" is the dense model, and `prune_again` needs no more than a name,
      the rest is as for `prune`.
    methods: Those to run, in the order of the table; "none" for no tuning.
    only: By method the starts that it is run on, if not on all of them.
    timing: How to measure the speed of pruned models: `tokens` to generate
      after a `prompt` of so many, in `rounds` in turns with the dense model; no
      tokens, the default, for not at all.
    published: Lines (base, method, what papers found).
    expected: As for `tables.llm.order_sentences`.

  Returns:
    The config.
  """
  config = ml_collections.ConfigDict()
  config.driver = "recovery"
  config.name = "recovery"
  config.seeds = (0, 1, 2)
  config.base = fine_tuning_run()
  config.dense = ml_collections.ConfigDict()
  config.starts = ml_collections.ConfigDict()
  config.bases = ()
  config.settings = ml_collections.ConfigDict()
  config.methods = ()
  config.only = ml_collections.ConfigDict()
  config.timing = {"tokens": 0, "prompt": 64, "rounds": 5}
  config.published = ()
  config.expected = ()
  return config


# What a config can have.
SECTION = sections.RECOVERY._replace(more=schema.of_defaults(defaults))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished; prints the table and writes the report."""
  planned = recovery.plan(config, Path(workdir))
  with (
    workdir_lib.locked(workdir) as path,
    signals.obeyed(path),
    devices.mesh(config.base),
    progress_lib.bar() as progress,
  ):
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    model, task, dense = recovery.dense_model(config, Path(workdir), progress)
    measure = Measure(task.measure, task.lower_is_better)
    advance = progress("all cells", len(planned), 0, "cell")
    rows = []
    for base in config.bases:
      before = recovery.evaluate_pruned(
        config, Path(workdir), base, model, task, progress
      )
      speed = recovery.speed(config, Path(workdir), base, model, task)
      for method in recovery.methods_on(config, base):
        cell, results, diverged = Cell(base, method), {None: before}, {}
        if method != NONE:
          results, diverged = _train(planned[cell], progress)
        shared = {"size": dense["size"], "speed": speed}
        rows.append(llm.row(cell, results, measure, diverged, **shared))
        advance(len(rows))
  # Those left out too: of them no order is expected.
  known = [
    Cell(base, method)
    for base in config.starts
    for method in (NONE, *config.settings)
  ]
  llm.write_report(
    path,
    config,
    rows,
    measure,
    dense[measure.name],
    known,
    tested=task.tested_on(dense),
  )


def _train(
  planned: Sequence[tuple[ml_collections.ConfigDict, Path]],
  progress: progress_lib.Track,
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
  """Trains the runs of a cell; by seed their numbers, or why one diverged."""
  results, diverged = {}, {}
  for one, folder in planned:
    try:
      results[one.seed] = finetune.train(one, folder, progress=progress).metrics
    except DivergedError as error:
      diverged[one.seed] = str(error)
  return results, diverged
