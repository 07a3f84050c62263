"""Trains with channels pruned gradually, takes them out, and trains on.

A seed at a sparsity is two runs of train.py, in directories of their own: the
first prunes channels by masks, the second goes on from its last step with the
smaller net, in which these channels and their part of the optimizer's state are
gone. So what was stopped goes on where it was, and ends in the same bits.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import sparsejax
from experiments.config import check
from experiments.errors import UserError
from experiments.runs import metrics, programs, timing, train
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.batches import open_source
from experiments.runs.model import Model, no_scores
from experiments.runs.programs import Programs
from experiments.runs.step import State, start
from sparsejax import shrink
from sparsejax.masks import path_name

# The largest relative difference between a rebuilt net and the masked one.
_LARGEST_ERROR = 1e-4


class Net(NamedTuple):
  """A net from which channels were taken.

  Attributes:
    config: The config of the run that trains it on.
    folder: That run's directory.
    before: The numbers of the masked net at the end of the first run.
    at_once: Those of the smaller net before it is trained.
    after: Those of it at the end of the second run.
    error: The largest difference of its logits from those of the masked net
      that it was taken from, relative to the largest of them.
  """

  config: ml_collections.ConfigDict
  folder: Path
  before: Mapping[str, Any]
  at_once: Mapping[str, Any]
  after: Mapping[str, Any]
  error: float


def plan(
  config: ml_collections.ConfigDict,
) -> dict[float, list[ml_collections.ConfigDict]]:
  """Makes and checks the configs of the first runs, by sparsity.

  Args:
    config: As `experiments.drivers.shrink.defaults` makes it.

  Returns:
    The configs at each sparsity, one a seed.

  Raises:
    UserError: If there is nothing to run, or a config is wrong.
  """
  if not (config.sparsities and config.seeds):
    raise UserError(
      "config.sparsities or config.seeds is empty; nothing to run"
    )
  if not 0 < config.shrink_at < config.base.steps:
    raise UserError(
      f"config.shrink_at is {config.shrink_at}; wanted a step between 0 and "
      f"config.base.steps, {config.base.steps}"
    )
  planned = {}
  for sparsity in config.sparsities:
    planned[sparsity] = []
    for seed in config.seeds:
      one = config.base.copy_and_resolve_references()
      one.unlock()
      one.algorithm.sparsity = sparsity
      one.steps, one.seed = config.shrink_at, seed
      one.name = f"{config.name}, {100 * sparsity:g} %, seed {seed}"
      check.training_run(one)
      planned[sparsity].append(one)
  return planned


def train_net(
  config: ml_collections.ConfigDict,
  first: ml_collections.ConfigDict,
  folder: Path,
  progress: progress_lib.Track = progress_lib.untracked,
) -> Net:
  """Trains, takes the channels out and trains on, or reads what is finished.

  Args:
    config: As for `plan`.
    first: The config of the first run.
    folder: Where both runs go.
    progress: Where to show progress, as `progress.bar` yields it.

  Returns:
    The net.

  Raises:
    UserError: As `train.train`; or if the net is not what its masks say once
      their channels are gone.
  """
  trained = train.train(first, folder / "masked", progress=progress)
  file = folder / "shrunk.json"

  def made() -> dict[str, Any]:
    taken = _take(first, folder / "masked")
    return {"widths": taken.widths, "error": taken.error}

  taken = workdir_lib.read_or_make(file, made)
  second = _with_widths(config.base, taken["widths"])
  second.unlock()
  for key, value in config.then.items():  # whole parts, with no old keywords
    second[key] = value
  second.algorithm = {"name": "dense"}
  second.seed, second.name = first.seed, f"{first.name}, smaller"
  check.training_run(second)
  begin = functools.partial(_begin, first, folder / "masked")
  after = train.train(second, folder / "shrunk", progress=progress, start=begin)
  return Net(
    second,
    folder / "shrunk",
    trained.metrics,
    metrics.last_test([r for r in after.history if r["step"] == first.steps]),
    after.metrics,
    taken["error"],
  )


class _Taken(NamedTuple):
  """A masked net whose channels are taken out.

  Attributes:
    state: Its state.
    plan: Of its variables.
    remove: What leaves.
    small: The variables that stay.
    widths: Features of the layers that change, by their paths.
    error: See `Net`.
  """

  state: State
  plan: shrink.Plan
  remove: shrink.Removal
  small: dict[str, Any]
  widths: dict[str, int]
  error: float


def _take(config: ml_collections.ConfigDict, folder: Path) -> _Taken:
  """Takes the channels out that the masks of a finished run have zeroed.

  Raises:
    UserError: If the net, made anew with smaller layers, is not the masked one.
  """
  state = train.state_at(config, folder, config.steps)
  whole = _variables(state)
  source = open_source(config, np.asarray(state.keys["data"]))
  x, _ = source.batches(0).taken(jnp.int32(0))
  plan = shrink.trace(_logits(config), whole, x)
  masks = sparsejax.get_masks(state.opt_state)
  remove = plan.remove(_zeroed(plan, state.params, masks))
  small = plan.take(whole, remove)
  widths = _widths(whole["params"], small["params"])
  wanted = jax.jit(_logits(config))(plan.mask(whole, remove), x)
  got = jax.jit(_logits(_with_widths(config, widths)))(small, x)
  error = float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
  if not error <= _LARGEST_ERROR:
    raise UserError(
      f"model {config.model.name} of layers {widths} differs by {error:.2g} "
      f"from its masked net, wanted at most {_LARGEST_ERROR:g}: it computes "
      "with its own widths. Take another model, or run this one as a function, "
      "by sparsejax.shrink"
    )
  return _Taken(state, plan, remove, small, widths, error)


def _variables(state: State) -> dict[str, Any]:
  return {"params": state.params, "batch_stats": state.batch_stats}


def _logits(config: ml_collections.ConfigDict) -> Callable[..., jax.Array]:
  """Makes `(variables, x) -> logits` of a config's model."""
  model = Model(config)
  return lambda variables, x: model.apply(
    variables, model.dataset.prepare(x), False
  )


