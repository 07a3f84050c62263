"""Sparse training as an optax transformation: `sparsify` and its state."""

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
  "first_masks",
  "init",
  "sparsify",
  "straight_through",
  "taking_over",
]
