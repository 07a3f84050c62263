"""Plans the runs on pruned language models, and tests the models before them.

In the workdir lie the dense model, tuned on the task if the config says so; the
pruned ones; and the runs of finetune.py. What is there is not made again.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.config import calling
from experiments.config.entry import Cell
from experiments.errors import UserError, unknown
from experiments.llm.evaluate import generate, tasks
from experiments.llm.io import huggingface, load
from experiments.llm.io.model import Model
from experiments.llm.prune import pruners
from experiments.runs import finetune, timing
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.finetune_step import NONE

DENSE = "dense"  # the name of the dense model as a teacher


def plan(
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
    for method in methods_on(config, base):
      cell = Cell(base, method)
      planned[cell] = [
        _config(config, workdir, cell, seed)
        for seed in config.seeds
        if method != NONE
      ]
  if config.dense:
    finetune.check_config(_changed(config.base, config.dense))
  return planned


def methods_on(config: ml_collections.ConfigDict, base: str) -> list[str]:
  """Lists the methods to run on a start, in the order of the table."""
  return [
    method
    for method in config.methods
    if base in config.only.get(method, config.bases)
  ]


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
    one.teacher = _dense_source(config, workdir)
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


def _dense_source(
  config: ml_collections.ConfigDict, workdir: Path
) -> dict[str, Any]:
  """Returns the `model` part of a config that loads the dense model."""
  if not config.dense:
    return config.base.model.to_dict()
  return {"name": "huggingface", "path": str(workdir / "dense" / "model")}


def dense_model(
  config: ml_collections.ConfigDict,
  workdir: Path,
  progress: progress_lib.Track,
) -> tuple[Model, tasks.Task, dict[str, Any]]:
  """Loads and tests the dense model, tuned first if the config says so."""
  tuned = None
  if config.dense:
    one = _changed(config.base, config.dense)
    one.name = f"{config.name}: dense"
    tuned = finetune.train(one, workdir / "dense", progress=progress).metrics
  source = _dense_source(config, workdir)
  model = calling.call("model", load.MODELS, source)
  task = tasks.make(model, config.base.task)
  metrics = tuned or workdir_lib.read_or_make(
    workdir / "dense.json", lambda: tasks.evaluate(model, task)
  )
  return model, task, metrics


def evaluate_pruned(
  config: ml_collections.ConfigDict,
  workdir: Path,
  base: str,
  model: Model,
  task: tasks.Task,
  progress: progress_lib.Track,
) -> dict[str, Any]:
  """Prunes the dense model and tests it, or reads the numbers."""
  folder = _folder(workdir, base)

  def make() -> dict[str, Any]:
    advance = progress(base, model.config.layers, 0, "layer")
    options = config.starts[base].prune
    pruned = pruners.prune(model, task.text, options, advance=advance)
    huggingface.write_model(folder, pruned)
    return tasks.evaluate(pruned, task)

  return workdir_lib.read_or_make(folder.with_name(f"{folder.name}.json"), make)


def speed(
  config: ml_collections.ConfigDict,
  workdir: Path,
  base: str,
  model: Model,
  task: tasks.Task,
) -> tuple[float, float] | None:
  """Times a pruned model in turns with the dense one, or reads the numbers.

  Args:
    config: The config of the table; its `timing` says how.
    workdir: Its directory.
    base: The name of the pruned model, which `evaluate_pruned` has written.
    model: The dense model.
    task: The task, whose text the prompt is taken from.

  Returns:
    Tokens a second, and how many times the dense model's; None if the config
    asks for no tokens.
  """
  timed = config.timing
  if not timed.tokens:
    return None
  folder = _folder(workdir, base)

  def make() -> dict[str, float]:
    pruned = huggingface.read_model(folder)
    prompt = task.text[: timed.prompt].tolist()

    def generating(one: Model) -> Callable[[], Any]:
      params = jax.device_put(one.params)
      return lambda: generate.greedy(
        one.network(), params, [prompt], steps=timed.tokens
      )

    seconds = timing.in_turns(
      {DENSE: generating(model), base: generating(pruned)},
      rounds=timed.rounds,
    )
    return {
      "tokens_per_second": timed.tokens / float(np.median(seconds[base])),
      "against_dense": timing.ratios(seconds, DENSE)[base],
    }

  file = folder.with_name(f"{folder.name}-speed.json")
  made = workdir_lib.read_or_make(file, make)
  return made["tokens_per_second"], made["against_dense"]


def _folder(workdir: Path, base: str) -> Path:
  return workdir / "pruned" / Cell("", base).folder