def _with_widths(
  config: ml_collections.ConfigDict, widths: Mapping[str, int]
) -> ml_collections.ConfigDict:
  """Copies a run's config, with other widths of its model's layers."""
  one = config.copy_and_resolve_references()
  if widths:
    with one.unlocked():
      one.model.widths = widths
  return one


def _zeroed(plan: shrink.Plan, params: Any, masks: Any) -> list[int]:
  """Lists the units of which, by the masks, no kernel computes anything.

  What biases and norms add does not count: it leaves with them.

  Args:
    plan: Of variables, with `params` among them.
    params: The parameters.
    masks: Their masks.
  """
  active = {
    f"params/{path_name(path)}": np.broadcast_to(mask, x.shape)
    for (path, x), mask in zip(
      jax.tree_util.tree_leaves_with_path(params),
      jax.tree.leaves(masks),
      strict=True,
    )
    if path_name(path).endswith("/kernel")
  }
  units = []
  for group in plan.groups.values():
    for unit in group:
      # Kernels have their outputs last.
      outputs = [
        active[path][..., ~kept]
        for (path, axis), kept in plan.remove([unit]).keep.items()
        if path in active and axis == active[path].ndim - 1
      ]
      if outputs and not any(map(np.any, outputs)):
        units.append(unit)
  return units


def _widths(whole: Any, small: Any) -> dict[str, int]:
  """Lists the layers whose kernels have fewer outputs, and how many."""
  features = [
    {
      path_name(path).removesuffix("/kernel"): x.shape[-1]
      for path, x in jax.tree_util.tree_leaves_with_path(params)
      if path_name(path).endswith("/kernel")
    }
    for params in (whole, small)
  ]
  return {
    layer: n for layer, n in features[1].items() if n != features[0][layer]
  }


def _begin(
  config: ml_collections.ConfigDict, folder: Path, program: Programs
) -> State:
  """Makes the state in which the smaller net trains on."""
  state, plan, remove, small, *_ = _take(config, folder)
  structure = jax.tree.structure(state.params)

  def is_like_params(x: Any) -> bool:
    return jax.tree.structure(x) == structure

  def cut(x: Any) -> Any:
    if not is_like_params(x):
      return x
    return plan.take({**_variables(state), "params": x}, remove)["params"]

  inner = jax.tree.map(cut, state.opt_state.inner_state, is_leaf=is_like_params)
  begun = program.begin(state.keys, small)
  opt_state = begun.opt_state._replace(inner_state=inner)
  return start(
    state.step, small["params"], small["batch_stats"], opt_state, state.keys
  )


def speeds(
  nets: Mapping[str, Net], file: Path, *, rounds: int
) -> dict[str, dict[str, float]]:
  """Times nets in turns, or reads the numbers.

  Args:
    nets: By their names; the first is what the others are compared with.
    file: Where the numbers are, or go.
    rounds: How often.

  Returns:
    By name, how many times as fast as the first a net is in a `forward` pass of
    a batch, and in a training `step`.
  """

  def make() -> dict[str, dict[str, float]]:
    calls = {name: _calls(net) for name, net in nets.items()}
    made = {}
    for i, what in enumerate(("forward", "step")):
      functions = {name: pair[i] for name, pair in calls.items()}
      made[what] = timing.ratios(
        timing.in_turns(functions, rounds=rounds), next(iter(nets))
      )
    return {name: {what: made[what][name] for what in made} for name in nets}

  return workdir_lib.read_or_make(file, make)


def _calls(net: Net) -> tuple[Callable[[], Any], Callable[[], Any]]:
  """Makes functions without arguments: a forward pass, and a training step."""
  program = programs.get(net.config)
  state = train.state_at(net.config, net.folder, net.config.steps)
  source = open_source(net.config, np.asarray(state.keys["data"]))
  batches = source.batches(0)
  state = jax.tree.map(jnp.array, state._replace(step=jnp.int32(0)))
  variables = jax.tree.map(jnp.copy, _variables(state))
  x, y = batches.taken(jnp.int32(0))

  def forward() -> Any:
    return program.evaluate(no_scores(), variables, x, y)

  def step() -> Any:
    nonlocal state
    state = program.ordinary.one(state, batches)
    return state.sums

  return forward, step
