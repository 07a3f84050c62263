"""What the blocks are made of: norm, attention and a feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import cross
from experiments.llm.families.layers import Linear
from experiments.llm.families.whisper.config import Config


class Attention(cross.Attention):
  """Attention, to the same stream or another.

  Layers: `query`, `key`, `value`, `output`, all but `key` with biases.

  Attributes:
    config: the model's.
    dtype: in which to compute; the softmax is in float32.
  """

  def setup(self) -> None:
    """Makes the layers."""
    dim = self.config.dim
    self.query = Linear(dim, use_bias=True, dtype=self.dtype)
    self.key = Linear(dim, dtype=self.dtype)
    self.value = Linear(dim, use_bias=True, dtype=self.dtype)
    self.output = Linear(dim, use_bias=True, dtype=self.dtype)


class MLP(nn.Module):
  """The feed-forward layer `down`(gelu(`up`(x))), with biases.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    c = self.config
    self.up = Linear(c.hidden, use_bias=True, dtype=self.dtype)
    self.down = Linear(c.dim, use_bias=True, dtype=self.dtype)

  def __call__(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Maps x[batch, t, dim] to the same; `where` is what is no padding."""
    return self.down(nn.gelu(self.up(x, where), approximate=False), where)


def layer_norm(module: nn.Module) -> nn.LayerNorm:
  """Makes the norm of a module that has a `dtype`."""
  # Not the mean of squares less the squared mean, which cancels.
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=module.dtype)


PARTS = cross.Parts(layer_norm, Attention, MLP)
