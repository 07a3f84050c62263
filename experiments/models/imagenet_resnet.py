"""Residual networks of four stages: ResNet-18 and ResNet-50, for ImageNet.

They keep BatchNorm's running statistics in the collection `batch_stats`. Those
of three stages, for CIFAR, are in resnet.py.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models import layers


class ResNet(nn.Module):
  """ResNet-50 v1.5; 25,557,032 parameters with 1000 classes.

  He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition",
  arXiv 1512.03385, table 1. What is called v1.5, torchvision's among them, has
  the stride of a bottleneck in its 3 x 3 convolution. ResNet-18, 11,689,512
  parameters, is `blocks=(2, 2, 2, 2), bottleneck=False`.

  Layers: `conv1`, `bn1`, `stage{1..4}_block{1..n}/{conv1, bn1, conv2, bn2}`,
  in bottlenecks `conv3`, `bn3` too, and `shortcut`, `shortcut_bn` where the
  shape changes; `logits`.

  Attributes:
    num_classes: Number of logits.
    blocks: Number of blocks of each stage.
    bottleneck: Whether a block is 1 x 1, 3 x 3, 1 x 1, four times as wide at
      its end, or 3 x 3 twice.
    width: Channels of the first convolution; each stage doubles them.
    small_images: Whether to begin with a 3 x 3 convolution of stride 1 without
      pooling, as papers do that train these nets on CIFAR.
    zero_init: Whether the scale of a block's last norm begins with 0, so that
      the block begins as its shortcut.
    kernel_init: Name of the kernels' initializer.
    norm_scale: What BatchNorm's other scales begin with, "ones" or "uniform".
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  blocks: Sequence[int] = (3, 4, 6, 3)
  bottleneck: bool = True
  width: int = 64
  small_images: bool = False
  zero_init: bool = False
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
    size, strides = (3, 1) if self.small_images else (7, 2)
    x = layers.conv(self, self.width, size, strides, name="conv1")(x)
    x = nn.relu(layers.batch_norm(self, train, name="bn1")(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
    for stage, blocks in enumerate(self.blocks):
      for block in range(blocks):
        x = _Block(
          features=self.width * 2**stage,
          strides=2 if stage and not block else 1,
          bottleneck=self.bottleneck,
          zero_init=self.zero_init,
          kernel_init=self.kernel_init,
          norm_scale=self.norm_scale,
          dtype=self.dtype,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x, train)
    return layers.pool_and_classify(self, x)


class _Block(nn.Module):
  """Convolutions with norms, ReLU between them, plus the input, ReLU."""

  features: int
  strides: int
  bottleneck: bool
  zero_init: bool
  kernel_init: str
  norm_scale: str
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(layers.conv, self)
    norm = functools.partial(layers.batch_norm, self, train)
    if self.bottleneck:
      wide = 4 * self.features
      y = nn.relu(norm(name="bn1")(conv(self.features, 1, name="conv1")(x)))
      y = conv(self.features, 3, self.strides, name="conv2")(y)
      y = nn.relu(norm(name="bn2")(y))
      y = conv(wide, 1, name="conv3")(y)
      y = norm(name="bn3", zero=self.zero_init)(y)
    else:
      y = conv(self.features, 3, self.strides, name="conv1")(x)
      y = nn.relu(norm(name="bn1")(y))
      y = conv(self.features, 3, name="conv2")(y)
      y = norm(name="bn2", zero=self.zero_init)(y)
    if x.shape != y.shape:
      x = conv(y.shape[-1], 1, self.strides, name="shortcut")(x)
      x = norm(name="shortcut_bn")(x)
    return nn.relu(x + y)
