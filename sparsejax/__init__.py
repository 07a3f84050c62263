"""Sparse training in JAX: masks, mask updates, and one skin over optax.

Pure functions on pytrees, for any network library; nothing here reads files or
flags. Experiments with data and models are in experiments/.
"""

from sparsejax import (
  algorithms,
  distill,
  distributions,
  finetune,
  flops,
  initial,
  instruments,
  lottery,
  masks,
  modes,
  oneshot,
  packed,
  patterns,
  quantize,
  report,
  roles,
  schedules,
  scores,
  select,
  shrink,
  updates,
)
from sparsejax.algorithms import *  # noqa: F403
from sparsejax.gradients import value_and_grad
from sparsejax.linear import matmul, matmul_each
from sparsejax.masks import apply_masks, density, nnz
from sparsejax.transform import (
  SparseTransformation,
  check,
  init,
  sparsify,
  straight_through,
)
from sparsejax.transform.state import SparseState, forward_params, get_masks
from sparsejax.updates import MaskState, MaskUpdate

__version__ = "0.1.0"

__all__ = [
  *algorithms.__all__,
  "MaskState",
  "MaskUpdate",
  "SparseState",
  "SparseTransformation",
  "apply_masks",
  "check",
  "density",
  "distill",
  "distributions",
  "finetune",
  "flops",
  "forward_params",
  "get_masks",
  "init",
  "initial",
  "instruments",
  "lottery",
  "masks",
  "matmul",
  "matmul_each",
  "modes",
  "nnz",
  "oneshot",
  "packed",
  "patterns",
  "quantize",
  "report",
  "roles",
  "schedules",
  "scores",
  "select",
  "shrink",
  "sparsify",
  "straight_through",
  "updates",
  "value_and_grad",
]
