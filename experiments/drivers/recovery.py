"""Prunes a language model in several ways, and repairs each by several methods.

In the workdir lie the dense model, tuned on the task if that is wanted; the
pruned ones; and the runs of finetune.py. What is there is not done again, so
the same command goes on.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from experiments.config import calling
from experiments.config.defaults import fine_tuning_run
from experiments.errors import UserError, unknown
from experiments.llm.evaluate import tasks
from experiments.llm.io import huggingface, load
from experiments.llm.io.model import Model
from experiments.llm.prune import pruners
from experiments.runs import finetune
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.finetune_step import NONE
from experiments.tables import llm
from experiments.tables.llm import Cell, Measure

DENSE = "dense"  # the name of the dense model as a teacher
# What may change in a workdir: models and runs have configs of their own.
_FREE = (
  *("seeds", "settings", "methods", "starts", "bases"),
  *("published", "expected"),
)


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a table of repaired models.

  Returns:
    The config: `base`, the config of a run of finetune.py but for what differs;
    `dense`, the keys of it in which the run differs that tunes the dense model
    on the task, empty to take the model as it is; `starts`, by name the keys in
    which runs on one pruned model differ, `prune` among them; `bases`, those to
    run, in the order of the table; `settings`, by method the keys in which its
    runs differ: a teacher called "dense" is the dense model, and `prune_again`
    needs no more than a name, the rest is as for `prune`; `methods`, those to
    run, in the order of the table, "none" for no tuning; `seeds`; `published`,
    lines (base, method, what papers found); and `expected`, as for
    `tables.llm.order_sentences`.
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
  config.published = ()
  config.expected = ()
  return config


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished; prints the table and writes the report."""
  planned = _plan(config, Path(workdir))
  with (
    workdir_lib.locked(workdir) as path,
    progress_lib.bar() as progress,
  ):
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    source = _source(config, Path(workdir))
    model = functools.cache(lambda: calling.call("model", load.MODELS, source))
    task = functools.cache(lambda: tasks.make(model(), config.base.task))
    dense = _dense(config, Path(workdir), model, task, progress)
    advance = progress("all cells", len(planned), 0)
    rows = []
    for base in config.bases:
      before = _pruned(config, Path(workdir), base, model, task, progress)
      for method in config.methods:
        results = {None: before}
        if method != NONE:
          results = {
            one.seed: finetune.train(one, folder, progress=progress).metrics
            for one, folder in planned[Cell(base, method)]
          }
        rows.append((Cell(base, method), results))
        advance(len(rows))
    measure = Measure(task().measure, task().lower_is_better)
  llm.write_report(
    path,
    config.name,
    [llm.row(cell, results, measure) for cell, results in rows],
    measure,
    dense=dense[measure.name],
    published={Cell(*line[:2]): line[2] for line in config.published},
    expected=config.expected,
  )


def _plan(
  config: ml_collections.ConfigDict, workdir: Path
) -> dict[Cell, list[tuple[ml_collections.ConfigDict, Path]]]:
  """Makes and checks the config of every run; returns them, by cell."""
  if not (config.bases and config.methods and config.seeds):
    raise UserError(
      "config.bases, config.methods or config.seeds is empty; nothing to run"
    )
  for kind, names, table in (
    ("start", config.bases, config.starts),
    ("method", config.methods, {**config.settings, NONE: None}),
  ):
    for name in names:
      if name not in table:
        raise unknown(f"{kind} of the config", name, table)
  planned = {}
  for base in config.bases:
    for method in config.methods:
      cell = Cell(base, method)
      planned[cell] = [
        _config(config, workdir, cell, seed)
        for seed in config.seeds
        if method != NONE
      ]
  if config.dense:
    finetune.check_config(_changed(config.base, config.dense))
  return planned


def _config(
  config: ml_collections.ConfigDict, workdir: Path, cell: Cell, seed: int
) -> tuple[ml_collections.ConfigDict, Path]:
  """Makes the config of one run, and names its directory."""
  start = config.starts[cell.base].to_dict()
  prune = start.pop("prune")
  one = _changed(config.base, start)
  one = _changed(one, config.settings[cell.method].to_dict())
  if one.prune_again.name != NONE:
    one.prune_again = {**prune, **one.prune_again.to_dict()}
  if one.teacher.name == DENSE:
    one.teacher = _source(config, workdir)
  one.model = {"name": "huggingface", "path": str(_folder(workdir, cell.base))}
  one.seed = seed
  one.name = f"{cell}, seed {seed}"
  finetune.check_config(one)
  return one, workdir / "runs" / f"{cell.folder}-{seed}"


def _changed(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Copies a run's config, with other values for some keys."""
  one = config.copy_and_resolve_references()
  one.unlock()
  for key, value in changes.items():
    if key not in config:
      raise unknown("key of a run's config", key, config)
    one[key] = value
  return one


def _source(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Returns the `model` part of a config that loads the dense model."""
  if not config.dense:
    return config.base.model.to_dict()
  return {"name": "huggingface", "path": str(workdir / "dense" / "model")}


def _dense(
  config: ml_collections.ConfigDict,
  workdir: Path,
  model: Callable[[], Model],
  task: Callable[[], tasks.Task],
  progress: progress_lib.Track,
) -> dict[str, Any]:
  """Tests the dense model, tuned first if the config says so."""
  if not config.dense:
    file = workdir / "dense.json"
    return workdir_lib.read_or_make(
      file, lambda: tasks.evaluate(model(), task())
    )
  one = _changed(config.base, config.dense)
  one.name = f"{config.name}: dense"
  return finetune.train(one, workdir / "dense", progress=progress).metrics


def _pruned(
  config: ml_collections.ConfigDict,
  workdir: Path,
  base: str,
  model: Callable[[], Model],
  task: Callable[[], tasks.Task],
  progress: progress_lib.Track,
) -> dict[str, Any]:
  """Prunes the dense model and tests it, or reads the numbers."""
  folder = _folder(workdir, base)

  def make() -> dict[str, Any]:
    advance = progress(base, model().config.layers, 0)
    options = config.starts[base].prune
    pruned = pruners.prune(model(), task().text, options, advance=advance)
    huggingface.write_model(folder, pruned)
    return tasks.evaluate(pruned, task())

  return workdir_lib.read_or_make(folder.with_name(f"{folder.name}.json"), make)


def _folder(workdir: Path, base: str) -> Path:
  return workdir / "pruned" / Cell("", base).folder
