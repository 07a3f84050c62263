"""FLOPs of a model's products, read from its jaxpr, and of sparse training.

You choose the cost model of an algorithm; experiments/config/algorithms.py
does so for experiments.
"""

from sparsejax.flops.costs import (
  dense_training_flops,
  param_flops,
  product_flops,
  pruning_training_flops,
  rigl_training_flops,
  snfs_training_flops,
  sparse_flops,
  static_training_flops,
  straight_through_training_flops,
  top_kast_training_flops,
)

__all__ = [
  "dense_training_flops",
  "param_flops",
  "product_flops",
  "pruning_training_flops",
  "rigl_training_flops",
  "snfs_training_flops",
  "sparse_flops",
  "static_training_flops",
  "straight_through_training_flops",
  "top_kast_training_flops",
]
