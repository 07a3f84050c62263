"""Residual networks for 32 x 32 images: Wide ResNets and He et al.'s.

Both keep BatchNorm's running statistics in the collection `batch_stats`.
"""

import functools

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
    for stage in range(3):
      for block in range(blocks):
        x = _WideBlock(
          features=max(1, round(16 * 2**stage * self.width)),
          strides=2 if stage and not block else 1,
          dropout=self.dropout,
          kernel_init=self.kernel_init,
          norm_scale=self.norm_scale,
          dtype=self.dtype,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x, train)
    x = layers.batch_norm(self, train, name="bn")(x)
    return layers.pool_and_classify(self, nn.relu(x))


class _WideBlock(nn.Module):
  """Norm, ReLU, convolution, twice; a projection shares the first norm."""

  features: int
  strides: int
  dropout: float
  kernel_init: str
  norm_scale: str
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(layers.batch_norm(self, train, name="bn1")(x))
    if x.shape[-1] != self.features:
      x = layers.conv(self, self.features, 1, self.strides, name="shortcut")(y)
    # At stride 2 the source, in TensorFlow, pads below and on the right.
    y = layers.conv(
      self, self.features, 3, self.strides, name="conv1", padding="SAME"
    )(y)
    y = nn.relu(layers.batch_norm(self, train, name="bn2")(y))
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    return x + layers.conv(self, self.features, 3, name="conv2")(y)


class ResNet(nn.Module):
  """ResNet-20, 32, 56 for CIFAR.

  He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition",
  arXiv 1512.03385, section 4.2.

  Layers: `conv1`, `bn1`, `stage{1..3}_block{1..n}/{conv1, bn1, conv2, bn2}`
  and, with option B, `shortcut`, `shortcut_bn`; `logits`.

  Attributes:
    num_classes: Number of logits.
    depth: 6 n + 2 for n blocks a stage.
    width: Channels of the first stage; doubled at each of the next two.
    shortcut: Where the shape changes: "A", as in the paper for CIFAR, takes
      every second pixel and fills new channels with zeros; "B", as in
      open_lth (facebookresearch/open_lth), is a 1 x 1 convolution with
      BatchNorm: 2,752 parameters more at width 16.
    kernel_init: Name of the kernels' initializer.
    norm_scale: BatchNorm's initial scales, "ones" or "uniform" in [0, 1).
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  depth: int = 20
  width: int = 16
  shortcut: str = "A"
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
      UserError: depth is not 6 n + 2, shortcut not "A" or "B", or x has
        another rank.
    """
    if self.shortcut not in ("A", "B"):
      raise UserError(f"resnet: shortcut must be A or B, got {self.shortcut!r}")
    blocks = _blocks(self.depth, extra=2)
    x = layers.as_batch(x, "batch height width channels", self.dtype)
    x = layers.conv(self, self.width, 3, name="conv1")(x)
    x = nn.relu(layers.batch_norm(self, train, name="bn1")(x))
    for stage in range(3):
      for block in range(blocks):
        x = _Block(
          features=self.width * 2**stage,
          strides=2 if stage and not block else 1,
          shortcut=self.shortcut,
          kernel_init=self.kernel_init,
          norm_scale=self.norm_scale,
          dtype=self.dtype,
          name=f"stage{stage + 1}_block{block + 1}",
        )(x, train)
    return layers.pool_and_classify(self, x)


class _Block(nn.Module):
  """Convolution, norm, ReLU, convolution, norm, plus the input, ReLU."""

  features: int
  strides: int
  shortcut: str
  kernel_init: str
  norm_scale: str
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = functools.partial(layers.batch_norm, self, train)
    y = layers.conv(self, self.features, 3, self.strides, name="conv1")(x)
    y = nn.relu(norm(name="bn1")(y))
    y = norm(name="bn2")(layers.conv(self, self.features, 3, name="conv2")(y))
    if x.shape != y.shape and self.shortcut == "A":
      x = x[:, :: self.strides, :: self.strides]
      x = jnp.pad(x, [(0, 0)] * 3 + [(0, self.features - x.shape[-1])])
    elif x.shape != y.shape:
      x = layers.conv(self, self.features, 1, self.strides, name="shortcut")(x)
      x = norm(name="shortcut_bn")(x)
    return nn.relu(x + y)


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
