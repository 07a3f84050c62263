"""What the blocks are made of: norm, attention and a feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import cross
from experiments.llm.families.layers import Linear, together
from experiments.llm.families.t5.config import Config


def _linear(features: int, fan_in: int, dtype: jax.typing.DTypeLike) -> Linear:
  """Makes a layer whose first kernel has a variance of 1 / fan_in."""
  init = nn.initializers.normal(fan_in**-0.5)
  return Linear(features, dtype=dtype, kernel_init=init)


class Attention(cross.Attention):
  """Attention without scaling of the scores, to the same stream or another.

  Layers: `query`, `key`, `value`, `output`.

  Attributes:
    config: the model's.
    dtype: in which to compute; the softmax is in float32.
  """

  scale = 1.0

  def setup(self) -> None:
    """Makes the layers."""
    c = self.config
    width = c.heads * c.head_dim
    # What others divide scores by is in the first queries here.
    self.query = _linear(width, c.dim * c.head_dim, self.dtype)
    self.key = _linear(width, c.dim, self.dtype)
    self.value = _linear(width, c.dim, self.dtype)
    self.output = _linear(c.dim, width, self.dtype)


class MLP(nn.Module):
  """The feed-forward layer: `down` of relu(`up`(x)), or of a gated product.

  If `config.gated`, of gelu(`gate`(x)) `linear`(x): GEGLU of Shazeer, "GLU
  Variants Improve Transformer", arXiv 2002.05202.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    c = self.config
    if c.gated:
      self.gate = _linear(c.hidden, c.dim, self.dtype)
      self.linear = _linear(c.hidden, c.dim, self.dtype)
    else:
      self.up = _linear(c.hidden, c.dim, self.dtype)
    self.down = _linear(c.dim, c.hidden, self.dtype)

  def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Maps x[batch, t, dim] to the same; `where` is what is no padding."""
    if self.config.gated:
      gate, up = together(x, self.gate, self.linear, where=where)
      y = nn.gelu(gate) * up
    else:
      y = nn.relu(self.up(x, where))
    return self.down(y, where)


def rms_norm(module: nn.Module) -> nn.RMSNorm:
  """Makes the norm of a module that has a `config` and a `dtype`."""
  return nn.RMSNorm(epsilon=module.config.norm_eps, dtype=module.dtype)


PARTS = cross.Parts(rms_norm, Attention, MLP)
