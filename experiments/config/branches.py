"""Branches of lottery tickets: what their configs mean.

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

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from experiments.config import check as check_lib
from experiments.config import parts
from experiments.errors import UserError, check_known

RETRAIN = ("weights", "learning_rate", "fine_tune", "reinit")
OWN_MASKS = ("pruned", "one_shot", "random")
MASKS_OF_ANOTHER = ("same", "shuffled", "nested")
DEFAULTS = {"retrain": "weights", "step": 0, "masks": "pruned", "of": ""}


def complete(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
  """Returns a branch of the config, with defaults for what it leaves out."""
  return {**DEFAULTS, **config.branches[name]}


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks the config, and that of every kind of run, before any work.

  Raises:
    UserError: If there is nothing to run, or a name or a value is wrong.
  """
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
  check_known("scope", config.scope, ("global", "layer"))
  for i, name in enumerate(config.methods):
    check_known("branch of the config", name, config.branches)
    _check_branch(config, name, config.methods[:i])
  for name in config.stability.branches:
    check_known("branch in stability", name, config.methods)
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
  check_lib.training_run(dense_run(config, config.seeds[0]))


def _check_branch(
  config: ml_collections.ConfigDict, name: str, before: Sequence[str]
) -> None:
  where = f"config.branches.{name}"
  branch = complete(config, name)
  for key in branch:
    check_known(f"key of {where}", key, DEFAULTS)
  check_known(f"way to retrain of {where}", branch["retrain"], RETRAIN)
  kinds = OWN_MASKS + MASKS_OF_ANOTHER
  check_known(f"kind of masks of {where}", branch["masks"], kinds)
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


def dense_run(
  config: ml_collections.ConfigDict, seed: int
) -> ml_collections.ConfigDict:
  """Makes the config of a seed's dense run.

  It keeps the checkpoints that branches go back to.
  """
  dense = config.base.copy_and_resolve_references()
  dense.seed = seed
  dense.name = f"seed {seed}, dense"
  steps = {complete(config, name)["step"] for name in config.branches}
  dense.keep_steps = tuple(sorted(steps))
  return dense


def level_run(
  dense: ml_collections.ConfigDict, branch: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Makes the config of a level's run, of any level of a branch."""
  config = dense.copy_and_resolve_references()
  config.keep_steps = ()
  if branch["retrain"] == "fine_tune":
    config.schedule = {
      "name": "constant",
      "learning_rate": parts.learning_rate(dense, dense.steps - 1),
    }
  return config
