"""Sparse training in JAX: masks, mask updates, and one skin over optax."""

from sparsejax import (
  distributions,
  flops,
  initial,
  instruments,
  lottery,
  masks,
  patterns,
  report,
  schedules,
  scores,
  select,
  updates,
)
from sparsejax.algorithms import (
  dense,
  fixed,
  gmp,
  rigl,
  seft,
  set_,
  snfs,
  static,
)
from sparsejax.masks import apply_masks, density, nnz
from sparsejax.transform import (
  SparseState,
  forward_params,
  get_masks,
  init,
  sparsify,
)
from sparsejax.updates import MaskState, MaskUpdate

__version__ = "0.1.0"

__all__ = [
  "MaskState",
  "MaskUpdate",
  "SparseState",
  "apply_masks",
  "dense",
  "density",
  "distributions",
  "fixed",
  "flops",
  "forward_params",
  "get_masks",
  "gmp",
  "init",
  "initial",
  "instruments",
  "lottery",
  "masks",
  "nnz",
  "patterns",
  "report",
  "rigl",
  "schedules",
  "scores",
  "seft",
  "select",
  "set_",
  "snfs",
  "sparsify",
  "static",
  "updates",
]
