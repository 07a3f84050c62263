"""The registry of algorithms: one row each, and nothing about them elsewhere.

A row holds what the rest of experiments/ has to know of an algorithm: its
function, what its training steps cost, how its first masks come, whether runs
of several sparsities can share a program, and its paper's shares of training.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import ml_collections
import numpy as np

import sparsejax
from experiments import names
from sparsejax import flops


class Net(Protocol):
  """A finished run's net, as cost models see it.

  Attributes:
    config: The run's config.
    dense: f_D, forward FLOPs of one example without zeros.
    sparse: f_S, those with the last masks.
  """

  config: ml_collections.ConfigDict
  dense: float
  sparse: float

  def over_time(self) -> np.ndarray:
    """f_S(t), forward FLOPs with the masks of every step, float64 [steps]."""

  def with_budgets(self, sparsity: float) -> float:
    """Forward FLOPs with the budgets of another sparsity."""


class Timing(NamedTuple):
  """When masks move, for recipes that several algorithms share.

  Integers are steps; each may be a reference to a field of a config.

  Attributes:
    delta_t: Between mask updates of dynamic sparse training.
    t_end: From which its masks stay.
    fraction: The share of active weights that moves at first.
    begin: The first that prunes.
    end: The last that prunes.
    prune_every: Between two that prune.
  """

  delta_t: Any
  t_end: Any
  fraction: float
  begin: Any
  end: Any
  prune_every: Any


class Algorithm(NamedTuple):
  """A row of the registry.

  Attributes:
    function: `(inner, sparsity, *, key, ...) -> SparseTransformation`, without
      a sparsity or a key where it needs none. A config sets its keywords.
    cost: `(Net) -> FLOPs` of a training step of one example, on average; None
      for `by_density`, which tables mark with "~".
    chooses_first_masks: Whether the first masks, like all others, are chosen by
      the weights, so that it takes none to begin with.
    budgets_in_state: Whether its sparsity is in its state only, and not in its
      program, so that runs of several sparsities can train as one population.
    timing: `(Timing) -> keywords`, if such a recipe is all that it needs; it is
      then an argument of the config files that share their recipes.
    shares: `(steps, every) -> keywords`: its paper's shares of training, in a
      run of so many steps, with `every` steps between updates of the methods
      that make some hundreds of them. None if `timing` says it all.
    last: The keyword of the last mask update, where that has to be a multiple
      of `delta_t` steps after the first; "" where any step will do.
  """

  function: Callable[..., sparsejax.SparseTransformation]
  cost: Callable[[Net], float] | None = None
  chooses_first_masks: bool = False
  budgets_in_state: bool = False
  timing: Callable[[Timing], dict[str, Any]] | None = None
  shares: Callable[[int, int], dict[str, Any]] | None = None
  last: str = ""

  def takes(self, keyword: str) -> bool:
    """Returns whether its function has a keyword, or takes any."""
    known, others = names.keywords(self.function, after=1)
    return keyword in known or others


# Cost models: Evci et al., arXiv:1911.11134, appendix H, and their like.


def _option(net: Net, key: str) -> Any:
  """A keyword of the run's algorithm, or its default."""
  default = inspect.signature(find(net.config.algorithm.name).function)
  return net.config.algorithm.get(key, default.parameters[key].default)


def _static_cost(net: Net) -> float:
  return flops.static_training_flops(net.sparse)


def _rigl_cost(net: Net) -> float:
  delta_t = _option(net, "delta_t")
  return flops.rigl_training_flops(net.dense, net.sparse, delta_t=delta_t)


def by_density(net: Net) -> float:
  """The mean of 3 f_S(t): whatever is active costs what it does in SET.

  Args:
    net: The run's net.

  Returns:
    FLOPs of a training step of one example, on average.
  """
  return flops.pruning_training_flops(net.over_time())


def _granet_cost(net: Net) -> float:
  """Of pruning, and a dense gradient of the weights on each update."""
  steps = net.over_time()
  extra = (net.dense - steps.mean()) / _option(net, "delta_t")
  return flops.pruning_training_flops(steps) + extra


def _ac_dc_cost(net: Net) -> float:
  """Sparse and dense phases; the sparse ones begin at every other bound."""
  bounds = [*net.config.algorithm.phases, net.config.steps]
  pairs = zip(bounds[::2], bounds[1::2], strict=True)
  share = sum(end - begin for begin, end in pairs) / net.config.steps
  mean = share * net.sparse + (1 - share) * net.dense
  return flops.static_training_flops(mean)


def _top_kast_cost(net: Net) -> float:
  backward = net.with_budgets(net.config.algorithm.backward_sparsity)
  return flops.top_kast_training_flops(net.sparse, backward)


def _straight_through_cost(net: Net) -> float:
  return flops.straight_through_training_flops(net.dense, net.over_time())


# Keywords of recipes.


def _moving(timing: Timing) -> dict[str, Any]:
  return {
    "delta_t": timing.delta_t,
    "t_end": timing.t_end,
    "fraction": timing.fraction,
  }


def _pruning(timing: Timing) -> dict[str, Any]:
  return {
    "delta_t": timing.prune_every,
    "begin": timing.begin,
    "end": timing.end,
  }


def _mest_shares(steps: int, every: int) -> dict[str, Any]:
  t_end = steps * 3 // 4
  return {"delta_t": 2 * every, "t_end": t_end, "fraction": 0.2}


