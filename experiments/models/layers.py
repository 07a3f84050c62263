"""What models share: initializers, layers, blocks, pooling, dense heads."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import UserError, unknown

_OF_FLAX = (
  *("glorot_normal", "glorot_uniform", "he_normal", "he_uniform"),
  *("lecun_normal", "lecun_uniform", "orthogonal"),
)
_INITS = {name: getattr(nn.initializers, name)() for name in _OF_FLAX} | {
  "he_normal_fan_out": nn.initializers.variance_scaling(
    2.0, "fan_out", "truncated_normal"
  )
}


def initializer(name: str) -> nn.initializers.Initializer:
  """Returns the kernel initializer of that name in `nn.initializers`.

  Args:
    name: Such as "he_normal", which is He et al., "Delving Deep into
      Rectifiers", arXiv 1502.01852: variance 2 / fan_in. One more is called
      "he_normal_fan_out", which many PyTorch models have: 2 / fan_out.

  Returns:
    A function (key, shape, dtype) -> kernel.

  Raises:
    UserError: The name is unknown.
  """
  if name not in _INITS:
    raise unknown("kernel initializer", name, _INITS)
  return _INITS[name]


_SCALES = {
  "ones": nn.initializers.ones,
  "uniform": nn.initializers.uniform(1.0),
}


def dense(model: nn.Module, features: int, *, name: str) -> nn.Dense:
  """Makes a dense layer; `model` has `kernel_init` and `dtype`."""
  return nn.Dense(
    features,
    kernel_init=initializer(model.kernel_init),
    dtype=model.dtype,
    name=name,
  )


def conv(
  model: nn.Module,
  features: int,
  size: int,
  strides: int = 1,
  *,
  name: str,
  axes: int = 2,
  padding: int | str | None = None,
  groups: int = 1,
  bias: bool = False,
) -> nn.Conv:
  """Makes a convolution, padded equally on both sides.

  Args:
    model: has `kernel_init` and `dtype`.
    features: Output channels.
    size: Of the kernel along each axis.
    strides: Strides of all axes.
    name: The layer's name.
    axes: Number of axes: 2 for images, 1 for signals.
    padding: another, such as "SAME".
    groups: Groups of channels, each with its own kernels.
    bias: Whether it has a bias.

  Returns:
    The layer.
  """
  return nn.Conv(
    features,
    (size,) * axes,
    strides,
    padding=size // 2 if padding is None else padding,
    feature_group_count=groups,
    use_bias=bias,
    kernel_init=initializer(model.kernel_init),
    dtype=model.dtype,
    name=name,
  )


def batch_norm(
  model: nn.Module, train: bool, *, name: str, zero: bool = False
) -> nn.BatchNorm:
  """Makes a BatchNorm with the released codes' decay and epsilon.

  google-research/rigl and facebookresearch/open_lth have the same.

  Args:
    model: has `dtype` and `norm_scale`, what the scales begin with: "ones", or
      "uniform" for draws from [0, 1), as open_lth has it.
    train: Whether to normalise by the batch and update running statistics.
    name: The layer's name.
    zero: Whether this layer's scales begin with 0 instead.

  Returns:
    The layer.

  Raises:
    UserError: `norm_scale` is unknown.
  """
  if model.norm_scale not in _SCALES:
    raise unknown("norm_scale", model.norm_scale, _SCALES)
  return nn.BatchNorm(
    not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=model.dtype,
    scale_init=nn.initializers.zeros if zero else _SCALES[model.norm_scale],
    name=name,
  )


class Block(nn.Module):
  """The layers that a function makes and applies, under one name.

  Attributes:
    function: From the arguments of a call to its output.
  """

  function: Callable[..., jax.Array]

  @nn.compact
  def __call__(self, *args, **options) -> jax.Array:
    """Calls the function; the layers that it makes are this module's."""
    return self.function(*args, **options)


def residual_stages(
  model: nn.Module,
  block: Callable[..., jax.Array],
  x: jax.Array,
  train: bool,
  stages: Sequence[tuple[int, int]],
  **options,
) -> jax.Array:
  """Applies the blocks `stage{1..}_block{1..}` of a residual network.

  Each stage but the first has stride 2 in its first block.

  Args:
    model: The network.
    block: (model, x, train, features, strides, **options) -> x.
    x: [batch, height, width, channels].
    train: Whether to normalise by the batch and update running statistics.
    stages: Of each the number of its blocks, and their features.
    **options: Of `block`.

  Returns:
    [batch, height, width, features] of the last stage.
  """
  for stage, (blocks, features) in enumerate(stages, 1):
    for i in range(blocks):
      strides = 2 if stage > 1 and not i else 1
      apply = Block(block, name=f"stage{stage}_block{i + 1}")
      x = apply(model, x, train, features, strides, **options)
  return x


def classify(
  model: nn.Module, x: jax.Array, hidden: Sequence[int] = ()
) -> jax.Array:
  """Ends a model with its dense layers, `dense1`, `dense2`, ..., `logits`.

  Args:
    model: has `num_classes`, `kernel_init` and `dtype`.
    x: [batch, ...], flattened.
    hidden: Units of the layers with ReLU.

  Returns:
    float32[batch, num_classes].
  """
  x = x.reshape(len(x), -1)
  for i, units in enumerate(hidden, 1):
    x = nn.relu(dense(model, units, name=f"dense{i}")(x))
  x = dense(model, model.num_classes, name="logits")(x)
  return jnp.asarray(x, jnp.float32)


def pool_and_classify(model: nn.Module, x: jax.Array) -> jax.Array:
  """Applies the output layer to the mean of x[batch, height, width, c]."""
  return classify(model, x.mean(axis=(1, 2)))


def as_batch(x: jax.Array, what: str, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Checks an input's rank and casts it to the compute dtype.

  Args:
    x: The batch.
    what: The axes it must have, such as "batch height width channels".
    dtype: To cast to.

  Returns:
    x in dtype.

  Raises:
    UserError: The rank is another.
  """
  if x.ndim != len(what.split()):
    raise UserError(
      f"this model takes inputs [{what}], got shape {x.shape}; choose another "
      "model, or another data set."
    )
  return jnp.asarray(x, dtype)


def max_pool(x: jax.Array) -> jax.Array:
  """Computes the maximum of every 2 x 2 pixels; an odd last one is left out.

  The same as `flax.linen.max_pool`, whose gradient takes XLA's CPU backend
  most of the step of a small net; a small convolutional net trains 2.7 times
  as fast with this one. Where equal pixels are largest they share the gradient.

  Args:
    x: Of shape [batch, height, width, channels].

  Returns:
    Of shape [batch, height // 2, width // 2, channels].
  """
  n, height, width, channels = x.shape
  height, width = height // 2, width // 2
  x = x[:, : 2 * height, : 2 * width]
  return x.reshape(n, height, 2, width, 2, channels).max(axis=(2, 4))
