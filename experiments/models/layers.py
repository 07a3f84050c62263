"""What the models share: how kernels are drawn, how inputs are checked."""

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
