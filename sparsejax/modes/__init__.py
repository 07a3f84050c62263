"""Whole trainings on packed arrays: the same algorithms, the same masks."""

from sparsejax.gradients import value_and_grad
from sparsejax.modes.packing import trimmed
from sparsejax.modes.state import PackedState
from sparsejax.modes.training import PackedTransformation, kernels, packed

__all__ = [
  "PackedState",
  "PackedTransformation",
  "kernels",
  "packed",
  "trimmed",
  "value_and_grad",
]
