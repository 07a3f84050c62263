"""Pruning in one shot: no training, only the inputs of a few batches.

Pure functions of one matrix, a kernel [inputs, outputs] as in Flax, and of the
statistics of its inputs. Use `jax.vmap` to map over stacked layers. Code that
walks a model and runs calibration is in experiments/llm/prune.
"""

from sparsejax.oneshot.calibration import (
  Statistics,
  merge,
  observe,
  statistics,
)
from sparsejax.oneshot.layers import outliers, owl_densities
from sparsejax.oneshot.pruning import prune
from sparsejax.oneshot.reconstruction import reconstruct, sparsegpt
from sparsejax.oneshot.scores import magnitude, ria, wanda
from sparsejax.oneshot.swapping import dsnot

__all__ = [
  "Statistics",
  "dsnot",
  "magnitude",
  "merge",
  "observe",
  "outliers",
  "owl_densities",
  "prune",
  "reconstruct",
  "ria",
  "sparsegpt",
  "statistics",
  "wanda",
]
