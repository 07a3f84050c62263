"""FLOPs of finished runs, relative to dense, by the cost models of papers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments.config import algorithms, parts
from experiments.runs import programs
from experiments.runs.model import load
from sparsejax import distributions, flops
from sparsejax.masks import path_name

History = Sequence[Mapping[str, Any]]


class Cost(NamedTuple):
  """FLOPs of one example, by the cost model of RigL's paper, appendix H.

  Attributes:
    training: Of a training step, on average.
    inference: Of a forward pass with the final masks.
    dense_training: Of a training step of the same net without zeros.
    dense_inference: Of its forward pass.
    estimated: Whether the algorithm has no cost model, and `training` is the
      mean of 3 f_S(t), as of one that computes no dense gradient.
  """

  training: float
  inference: float
  dense_training: float
  dense_inference: float
  estimated: bool = False

  @property
  def relative(self) -> tuple[float, float]:
    """Training and inference, relative to the same net without zeros."""
    return (
      self.training / self.dense_training,
      self.inference / self.dense_inference,
    )


def of(config: ml_collections.ConfigDict, history: History) -> Cost:
  """Computes the FLOPs of a run.

  Args:
    config: Its config.
    history: Its records, see metrics.jsonl.

  Returns:
    The FLOPs of one example.
  """
  net = _Net(config, history)
  cost = algorithms.find(config.algorithm.name).cost
  training = (cost or algorithms.by_density)(net)
  dense_training = flops.dense_training_flops(net.dense)
  return Cost(training, net.sparse, dense_training, net.dense, cost is None)


def dense(config: ml_collections.ConfigDict) -> tuple[float, float]:
  """Computes the FLOPs of a net without zeros, whether it was run or not.

  Args:
    config: Its config.

  Returns:
    Those of one example in a training step, and in a forward pass.
  """
  forward = sum(jax.tree.leaves(by_leaf(config)))
  return flops.dense_training_flops(forward), forward


def by_leaf(config: ml_collections.ConfigDict) -> Any:
  """Computes the forward FLOPs of one example, by parameter, without zeros."""
  dataset, model = load(config)
  stats = dict(variables(config))
  params = stats.pop("params")

  def forward(params: Any, stats: Any, x: jax.Array) -> jax.Array:
    return model.apply({"params": params, **stats}, dataset.prepare(x), False)

  x = jax.ShapeDtypeStruct((1, *dataset.like.shape), dataset.like.dtype)
  return flops.param_flops(forward, params, stats, x)


def variables(config: ml_collections.ConfigDict) -> Any:
  """Computes the shapes of a net's parameters and running averages."""
  return jax.eval_shape(programs.get(config).draw, parts.streams(config.seed))


class _Net:
  """A finished run's net, as `algorithms.Net` has it for cost models."""

  def __init__(
    self, config: ml_collections.ConfigDict, history: History
  ) -> None:
    self.config = config
    self.leaves = by_leaf(config)
    self.tests = [r for r in history if r["split"] == "test"]
    self.dense = sum(jax.tree.leaves(self.leaves))
    self.sparse = _scaled(self.leaves, _shares(self.tests[-1]))

  def over_time(self) -> np.ndarray:
    """Forward FLOPs at every step, on a line between two evaluations."""
    steps = [record["step"] for record in self.tests]
    costs = [_scaled(self.leaves, _shares(record)) for record in self.tests]
    return np.interp(np.arange(steps[-1]), steps, costs)

  def with_budgets(self, sparsity: float) -> float:
    """Forward FLOPs with the budgets of another sparsity."""
    params = variables(self.config)["params"]
    functions = parts.algorithm_functions(self.config)
    counts = distributions.budgets(
      params,
      sparsity,
      functions.get("distribution", distributions.erdos_renyi_kernel),
      functions.get("prunable", distributions.matrices),
    )
    sizes = {
      path_name(path): np.size(p)
      for path, p in jax.tree_util.tree_leaves_with_path(params)
    }
    return _scaled(self.leaves, {p: n / sizes[p] for p, n in counts.items()})


def _shares(record: Mapping[str, Any]) -> dict[str, float]:
  """The densities of the sparse leaves, of an evaluation's record."""
  return {p: c["nnz"] / c["size"] for p, c in record["layers"].items()}


def _scaled(leaves: Any, shares: Mapping[str, float]) -> float:
  """Forward FLOPs if these leaves keep these shares of their weights."""
  costs = jax.tree_util.tree_leaves_with_path(leaves)
  return sum(f * shares.get(path_name(path), 1.0) for path, f in costs)
