"""Pruning in one shot: no training, only the inputs of a few batches.

Pure functions on one matrix, a kernel [inputs, outputs] as Flax has it, and on
what calibration told of its inputs. Stacked layers are mapped over with
`jax.vmap`. What walks a model and feeds it does not live here.
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
