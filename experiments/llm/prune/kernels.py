"""The kernels that pruning and sparse fine-tuning change, and their zeros."""

from typing import Any

import numpy as np
from flax import traverse_util

from experiments.llm.families.protocol import is_layer_kernel


def prunable(path: str, leaf: Any) -> bool:
  """Returns whether a parameter is a layer's kernel."""
  del leaf
  return is_layer_kernel(path)


def by_path(params: Any) -> dict[str, np.ndarray]:
  """Returns the kernels [layers, in, out] by their paths."""
  leaves = traverse_util.flatten_dict(params, sep="/")
  return {
    path: np.asarray(leaf)
    for path, leaf in leaves.items()
    if is_layer_kernel(path)
  }


def nonzeros(params: Any) -> dict[str, np.ndarray]:
  """Counts each kernel's non-zeros, int64[layers], by path."""
  return {
    path: np.count_nonzero(kernel, axis=(-2, -1))
    for path, kernel in by_path(params).items()
  }


def count(params: Any) -> tuple[int, int]:
  """Counts the non-zeros and all weights of all layers' kernels."""
  size = sum(kernel.size for kernel in by_path(params).values())
  return sum(int(n.sum()) for n in nonzeros(params).values()), size
