"""Sparse training as an optax transformation: `sparsify` and its state.

When masks are updated and what becomes of moments is decided here; how masks
change, in `sparsejax.updates`.
"""

from sparsejax.transform.checks import check
from sparsejax.transform.sparsify import (
  Recipe,
  SparseTransformation,
  first_masks,
  init,
  sparsify,
  straight_through,
)
from sparsejax.transform.takeover import taking_over

__all__ = [
  "Recipe",
  "SparseTransformation",
  "check",
  "first_masks",
  "init",
  "sparsify",
  "straight_through",
  "taking_over",
]
