"""Models whose layers have other widths than their class gives them.

What structured pruning leaves is such a model: the same layers, fewer features.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from experiments.errors import UserError, unknown


class Resized(nn.Module):
  """A model, some of whose dense layers and convolutions have other widths.

  Its parameters have the names of the model's own.

  Attributes:
    model: Any model of this package.
    widths: Features by the path of a layer, such as "stage1_block1/conv1".
  """

  model: nn.Module
  widths: Mapping[str, int]

  def setup(self) -> None:
    """Lets the model's layers be this module's."""
    nn.share_scope(self, self.model)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps inputs to logits, as the model does.

    Args:
      x: [batch, ...].
      train: Whether to train.

    Returns:
      float32[batch, num_classes].

    Raises:
      UserError: If there is no such layer, or one cannot have another width.
    """
    layers, resized = set(), set()

    def resize(
      call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
      module = context.module
      if context.method_name == "__call__" and hasattr(module, "features"):
        name = "/".join(module.path)
        layers.add(name)
        if name in self.widths:
          _check(name, module)
          resized.add(name)
          # Linen freezes modules. This one was made for this call, and reads
          # its features only now.
          object.__setattr__(module, "features", self.widths[name])
      return call(*args, **kwargs)

    with nn.intercept_methods(resize):
      y = self.model(x, train)
    if missing := sorted(set(self.widths) - resized):
      raise unknown("layer of the model", missing[0], layers)
    return y


def _check(name: str, module: nn.Module) -> None:
  """Refuses layers whose width is not only a number of features."""
  if getattr(module, "feature_group_count", 1) != 1:
    raise UserError(
      f"{name} is a convolution of {module.feature_group_count} groups, wanted "
      "one of one group: a grouped convolution cannot be given another width"
    )
