"""What each leaf is, and what its axes are: decided here, and nowhere else.

A leaf is a weight, a bias, a norm's scale, an embedding or something else; its
axes are layers that are stacked in one array, inputs, outputs or the places of
a convolution. That is read off its key path, its shape and those of the leaves
beside it, for Flax Linen and NNX, Equinox and plain trees alike. What cannot be
read there can be said: see `by_path`.
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