def _srigl_shares(steps: int, every: int) -> dict[str, Any]:
  t_end = steps * 3 // 4
  return {"delta_t": every, "t_end": t_end, "fraction": 0.3, "ablation": 0.3}


def _granet_shares(steps: int, every: int) -> dict[str, Any]:
  times = {"begin": 0, "end": steps // 2, "t_end": steps, "delta_t": every}
  return {**times, "fraction": 0.5}


def _ac_dc_shares(steps: int, every: int) -> dict[str, Any]:
  """Dense for a tenth, then twentieths in turn, the last two longer."""
  del every
  turns = [*range(10, 80, 5), 85]
  return {"phases": [steps * t // 100 for t in turns]}


def _movement_shares(steps: int, every: int) -> dict[str, Any]:
  del every
  times = {"begin": steps // 10, "end": steps * 4 // 5}
  return {**times, "optimizer": {"name": "adam", "rate_factor": 0.2}}


def _sr_ste_shares(steps: int, every: int) -> dict[str, Any]:
  """Of any sparsity: its own pattern by default, 2:4, has only one."""
  del steps, every
  return {"pattern": {"name": "unstructured"}}


def _str_shares(steps: int, every: int) -> dict[str, Any]:
  del steps, every
  return {"optimizer": {"name": "sgd", "momentum": 0.9}}


ALGORITHMS = {
  "dense": Algorithm(
    sparsejax.dense,
    cost=lambda net: flops.dense_training_flops(net.dense),
    chooses_first_masks=True,
    timing=lambda timing: {},
  ),
  "static": Algorithm(
    sparsejax.static,
    cost=_static_cost,
    budgets_in_state=True,
    timing=lambda timing: {},
  ),
  "set": Algorithm(
    sparsejax.set_, cost=_static_cost, budgets_in_state=True, timing=_moving
  ),
  "rigl": Algorithm(
    sparsejax.rigl, cost=_rigl_cost, budgets_in_state=True, timing=_moving
  ),
  "snfs": Algorithm(
    sparsejax.snfs,
    cost=lambda net: flops.snfs_training_flops(net.dense, net.sparse),
    budgets_in_state=True,
    timing=_moving,
  ),
  "seft": Algorithm(
    sparsejax.seft, cost=_rigl_cost, budgets_in_state=True, timing=_moving
  ),
  "dst_ee": Algorithm(
    sparsejax.dst_ee, cost=_rigl_cost, budgets_in_state=True, timing=_moving
  ),
  "mest": Algorithm(
    sparsejax.mest,
    cost=by_density,  # with a surplus it has more weights at first
    budgets_in_state=True,
    shares=_mest_shares,
    last="t_end",
  ),
  "srigl": Algorithm(
    sparsejax.srigl,
    cost=_rigl_cost,
    budgets_in_state=True,
    shares=_srigl_shares,
  ),
  "gmp": Algorithm(
    sparsejax.gmp,
    cost=by_density,
    budgets_in_state=True,
    timing=_pruning,
    last="end",
  ),
  "granet": Algorithm(
    sparsejax.granet, cost=_granet_cost, shares=_granet_shares, last="end"
  ),
  "ac_dc": Algorithm(
    sparsejax.ac_dc,
    cost=_ac_dc_cost,
    chooses_first_masks=True,
    shares=_ac_dc_shares,
  ),
  "ste": Algorithm(
    sparsejax.ste, cost=_straight_through_cost, chooses_first_masks=True
  ),
  "sr_ste": Algorithm(
    sparsejax.sr_ste,
    cost=_straight_through_cost,
    chooses_first_masks=True,
    shares=_sr_ste_shares,
  ),
  "top_kast": Algorithm(
    sparsejax.top_kast,
    cost=_top_kast_cost,
    chooses_first_masks=True,
    last="t_end",
  ),
  "movement": Algorithm(
    sparsejax.movement,
    cost=_straight_through_cost,
    chooses_first_masks=True,
    shares=_movement_shares,
  ),
  "soft_movement": Algorithm(
    sparsejax.soft_movement,
    cost=_straight_through_cost,
    chooses_first_masks=True,
    shares=_movement_shares,
  ),
  "str": Algorithm(
    sparsejax.str_,
    cost=_straight_through_cost,
    chooses_first_masks=True,
    shares=_str_shares,
  ),
}


def by_shares(name: str, steps: int, every: int) -> dict[str, Any]:
  """Makes an algorithm's keywords from its paper's shares of training.

  Args:
    name: The algorithm.
    steps: Training steps.
    every: Steps between mask updates of the methods that make some hundreds
      of them.

  Returns:
    The keywords, none if the registry has no shares; without a sparsity.
  """
  row = find(name)
  if row.shares:
    return row.shares(steps, every)
  if row.timing:
    begin, end = steps // 4, steps * 3 // 4
    return row.timing(Timing(every, end, 0.3, begin, end, every))
  return {}


def find(name: str) -> Algorithm:
  """Finds an algorithm's row.

  Args:
    name: Its name in a config: a key of `ALGORITHMS`, or
      `package.module:attribute` of an algorithm's function, which has no more
      to its row, or of an `Algorithm`.

  Raises:
    UserError: If there is none of that name.
  """
  found = names.find("algorithm", name, ALGORITHMS, instances_of=Algorithm)
  return found if isinstance(found, Algorithm) else Algorithm(found)
