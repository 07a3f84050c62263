"""Residual networks: Wide ResNets and He et al.'s, for CIFAR and ImageNet.

All keep BatchNorm's running statistics in the collection `batch_stats`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import UserError
from experiments.models import layers


class WideResNet(nn.Module):
  """WRN-depth-width, the network of RigL's CIFAR-10 results (WRN-22-2).

  Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146, as in
  google-research/rigl, cifar_resnet/resnet_model.py, whose own options are
  `kernel_init="glorot_uniform", dropout=0.3`.

  Layers: `conv1`, `stage{1..3}_block{1..n}/{bn1, conv1, bn2, conv2}` with a
  `shortcut` where the number of channels changes, `bn`, `logits`.

  Attributes:
    num_classes: Number of logits.
    depth: 6 n + 4 for n blocks a stage.
    width: Factor on the stages' 16, 32, 64 channels; may be fractional.
    dropout: Rate between a block's convolutions.
    kernel_init: Name of the kernels' initializer.
    norm_scale: BatchNorm's initial scales, "ones" or "uniform" in [0, 1).
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  depth: int = 22
  width: float = 2
  dropout: float = 0.0
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
      UserError: depth is not 6 n + 4, or x has another rank.
    """
    blocks = _blocks(self.depth, extra=4)
    x = layers.as_batch(x, "batch height width channels", self.dtype)
    x = layers.conv(self, 16, 3, name="conv1")(x)
    stages = [(blocks, max(1, round(n * self.width))) for n in (16, 32, 64)]
    x = layers.residual_stages(self, _wide_block, x, train, stages)
    x = layers.batch_norm(self, train, name="bn")(x)
    return layers.pool_and_classify(self, nn.relu(x))


def _wide_block(
  model: WideResNet, x: jax.Array, train: bool, features: int, strides: int
) -> jax.Array:
  """Norm, ReLU, convolution, twice; a projection shares the first norm."""
  y = nn.relu(layers.batch_norm(model, train, name="bn1")(x))
  if x.shape[-1] != features:
    x = layers.conv(model, features, 1, strides, name="shortcut")(y)
  # At stride 2 the source, in TensorFlow, pads below and on the right.
  y = layers.conv(model, features, 3, strides, name="conv1", padding="SAME")(y)
  y = nn.relu(layers.batch_norm(model, train, name="bn2")(y))
  y = nn.Dropout(model.dropout, deterministic=not train)(y)
  return x + layers.conv(model, features, 3, name="conv2")(y)


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
    shortcut: Where the shape changes: "A" takes every second pixel and fills
      new channels with zeros; "B" is a 1 x 1 convolution with BatchNorm.
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
  shortcut: str = "B"
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
      UserError: shortcut is not "A" or "B", or x has another rank.
    """
    if self.shortcut not in ("A", "B"):
      raise UserError(f"resnet: shortcut must be A or B, got {self.shortcut!r}")
    x = layers.as_batch(x, "batch height width channels", self.dtype)
    size, strides = (3, 1) if self.small_images else (7, 2)
    x = layers.conv(self, self.width, size, strides, name="conv1")(x)
    x = nn.relu(layers.batch_norm(self, train, name="bn1")(x))
    if not self.small_images:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
    stages = [(n, self.width * 2**i) for i, n in enumerate(self.blocks)]
    x = layers.residual_stages(self, _block, x, train, stages)
    return layers.pool_and_classify(self, x)


def _block(
  model: ResNet, x: jax.Array, train: bool, features: int, strides: int
) -> jax.Array:
  """Convolutions with norms, ReLU between them, plus the input, ReLU."""
  conv = functools.partial(layers.conv, model)
  norm = functools.partial(layers.batch_norm, model, train)
  sizes = [(features, 3, strides), (features, 3, 1)]
  if model.bottleneck:
    sizes = [(features, 1, 1), (features, 3, strides), (4 * features, 1, 1)]
  y = x
  for i, size in enumerate(sizes, 1):
    y = conv(*size, name=f"conv{i}")(y if i == 1 else nn.relu(y))
    y = norm(name=f"bn{i}", zero=model.zero_init and i == len(sizes))(y)
  if x.shape != y.shape and model.shortcut == "A":
    x = x[:, ::strides, ::strides]
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, y.shape[-1] - x.shape[-1])])
  elif x.shape != y.shape:
    x = conv(y.shape[-1], 1, strides, name="shortcut")(x)
    x = norm(name="shortcut_bn")(x)
  return nn.relu(x + y)


def cifar_resnet(
  num_classes: int,
  *,
  depth: int = 20,
  width: int = 16,
  shortcut: str = "A",
  kernel_init: str = "he_normal",
  norm_scale: str = "ones",
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> ResNet:
  """Makes ResNet-20, 32, 56 for CIFAR, of three stages.

  He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition",
  arXiv 1512.03385, section 4.2.

  Args:
    num_classes: Number of logits.
    depth: 6 n + 2 for n blocks a stage.
    width: Channels of the first stage; doubled at each of the next two.
    shortcut: Of `ResNet`: "A", as in the paper for CIFAR; or "B", as in
      open_lth (facebookresearch/open_lth): 2,752 parameters more at width 16.
    kernel_init: Name of the kernels' initializer.
    norm_scale: BatchNorm's initial scales, "ones" or "uniform" in [0, 1).
    dtype: The compute dtype; parameters and logits are float32.

  Returns:
    The network.

  Raises:
    UserError: depth is not 6 n + 2.
  """
  return ResNet(
    num_classes,
    blocks=(_blocks(depth, extra=2),) * 3,
    bottleneck=False,
    width=width,
    small_images=True,
    shortcut=shortcut,
    kernel_init=kernel_init,
    norm_scale=norm_scale,
    dtype=dtype,
  )


def _blocks(depth: int, *, extra: int) -> int:
  """Computes n of depth = 6 n + extra; the error names the nearest depths."""
  n, rest = divmod(depth - extra, 6)
  if rest or n < 1:
    near = max(n, 1)
    raise UserError(
      f"resnet: depth must be 6 n + {extra}, got {depth}; the nearest are "
      f"{6 * near + extra} and {6 * (near + 1) + extra}."
    )
  return n
