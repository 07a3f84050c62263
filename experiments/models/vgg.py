"""VGG nets for 32 x 32 images, with BatchNorm and one linear layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models import layers

# VGG-19: configuration E of the paper.
STAGES_19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


class VGG(nn.Module):
  """VGG-16 for CIFAR; 14,728,266 parameters with 10 classes; and VGG-19.

  The convolutions of Simonyan and Zisserman, "Very Deep Convolutional Networks
  for Large-Scale Image Recognition", arXiv 1409.1556, configuration D, as in
  facebookresearch/open_lth, models/cifar_vgg.py, whose own option is
  `norm_scale="uniform"`: BatchNorm after each, four times max pooling, the mean
  over what is left, and no hidden linear layer.

  Layers: `conv1`, `bn1`, `conv2`, ...; `logits`. BatchNorm's running statistics
  are in the collection `batch_stats`.

  Attributes:
    num_classes: Number of logits.
    stages: Channels of the convolutions between two poolings.
    kernel_init: Name of the kernels' initializer.
    norm_scale: What BatchNorm's scales begin with: "ones", or "uniform" for
      draws from [0, 1).
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  stages: Sequence[Sequence[int]] = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
  )
  kernel_init: str = "he_normal"
  norm_scale: str = "ones"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x[batch, height, width, channels] to float32[batch, classes]."""
    x = layers.as_batch(x, "batch height width channels", self.dtype)
    number = 0
    for stage, widths in enumerate(self.stages):
      if stage:
        x = layers.max_pool(x)
      for features in widths:
        number += 1
        conv = layers.conv(self, features, 3, name=f"conv{number}", bias=True)
        norm = layers.batch_norm(self, train, name=f"bn{number}")
        x = nn.relu(norm(conv(x)))
    return layers.pool_and_classify(self, x)
