"""Lottery tickets: train, prune, start again; and controls on the same masks.

A seed's dense run is shared by all branches. A branch trains level after
level, each a run of train.py in a directory of its own, so that what was
stopped goes on where it was, with the same command, and ends in the same bits.

What a branch does between levels (`retrain`):

- `weights`: weights as they were at `step` of the dense run (weight rewinding;
  step 0 is the original lottery ticket), and the schedule from there.
- `learning_rate`: trained weights, and the schedule from `step` once more.
- `fine_tune`: trained weights, and the schedule's last learning rate for as
  many steps.
- `reinit`: newly drawn weights, and the schedule from `step`.

And where its masks come from (`masks`): `pruned`, by magnitude, round by
round; `one_shot`, as much at once, by the dense run's weights; `random`, round
by round at random; or those of the branch `of`: the `same`, or random ones of
the same layer budgets, `shuffled` anew at each level or `nested` from level to
level.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments.config import calling, check, parts
from experiments.config import defaults as defaults_lib
from experiments.errors import UserError, unknown
from experiments.runs import programs, train
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.batches import open_source
from experiments.runs.model import no_scores
from experiments.runs.step import State
from experiments.tables import lottery as report
from sparsejax import distributions, lottery, scores

RETRAIN = ("weights", "learning_rate", "fine_tune", "reinit")
OWN_MASKS = ("pruned", "one_shot", "random")
MASKS_OF_ANOTHER = ("same", "shuffled", "nested")
# What may change in a workdir: branches and runs have configs of their own.
_FREE = ("seeds", "levels", "branches", "methods", "stability", "expected")
BRANCH = {"retrain": "weights", "step": 0, "masks": "pruned", "of": ""}


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of lottery tickets, to be filled in by a config file.

  Returns:
    The config: `base`, the config of the dense run; `levels`, how often to
    prune; `rate`, the share of weights that each round prunes, over the whole
    net (`scope` global) or in each layer (layer); `branches`, by name what
    BRANCH lists, and `methods`, those to run, in order; `seeds`; `stability`,
    the branches and levels whose linear mode connectivity to examine, and at
    how many `points`; and `expected`, pairs of branches of which papers report
    the first to do worse.
  """
  config = ml_collections.ConfigDict()
  config.driver = "lottery"
  config.name = "lottery"
  config.seeds = (0, 1, 2)
  config.base = defaults_lib.training_run()
  config.base.algorithm = {"name": "static", "sparsity": 0.0}
  config.base.checkpoints_to_keep = 1
  config.levels = 10
  config.rate = 0.2
  config.scope = "global"
  config.branches = ml_collections.ConfigDict()
  config.methods = ()
  config.stability = {"branches": (), "levels": (), "points": 30}
  config.expected = ()
  return config


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs what is not finished, then prints the table and writes the report."""
  _check(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.admit(path, calling.plain(config), free=_FREE)
    with progress_lib.bar() as progress:
      runs = (config.levels + 1) * len(config.methods)
      advance = progress("all levels", len(config.seeds) * runs, 0)
      levels = []
      for number in config.seeds:
        folder = path / f"seed-{number}"
        seed = _Seed(config, _dense_config(config, number), folder, progress)
        for level in _levels(seed):
          levels.append(level)
          advance(len(levels))
    report.write_report(path, config, levels)
  print(f"\nThe report is {path / 'report.md'}")


def _check(config: ml_collections.ConfigDict) -> None:
  """Checks the config, and that of every kind of run, before any work."""
  if not config.methods or not config.seeds:
    raise UserError("config.methods or config.seeds is empty; nothing to run")
  if config.levels < 1:
    raise UserError(f"config.levels is {config.levels}; wanted at least 1")
  if not 0 < config.rate < 1:
    raise UserError(
      f"config.rate is {config.rate}; wanted the share of weights that a "
      "round prunes, in (0, 1)"
    )
  if config.base.algorithm.name != "static" or config.base.algorithm.sparsity:
    raise UserError(
      "config.base.algorithm has to be static with sparsity 0: the dense run, "
      "whose weights are then pruned"
    )
  if config.scope not in ("global", "layer"):
    raise unknown("scope", config.scope, ("global", "layer"))
  for i, name in enumerate(config.methods):
    if name not in config.branches:
      raise unknown("branch of the config", name, config.branches)
    _check_branch(config, name, config.branches[name], config.methods[:i])
  for name in config.stability.branches:
    if name not in config.methods:
      raise unknown("branch in stability", name, config.methods)
  for level in config.stability.levels:
    if not 0 <= level <= config.levels:
      raise UserError(
        f"config.stability.levels has {level}; wanted 0 to {config.levels}"
      )
  if config.stability.points < 2:
    raise UserError(
      f"config.stability.points is {config.stability.points}; wanted at "
      "least 2, the ends of the line"
    )
  check.training_run(_dense_config(config, config.seeds[0]))


def _check_branch(config, name, given, before):
  where = f"config.branches.{name}"
  for key in given:
    if key not in BRANCH:
      raise unknown(f"key of {where}", key, BRANCH)
  branch = {**BRANCH, **given}
  if branch["retrain"] not in RETRAIN:
    raise unknown(f"way to retrain of {where}", branch["retrain"], RETRAIN)
  kinds = OWN_MASKS + MASKS_OF_ANOTHER
  if branch["masks"] not in kinds:
    raise unknown(f"kind of masks of {where}", branch["masks"], kinds)
  if not 0 <= branch["step"] < config.base.steps:
    raise UserError(
      f"{where}.step is {branch['step']}; wanted a step of the dense run, 0 "
      f"to {config.base.steps - 1}"
    )
  borrows = branch["masks"] in MASKS_OF_ANOTHER
  if borrows and branch["of"] not in before:
    raise UserError(
      f"{where}.of is {branch['of']!r}; wanted the branch whose masks to take, "
      f"before it in config.methods: {', '.join(before) or 'there is none'}"
    )


class _Seed(NamedTuple):
  """What the runs of one seed share."""

  config: ml_collections.ConfigDict
  dense: ml_collections.ConfigDict  # the config of the dense run
  path: Path
  progress: progress_lib.Track


def _levels(seed: _Seed) -> Iterator[report.Level]:
  """Trains what is not trained yet, and gives the levels in order."""
  full = _rounds(seed.config).full
  dense = train.train(
    seed.dense,
    seed.path / "dense",
    progress=seed.progress,
    start=functools.partial(_dense_state, parts.streams(seed.dense.seed), full),
  )
  masks = {}  # of the branches so far, level by level
  for name in seed.config.methods:
    branch = {**BRANCH, **seed.config.branches[name]}
    folder = seed.path / name
    with workdir_lib.storage(folder):
      folder.mkdir(exist_ok=True)
    workdir_lib.admit(folder, branch)
    masks[name] = []
    last = dense
    for level in range(seed.config.levels + 1):
      own = dense.masks
      if level:
        own = _masks(seed, branch, level, dense, last, masks)
      masks[name].append(own)
      trained, line = _train(seed, name, branch, level, last, own)
      yield report.Level(
        seed.dense.seed, name, level, trained.metrics, trained.history, line
      )
      last = trained


def _train(seed, name, branch, level, last, masks):
  """Trains a level; and a second child of it, if one is asked for."""
  config = _level_config(seed.dense, branch)

  def child(number):
    config.name = f"seed {config.seed}, {name}, level {level}"
    folder = seed.path / name / f"level-{level:02}"
    if number:
      config.name += ", second child"
      folder = folder.with_name(f"{folder.name}-child")
    start = functools.partial(
      _start,
      seed,
      branch,
      level,
      last,
      masks,
      _keys(config.seed, level, number),
    )
    return train.train(config, folder, progress=seed.progress, start=start)

  first = child(0) if level else last
  stability = seed.config.stability
  if name not in stability.branches or level not in stability.levels:
    return first, None
  return first, _line(config, first, child(1), stability.points)


def _keys(seed: int, level: int, child: int) -> dict[str, jax.Array]:
  """Streams of a level: its own order and augmentation of the data."""
  keys = parts.streams(seed)
  if number := 2 * level + child:
    for name in ("data", "augment"):
      keys = parts.folded(keys, name, number)
  return keys


def _dense_state(keys, full, program: programs.Programs) -> State:
  variables = program.draw(keys)
  return program.begin(keys, variables, full(variables["params"]))


def _start(
  seed: _Seed,
  branch: Mapping[str, Any],
  level: int,
  last: train.Result,
  masks: Any,
  keys: dict[str, jax.Array],
  program: programs.Programs,
) -> State:
  """The state in which a level starts."""
  saved = train.state_at(seed.dense, seed.path / "dense", branch["step"])
  params, batch_stats = saved.params, saved.batch_stats
  if branch["retrain"] == "reinit":
    variables = program.draw(parts.folded(keys, "init", level))
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
  elif branch["retrain"] != "weights" and level:
    params, batch_stats = last.params, last.batch_stats
  return program.rewind(saved, params, batch_stats, masks, keys)


class _Rounds(NamedTuple):
  """What makes masks, compiled once for all levels."""

  full: Callable[[Any], Any]
  prune: Callable[[Any, Any], Any]
  prune_at_random: Callable[[Any, Any, jax.Array], Any]
  shuffle: Callable[[Any, jax.Array], Any]


def _rounds(config: ml_collections.ConfigDict) -> _Rounds:
  prunable = config.base.algorithm.get("prunable")
  return _compiled_rounds(config.rate, config.scope, prunable)


@functools.lru_cache(maxsize=4)
def _compiled_rounds(rate: float, scope: str, prunable: str | None) -> _Rounds:
  prune = functools.partial(lottery.prune_round, rate=rate, scope=scope)
  picked = (
    distributions.matching(prunable) if prunable else distributions.matrices
  )
  return _Rounds(
    full=jax.jit(functools.partial(lottery.full_masks, prunable=picked)),
    prune=jax.jit(prune),
    prune_at_random=jax.jit(
      lambda params, masks, key: prune(
        params, masks, score=scores.random(), key=key
      )
    ),
    shuffle=jax.jit(lambda masks, key: lottery.shuffle(masks, key=key)),
  )


def _masks(seed, branch, level, dense, last, masks):
  """The masks of a level, from those of the level before, or of another."""
  rounds = _rounds(seed.config)
  key = parts.wrap(parts.streams(seed.dense.seed)["masks"])
  match branch["masks"]:
    case "pruned":
      new = rounds.prune(last.params, last.masks)
    case "one_shot":
      new = dense.masks
      for _ in range(level):
        new = rounds.prune(dense.params, new)
    case "random":
      # One draw ranks the weights for all levels.
      new = rounds.prune_at_random(last.params, last.masks, key)
    case "same":
      new = masks[branch["of"]][level]
    case "shuffled":
      new = rounds.shuffle(
        masks[branch["of"]][level], jax.random.fold_in(key, level)
      )
    case "nested":
      new = rounds.shuffle(masks[branch["of"]][level], key)
  return jax.tree.map(np.asarray, new)


def _line(
  config: ml_collections.ConfigDict,
  first: train.Result,
  second: train.Result,
  points: int,
) -> np.ndarray:
  """Test errors on the line between two children, running averages too."""
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


def _dense_config(config, seed) -> ml_collections.ConfigDict:
  """The config of a seed's dense run, which keeps what branches go back to."""
  dense = config.base.copy_and_resolve_references()
  dense.seed = seed
  dense.name = f"seed {seed}, dense"
  steps = {{**BRANCH, **b}["step"] for b in config.branches.values()}
  dense.keep_steps = tuple(sorted(steps))
  return dense


def _level_config(dense, branch) -> ml_collections.ConfigDict:
  config = dense.copy_and_resolve_references()
  config.keep_steps = ()
  if branch["retrain"] == "fine_tune":
    config.schedule = {
      "name": "constant",
      "learning_rate": parts.learning_rate(dense, dense.steps - 1),
    }
  return config
