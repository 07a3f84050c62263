"""What the models share: initializers, norms, the output, checked inputs."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import UserError, unknown

_INITS = (
  "glorot_normal",
  "glorot_uniform",
  "he_normal",
  "he_uniform",
  "lecun_normal",
  "lecun_uniform",
  "orthogonal",
)


def initializer(name: str) -> nn.initializers.Initializer:
  """Returns the kernel initializer of that name in `nn.initializers`.

  Args:
    name: such as "he_normal", which is He et al., "Delving Deep into
      Rectifiers", arXiv 1502.01852: variance 2 / fan_in.

  Returns:
    A function (key, shape, dtype) -> kernel.

  Raises:
    UserError: the name is unknown.
  """
  if name not in _INITS:
    raise unknown("kernel initializer", name, _INITS)
  return getattr(nn.initializers, name)()


_SCALES = {
  "ones": nn.initializers.ones,
  "uniform": nn.initializers.uniform(1.0),
}


def batch_norm(model: nn.Module, train: bool, *, name: str) -> nn.BatchNorm:
  """Returns BatchNorm with the decay and epsilon of our residual nets' sources.

  They are those of google-research/rigl and facebookresearch/open_lth alike.

  Args:
    model: has `dtype` and `norm_scale`, what the scales begin with: "ones", or
      "uniform" for draws from [0, 1), as open_lth has it.
    train: normalise by the batch and move the running statistics.
    name: the layer's.

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
    scale_init=_SCALES[model.norm_scale],
    name=name,
  )


def pool_and_classify(model: nn.Module, x: jax.Array) -> jax.Array:
  """Averages x[batch, height, width, c] over pixels; the output layer."""
  x = nn.Dense(
    model.num_classes,
    kernel_init=initializer(model.kernel_init),
    dtype=model.dtype,
    name="logits",
  )(x.mean(axis=(1, 2)))
  return jnp.asarray(x, jnp.float32)


def as_batch(x: jax.Array, what: str, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Checks an input's rank and casts it to the compute dtype.

  Args:
    x: the batch.
    what: the axes it must have, such as "batch height width channels".
    dtype: to cast to.

  Returns:
    x in dtype.

  Raises:
    UserError: the rank is another.
  """
  if x.ndim != len(what.split()):
    raise UserError(
      f"this model takes inputs [{what}], got shape {x.shape}; choose another "
      "model, or another data set."
    )
  return jnp.asarray(x, dtype)
