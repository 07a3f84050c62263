"""Prunes a language model for the cells of a table, and tests what is left.

The result of a cell is a file: what is there is not made again.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from experiments.config.entry import Cell, percent
from experiments.errors import UserError, unknown
from experiments.llm.evaluate import tasks
from experiments.llm.io import huggingface
from experiments.llm.io.model import Model
from experiments.llm.prune import pruners
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib


def plan(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[Cell, dict[str, Any]]]:
  """Plans the cells: yields each with its pruner's keywords, but the seed."""
  if not config.methods or not config.seeds:
    raise UserError("config.methods or config.seeds is empty; nothing to prune")
  for name in config.methods:
    if name not in config.pruners:
      raise unknown("pruner of the config", name, config.pruners)
  shared = config.calibration.to_dict()
  levels = [(percent(s), {"sparsity": s}) for s in config.sparsities]
  levels += [(f"{n}:{m}", {"n_of_m": (n, m)}) for n, m in config.n_of_m]
  for (zeros, level), name in itertools.product(levels, config.methods):
    options = {**shared, **config.pruners[name], **level}
    # N:M has one density for all layers, and its own groups.
    chosen = options.get("owl") or options.get("per_output") is not None
    if not (chosen and "n_of_m" in level):
      yield Cell(zeros, name), options


def evaluate_cell(
  config: ml_collections.ConfigDict,
  path: Path,
  model: Model,
  task: tasks.Task,
  cell: Cell,
  options: Mapping[str, Any],
  progress: progress_lib.Track,
) -> dict[int, dict[str, Any]]:
  """Prunes and tests for a cell, or reads the files; gives numbers by seed."""

  def make(seed: int) -> dict[str, Any]:
    advance = progress(f"{cell}, seed {seed}", model.config.layers, 0, "layer")
    pruned = pruners.prune(
      model, task.text, {**options, "seed": seed}, advance=advance
    )
    if config.save:
      folder = path / "models" / f"{cell.folder}-{seed}"
      huggingface.write_model(folder, pruned)
    return tasks.evaluate(pruned, task)

  return {
    seed: workdir_lib.read_or_make(
      path / "cells" / f"{cell.folder}-{seed}.json",
      functools.partial(make, seed),
    )
    for seed in config.seeds
  }
