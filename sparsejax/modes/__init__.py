"""Whole trainings on packed arrays: the same algorithms, the same masks."""

from sparsejax.gradients import value_and_grad
from sparsejax.modes.training import (
  PackedTransformation,
  kernels,
  packed,
  trimmed,
)

__all__ = [
  "PackedTransformation",
  "kernels",
  "packed",
  "trimmed",
  "value_and_grad",
]
