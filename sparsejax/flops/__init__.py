"""FLOPs: of a model's products, read off its jaxpr, and of sparse training.

Which cost model an algorithm has is decided by whoever counts, such as
experiments/config/algorithms.py.
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
