"""What each leaf is, and what its axes are: decided here, and nowhere else.

A leaf is a weight, a bias, a norm's scale, an embedding or something else. Its
axes are layers that are stacked in one array, inputs, outputs or the positions
of a convolution. This is inferred from the key paths and shapes of the leaf and
of the leaves beside it, for Flax Linen and NNX, Equinox and plain trees alike.
Where that is not enough, you can say it yourself: see `by_path`.
"""

from sparsejax.roles.base import KINDS, Role, reading
from sparsejax.roles.choice import (
  Prunable,
  by_path,
  matrices,
  of,
  sparse,
  table,
)
from sparsejax.roles.layers import (
  LayerShape,
  budget_shape,
  by_layer,
  features,
  layer_shape,
  layers,
  layers_first,
  shared_out,
)

__all__ = [
  "KINDS",
  "LayerShape",
  "Prunable",
  "Role",
  "budget_shape",
  "by_layer",
  "by_path",
  "features",
  "layer_shape",
  "layers",
  "layers_first",
  "matrices",
  "of",
  "reading",
  "shared_out",
  "sparse",
  "table",
]
