"""Trains packed arrays, with the same algorithms and masks as masked mode.

`packed` and `kernels` turn a sparse transformation into one whose params are
the values of the non-zeros. `sparsejax.packed` stores and multiplies them.
"""

from sparsejax.gradients import value_and_grad
from sparsejax.modes.packing import trimmed
from sparsejax.modes.slots import PackedState
from sparsejax.modes.training import PackedTransformation, kernels, packed

__all__ = [
  "PackedState",
  "PackedTransformation",
  "kernels",
  "packed",
  "trimmed",
  "value_and_grad",
]
