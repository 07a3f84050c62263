"""The optimizer state of packed training."""

from sparsejax import packed
from sparsejax.masks import PyTree
from sparsejax.transform.state import SparseState


class PackedState(SparseState):
  """The state of `modes.packed`: masks are structures of packed arrays."""

  def forward(self, values: PyTree, probes: PyTree = None) -> PyTree:
    """Joins values and structures for the model: `packed.join`."""
    return packed.join(values, self.mask_state.masks, probes)
