"""MobileNet-v1, for ImageNet.

It keeps BatchNorm's running statistics in the collection `batch_stats`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models import layers

# The channels that come out of each block, and its stride.
_BLOCKS = (
  (64, 1),
  (128, 2),
  (128, 1),
  (256, 2),
  (256, 1),
  (512, 2),
  *((512, 1),) * 5,
  (1024, 2),
  (1024, 1),
)


class MobileNet(nn.Module):
  """MobileNet-v1 at 224 x 224; 4,231,976 parameters with 1000 classes.

  Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile
  Vision Applications", arXiv 1704.04861, table 1, where the last block's stride
  is 2 by mistake: its output is 7 x 7, and so are those of all implementations.

  Layers: `conv1`, `bn1`, `block{1..13}/{depthwise, bn1, pointwise, bn2}`,
  `logits`. Papers on sparse training leave `conv1` and `depthwise` dense.

  Attributes:
    num_classes: Number of logits.
    width: Factor on all numbers of channels, as in the small and wide nets that
      sparse ones are compared with; they are rounded to multiples of 8.
    blocks: (channels, stride) of each block.
    kernel_init: Name of the kernels' initializer.
    norm_scale: BatchNorm's initial scales, "ones" or "uniform" in [0, 1).
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  width: float = 1.0
  blocks: tuple[tuple[int, int], ...] = _BLOCKS
  kernel_init: str = "he_normal"
  norm_scale: str = "ones"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x[batch, height, width, 3] to float32[batch, num_classes].

    Args:
      x: images.
      train: Whether to normalise by the batch and update running statistics.

    Returns:
      Logits.

    Raises:
      UserError: x has another rank.
    """
    x = layers.as_batch(x, "batch height width channels", self.dtype)
    x = layers.conv(self, self._channels(32), 3, 2, name="conv1")(x)
    x = nn.relu(layers.batch_norm(self, train, name="bn1")(x))
    for i, (channels, strides) in enumerate(self.blocks, 1):
      block = layers.Block(_block, name=f"block{i}")
      x = block(self, x, train, self._channels(channels), strides)
    return layers.pool_and_classify(self, x)

  def _channels(self, n: int) -> int:
    """Rounds n * width to a multiple of 8, at most a tenth down."""
    wanted = n * self.width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _block(
  model: MobileNet, x: jax.Array, train: bool, features: int, strides: int
) -> jax.Array:
  """A convolution of each channel by itself, then one over channels."""
  channels = x.shape[-1]
  x = layers.conv(
    model, channels, 3, strides, name="depthwise", groups=channels
  )(x)
  x = nn.relu(layers.batch_norm(model, train, name="bn1")(x))
  x = layers.conv(model, features, 1, name="pointwise")(x)
  return nn.relu(layers.batch_norm(model, train, name="bn2")(x))
