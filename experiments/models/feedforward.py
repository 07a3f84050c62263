"""Small networks without BatchNorm: LeNets and convolutional nets."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models import layers


class MLP(nn.Module):
  """A perceptron with ReLU; LeNet-300-100 by default, 266,610 parameters.

  LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to
  document recognition", Proc. IEEE 1998; for 28 x 28 inputs, 10 classes.

  Attributes:
    num_classes: Number of logits.
    hidden: Units of each hidden layer: `dense1`, `dense2`, ...
    kernel_init: Name of the kernels' initializer.
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  hidden: Sequence[int] = (300, 100)
  kernel_init: str = "he_normal"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x[batch, ...], flattened, to float32[batch, num_classes]."""
    del train
    return layers.classify(self, jnp.asarray(x, self.dtype), self.hidden)


class LeNet5(nn.Module):
  """LeNet-5 with ReLU and max pooling; 61,706 parameters.

  As in LeCun et al. 1998, for 28 x 28 inputs and 10 classes, but with every
  feature map connected. The wider LeNet-5 of Caffe, which papers on pruning
  use (431,080 parameters), is `features=(20, 50), hidden=(500,),
  padding="VALID"`.

  Attributes:
    num_classes: Number of logits.
    features: Channels of the two 5 x 5 convolutions, `conv1` and `conv2`.
    hidden: Units of `dense1`, `dense2`, ...
    padding: Of the first convolution.
    kernel_init: Name of the kernels' initializer.
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  features: Sequence[int] = (6, 16)
  hidden: Sequence[int] = (120, 84)
  padding: str = "SAME"
  kernel_init: str = "he_normal"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x[batch, height, width, channels] to float32[batch, classes]."""
    del train
    return _convolve_and_classify(self, x, 5, (self.padding, "VALID"))


class SignalConv(nn.Module):
  """The convolutional net of the MNIST-1D paper; 5,210 parameters.

  Greydanus and Kobak, arXiv 2011.14439, `ConvBase` of its code: three 1-D
  convolutions of stride 2 and kernels 5, 3, 3, then one linear layer.

  Attributes:
    num_classes: Number of logits.
    channels: Of each of `conv1`, `conv2`, `conv3`.
    kernel_init: Name of the kernels' initializer.
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  channels: int = 25
  kernel_init: str = "he_normal"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x[batch, length, channels] to float32[batch, num_classes]."""
    del train
    x = layers.as_batch(x, "batch length channels", self.dtype)
    conv = functools.partial(layers.conv, self, self.channels, strides=2)
    for i, width in enumerate((5, 3, 3), 1):
      layer = conv(width, name=f"conv{i}", axes=1, padding=1, bias=True)
      x = nn.relu(layer(x))
    return layers.classify(self, x)


class SmallConv(nn.Module):
  """Two 3 x 3 convolutions with max pooling and one hidden layer.

  Of no paper: small enough for a CPU on 28 x 28 images (421,642 parameters
  with 10 classes).

  Attributes:
    num_classes: Number of logits.
    features: Channels of `conv1`, `conv2`, ...
    hidden: Units of `dense1`, `dense2`, ...
    kernel_init: Name of the kernels' initializer.
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  features: Sequence[int] = (32, 64)
  hidden: Sequence[int] = (128,)
  kernel_init: str = "he_normal"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x[batch, height, width, channels] to float32[batch, classes]."""
    del train
    return _convolve_and_classify(self, x, 3, ["SAME"] * len(self.features))


def _convolve_and_classify(
  model: nn.Module, x: jax.Array, size: int, paddings: Sequence[str]
) -> jax.Array:
  """Convolutions of one kernel size, ReLU and pooling; then dense layers."""
  x = layers.as_batch(x, "batch height width channels", model.dtype)
  for i, (features, padding) in enumerate(
    zip(model.features, paddings, strict=True), 1
  ):
    layer = layers.conv(
      model, features, size, name=f"conv{i}", padding=padding, bias=True
    )
    x = layers.max_pool(nn.relu(layer(x)))
  return layers.classify(model, x, model.hidden)
