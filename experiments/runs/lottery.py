"""Trains the branches of lottery tickets, level after level.

A seed's dense run is shared by all branches. A level is a run of train.py in a
directory of its own, so that what was stopped goes on where it was, and ends in
the same bits. What branches are is in config/branches.py.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments.config import branches, parts
from experiments.runs import programs, train
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.batches import open_source
from experiments.runs.model import Keys, no_scores
from experiments.runs.step import State
from sparsejax import distributions, lottery, scores
from sparsejax.keys import wrapped


class Level(NamedTuple):
  """A trained level of a branch.

  Attributes:
    seed: Its seed.
    branch: Its branch.
    level: How often its masks were pruned; 0 for the dense run, which all
      branches share.
    metrics: The numbers of its last evaluation.
    history: Its run's records, in order.
    line: [points] test errors, as shares, on the line to a second child; None
      if it has none.
  """

  seed: int
  branch: str
  level: int
  metrics: Mapping[str, Any]
  history: list[Mapping[str, Any]]
  line: np.ndarray | None


class _Seed(NamedTuple):
  """What the runs of one seed share."""

  config: ml_collections.ConfigDict
  dense: ml_collections.ConfigDict  # the config of the dense run
  path: Path
  progress: progress_lib.Track


def train_levels(
  config: ml_collections.ConfigDict,
  number: int,
  path: Path,
  progress: progress_lib.Track = progress_lib.untracked,
) -> Iterator[Level]:
  """Trains the levels of a seed's branches that are not trained yet.

  Args:
    config: The lottery's, as `drivers.lottery.defaults` makes it, checked.
    number: The seed.
    path: The directory of the seed's runs.
    progress: Where to show progress, as `progress.bar` yields it.

  Yields:
    The levels, branch by branch, in order.
  """
  seed = _Seed(config, branches.dense_run(config, number), path, progress)
  prunable = config.base.algorithm.get("prunable")
  picked = (distributions.matching(prunable),) if prunable else ()

  def start(program: programs.Programs) -> State:
    keys = parts.streams(number)
    variables = program.draw(keys)
    full = lottery.full_masks(variables["params"], *picked)
    return program.begin(keys, variables, full)

  dense = train.train(
    seed.dense, path / "dense", progress=progress, start=start
  )
  masks = {}  # of the branches so far, level by level
  for name in config.methods:
    branch = branches.complete(config, name)
    folder = path / name
    with workdir_lib.storage(folder):
      folder.mkdir(exist_ok=True)
    workdir_lib.ensure_config(folder, branch)
    masks[name] = []
    last = dense
    for level in range(config.levels + 1):
      own = dense.masks
      if level:
        own = _masks(seed, branch, level, dense, last, masks)
      masks[name].append(own)
      trained, line = _train(seed, name, branch, level, last, own)
      yield Level(number, name, level, trained.metrics, trained.history, line)
      last = trained


def _train(
  seed: _Seed,
  name: str,
  branch: Mapping[str, Any],
  level: int,
  last: train.Result,
  masks: Any,
) -> tuple[train.Result, np.ndarray | None]:
  """Trains a level; and a second child of it, if one is asked for.

  Args:
    seed: What the seed's runs share.
    name: The branch's.
    branch: What its config says.
    level: The level.
    last: The level before, or the dense run.
    masks: The masks of this level.

  Returns:
    What the level's run leaves, and the test errors on the line between the
    two children; None without a second one.
  """
  config = branches.level_run(seed.dense, branch)

  def child(number: int) -> train.Result:
    config.name = f"seed {config.seed}, {name}, level {level}"
    folder = seed.path / name / f"level-{level:02}"
    if number:
      config.name += ", second child"
      folder = folder.with_name(f"{folder.name}-child")

    def start(program: programs.Programs) -> State:
      saved = train.state_at(seed.dense, seed.path / "dense", branch["step"])
      params, batch_stats = saved.params, saved.batch_stats
      keys = _keys(config.seed, level, number)
      if branch["retrain"] == "reinit":
        variables = program.draw(parts.folded(keys, "init", level))
        params = variables["params"]
        batch_stats = variables.get("batch_stats", {})
      elif branch["retrain"] != "weights" and level:
        params, batch_stats = last.params, last.batch_stats
      return program.rewind(saved, params, batch_stats, masks, keys)

    return train.train(config, folder, progress=seed.progress, start=start)

  first = child(0) if level else last
  stability = seed.config.stability
  if name not in stability.branches or level not in stability.levels:
    return first, None
  return first, _line(config, first, child(1), stability.points)


def _keys(seed: int, level: int, child: int) -> Keys:
  """Makes a level's streams: it has its own order and augmentation of data."""
  keys = parts.streams(seed)
  if number := 2 * level + child:
    for name in ("data", "augment"):
      keys = parts.folded(keys, name, number)
  return keys


# Compiled once for all levels.
_prune = jax.jit(
  lottery.prune_round, static_argnames=("rate", "scope", "score")
)
_shuffle = jax.jit(lottery.shuffle)
_RANDOM = scores.random()


def _masks(
  seed: _Seed,
  branch: Mapping[str, Any],
  level: int,
  dense: train.Result,
  last: train.Result,
  masks: Mapping[str, list[Any]],
) -> Any:
  """Makes a level's masks, from the level before or from another branch.

  Args:
    seed: What the seed's runs share.
    branch: What the branch's config says.
    level: The level.
    dense: The dense run.
    last: The level before, or the dense run.
    masks: Of the branches so far, level by level.

  Returns:
    The masks, NumPy arrays.
  """
  config = seed.config
  prune = functools.partial(_prune, rate=config.rate, scope=config.scope)
  key = wrapped(parts.streams(seed.dense.seed)["masks"])
  match branch["masks"]:
    case "pruned":
      new = prune(last.params, last.masks)
    case "one_shot":
      new = dense.masks
      for _ in range(level):
        new = prune(dense.params, new)
    case "random":
      # One draw ranks the weights for all levels.
      new = prune(last.params, last.masks, score=_RANDOM, key=key)
    case "same":
      new = masks[branch["of"]][level]
    case "shuffled":
      key = jax.random.fold_in(key, level)
      new = _shuffle(masks[branch["of"]][level], key=key)
    case "nested":
      new = _shuffle(masks[branch["of"]][level], key=key)
  return jax.tree.map(np.asarray, new)


def _line(
  config: ml_collections.ConfigDict,
  first: train.Result,
  second: train.Result,
  points: int,
) -> np.ndarray:
  """Tests the interpolations of two children, BatchNorm's averages too.

  Args:
    config: The children's.
    first: A child.
    second: The other.
    points: How many to test, both ends among them.

  Returns:
    float64[points]: test errors, as shares.
  """
  program = programs.get(config)
  tests = list(open_source(config, parts.streams(config.seed)["data"]).tests())
  ends = [(r.params, r.batch_stats) for r in (first, second)]
  errors = []
  for weight in np.linspace(0, 1, points, dtype=np.float32):
    params, batch_stats = _interpolate(*ends, weight)
    variables = {"params": params, "batch_stats": batch_stats}
    total = no_scores()
    for x, y in tests:
      total = program.evaluate(total, variables, x, y)
    errors.append(1 - int(total.correct) / int(total.examples))
  return np.array(errors)


_interpolate = jax.jit(lottery.interpolate)
