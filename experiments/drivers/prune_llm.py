"""Prunes a language model in one shot, by several methods, and tests each.

Every pruned model is a cell of the table, whose result is a file: the same
command goes on with the cells that are missing.
"""

import ml_collections

from experiments.config import calling, check, schema
from experiments.errors import UserError
from experiments.llm.evaluate import tasks
from experiments.llm.io import load
from experiments.llm.prune.layerwise import PruningError
from experiments.runs import devices, prune_llm, sections, signals
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.tables import llm
from experiments.tables.llm import Measure

# What may change in a workdir: every cell has a file of its own.
_FREE = (
  *("pruners", "methods", "sparsities", "n_of_m", "seeds", "devices"),
  *("published", "expected"),
)


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a table of one-shot pruning.

  Keys:
    driver: What runs the config.
    name: A title, for people.
    seeds: The seeds of calibration windows.
    devices: Devices that share each batch.
    model: The model, a name of `load.MODELS` and keywords.
    task: What it is tested on, of `tasks.TASKS`; calibration windows are drawn
      from its text.
    calibration: The number `sequences` of windows, and their `length`.
    pruners: By the method's name the keywords of `pruners.prune` besides
      sparsity and seed.
    methods: Those to run, in the order of the table.
    sparsities: At each of which to run them.
    n_of_m: Pairs (n, m), at each of which to run them.
    save: Whether to keep the pruned models as folders of Hugging Face's layout.
    published: Lines (zeros, method, what papers found).
    expected: As for `tables.llm.order_sentences`.

  Returns:
    The config.
  """
  config = ml_collections.ConfigDict()
  config.driver = "prune_llm"
  config.name = "prune_llm"
  config.seeds = (0,)
  config.devices = 1  # that share each batch
  config.model = {"name": "smollm2"}
  config.task = {"name": "text"}
  config.calibration = ml_collections.ConfigDict(
    {"sequences": 128, "length": 2048}
  )
  config.pruners = ml_collections.ConfigDict()
  config.methods = ()
  config.sparsities = ()
  config.n_of_m = ()
  config.save = False
  config.published = ()
  config.expected = ()
  return config.lock()


# What a config can have.
SECTION = sections.PRUNING._replace(more=schema.of_defaults(defaults))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Prunes and tests what is not finished; writes the report.

  Raises:
    UserError: If something is wrong with the config or the directory; and at
      the end, with all reasons, if kernels of some cells could not be pruned.
  """
  check.keys(config, defaults(), where="experiments/drivers/prune_llm.py")
  cells = dict(prune_llm.plan(config))
  with (
    workdir_lib.locked(workdir) as path,
    signals.obeyed(path),
    devices.mesh(config),
  ):
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    model = calling.call("model", load.MODELS, config.model)
    task = tasks.make(model, config.task)
    with progress_lib.bar() as progress:
      file = path / "cells" / "dense.json"
      dense = workdir_lib.read_or_make(
        file, lambda: tasks.evaluate(model, task)
      )
      measure = Measure(task.measure, task.lower_is_better)
      advance = progress("all cells", len(cells), 0, "cell")
      rows, failed = [], {}
      for cell, options in cells.items():
        try:
          results = prune_llm.evaluate_cell(
            config, path, model, task, cell, options, progress
          )
        except PruningError as error:
          failed[cell] = str(error)
        else:
          rows.append(llm.row(cell, results, measure, size=dense["size"]))
        advance(len(rows) + len(failed))
    if rows:
      llm.write_report(
        path,
        config,
        rows,
        measure,
        dense[measure.name],
        failed,
        tested=task.tested_on(dense),
      )
    if failed:
      raise UserError(
        f"{len(failed)} of {len(cells)} cells could not be made; the others "
        "are kept:\n"
        + "\n".join(f"  {cell}: {reason}" for cell, reason in failed.items())
      )
