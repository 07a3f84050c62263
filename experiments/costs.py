"""What runs cost: FLOPs relative to dense, by the cost models of the papers."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import build, programs
from sparsejax import distributions, flops
from sparsejax.masks import path_name

if TYPE_CHECKING:
  from experiments.train import Result


class Run(NamedTuple):
  """A finished run: its config and what it left."""

  config: ml_collections.ConfigDict
  result: "Result"


class Cost(NamedTuple):
  """FLOPs relative to those of the dense net.

  Attributes:
    training: Of a training step, on average.
    inference: Of a forward pass with the final masks.
  """

  training: float
  inference: float


def of(run: Run) -> Cost:
  """Sums up what a run costs."""
  leaves = by_leaf(run)
  dense = sum(jax.tree.leaves(leaves))
  sparse = float(flops.sparse_flops(leaves, run.result.masks))
  training = _training(run, leaves, dense, sparse)
  return Cost(training / flops.dense_training_flops(dense), sparse / dense)


def by_leaf(run: Run):
  """Forward FLOPs of one example, by parameter."""
  dataset, model = programs.parts(run.config)

  def forward(params, x):
    variables = {"params": params, "batch_stats": run.result.batch_stats}
    return model.apply(variables, dataset.prepare(x), False)

  x = jax.ShapeDtypeStruct((1, *dataset.like.shape), dataset.like.dtype)
  return flops.param_flops(forward, run.result.params, x)


def _training(run: Run, leaves, dense: float, sparse: float) -> float:
  """FLOPs of a mean training step; see RigL's appendix H."""
  algorithm = run.config.algorithm
  match algorithm.name:
    case "dense":
      return flops.dense_training_flops(dense)
    case "static" | "set":
      return flops.static_training_flops(sparse)
    case "mest":  # With a surplus it has more weights at first.
      return flops.pruning_training_flops(_over_time(run, leaves))
    case "snfs":
      return flops.snfs_training_flops(dense, sparse)
    case "rigl" | "seft" | "srigl":
      delta_t = algorithm.get("delta_t", 100)
      return flops.rigl_training_flops(dense, sparse, delta_t=delta_t)
    case "gmp":
      return flops.pruning_training_flops(_over_time(run, leaves))
    case "granet":
      steps = _over_time(run, leaves)
      extra = (dense - steps.mean()) / algorithm.get("delta_t", 1000)
      return flops.pruning_training_flops(steps) + extra
    case "ac_dc":
      share = _compressed_share(algorithm.phases, run.config.steps)
      return flops.static_training_flops(share * sparse + (1 - share) * dense)
    case "top_kast":
      backward = _with_budgets(run, leaves, algorithm.backward_sparsity)
      return flops.top_kast_training_flops(sparse, backward)
    case "ste" | "sr_ste" | "movement" | "soft_movement" | "str":
      steps = _over_time(run, leaves)
      return flops.straight_through_training_flops(dense, steps)
  raise ValueError(f"no cost model for {algorithm.name}")


def _over_time(run: Run, leaves) -> np.ndarray:
  """Forward FLOPs at every step, on a line between two evaluations."""
  tests = [r for r in run.result.history if r["split"] == "test"]

  def cost(record):
    layers = record["layers"].items()
    return _scaled(leaves, {p: c["nnz"] / c["size"] for p, c in layers})

  steps = [record["step"] for record in tests]
  return np.interp(np.arange(steps[-1]), steps, list(map(cost, tests)))


def _compressed_share(phases, steps) -> float:
  """The share of steps in sparse phases, which begin at every other one."""
  bounds = [*phases, steps]
  pairs = zip(bounds[::2], bounds[1::2], strict=True)
  return sum(end - begin for begin, end in pairs) / steps


def _with_budgets(run: Run, leaves, sparsity) -> float:
  """Forward FLOPs with the budgets of another sparsity."""
  given = build.algorithm_functions(run.config)
  counts = distributions.budgets(
    run.result.params,
    sparsity,
    given.get("distribution", distributions.erdos_renyi_kernel),
    given.get("prunable", distributions.matrices),
  )
  sizes = {
    path_name(path): np.size(p)
    for path, p in jax.tree_util.tree_leaves_with_path(run.result.params)
  }
  return _scaled(leaves, {p: n / sizes[p] for p, n in counts.items()})


def _scaled(leaves, shares) -> float:
  """Forward FLOPs with these shares of leaves' weights; others are whole."""
  costs = jax.tree_util.tree_leaves_with_path(leaves)
  return sum(f * shares.get(path_name(path), 1.0) for path, f in costs)
