"""The blocks of encoder and decoder: attention and a feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families.cache import Cache
from experiments.llm.families.encoder_decoder import CrossCache
from experiments.llm.families.layers import Linear
from experiments.llm.families.whisper.config import Config


class Attention(nn.Module):
  """Attention, to the same stream or another.

  Layers: `query`, `key`, `value`, `output`, all but `key` with biases.

  Attributes:
    config: the model's.
    dtype: in which to compute; the softmax is in float32.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    dim = self.config.dim
    self.query = Linear(dim, use_bias=True, dtype=self.dtype)
    self.key = Linear(dim, dtype=self.dtype)
    self.value = Linear(dim, use_bias=True, dtype=self.dtype)
    self.output = Linear(dim, use_bias=True, dtype=self.dtype)

  def project(
    self, x: jax.Array, where: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Computes keys and values [batch, s, heads, head_dim] of x[batch, s, dim].

    Args:
      x: what is attended to.
      where: bool[batch, s], what of it is no padding.

    Returns:
      Both.
    """
    return self._heads(self.key(x, where)), self._heads(self.value(x, where))

  def attend(
    self,
    x: jax.Array,
    seen: Cache,
    *,
    mask: jax.Array | None = None,
    where: jax.Array | None = None,
  ) -> jax.Array:
    """Maps x[batch, t, dim] to [batch, t, dim] by what it attends to.

    Args:
      x: the queries' stream.
      seen: keys and values.
      mask: bool, broadcast to [batch, t, s]: what is seen.
      where: bool[batch, t], what of x is no padding.

    Returns:
      Of the compute dtype.
    """
    y = seen.attend(self._heads(self.query(x, where)), mask)
    return self.output(y.reshape(x.shape), where)

  def _heads(self, x: jax.Array) -> jax.Array:
    """Splits the last axis into heads."""
    return x.reshape(*x.shape[:2], -1, self.config.head_dim)


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


class EncoderBlock(nn.Module):
  """A block of the encoder, which also runs alone, on its own parameters.

  Layers: `attention_norm`, `attention/{query, key, value, output}`,
  `mlp_norm`, `mlp/{up, down}`.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    self.attention_norm = layer_norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.mlp_norm = layer_norm(self)
    self.mlp = MLP(self.config, self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the stream [batch, s, dim] before the block to that after it."""
    y = self.attention_norm(x)
    x = x + self.attention.attend(y, Cache.of(*self.attention.project(y)))
    return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(nn.Module):
  """A block of the decoder, which also runs alone, on its own parameters.

  Layers: as of `EncoderBlock`, and between attention and feed-forward layer
  `cross_norm` and `cross_attention/{query, key, value, output}`.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    self.attention_norm = layer_norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.cross_norm = layer_norm(self)
    self.cross_attention = Attention(self.config, self.dtype)
    self.mlp_norm = layer_norm(self)
    self.mlp = MLP(self.config, self.dtype)

  def __call__(
    self,
    x: jax.Array,
    *,
    memory: jax.Array,
    source_real: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> jax.Array:
    """Maps the stream before the block to that after it.

    Args:
      x: of shape [batch, t, dim].
      memory: the encoder's output [batch, s, dim].
      source_real: None, since all of it is heard.
      real: bool[batch, t], the tokens that are no padding.

    Returns:
      Of x's shape.
    """
    del source_real
    y = self.attention_norm(x)
    seen = Cache.of(*self.attention.project(y, real))
    mask = jnp.tri(x.shape[1], dtype=bool)[None]
    x = x + self.attention.attend(y, seen, mask=mask, where=real)
    return self._after(x, self.remember(memory), real)

  def remember(self, memory: jax.Array) -> Cache:
    """Computes the keys and values of the source for `extend`."""
    return Cache.of(*self.cross_attention.project(memory))

  def extend(
    self, x: jax.Array, cache: CrossCache, *, positions: jax.Array
  ) -> tuple[jax.Array, CrossCache]:
    """Runs `Network.extend` for this layer: its x[batch, t, dim] and cache."""
    y = self.attention_norm(x)
    past = cache.past.store(*self.attention.project(y), positions)
    seen = positions[..., None] >= jnp.arange(past.length)
    x = x + self.attention.attend(y, past, mask=seen)
    return self._after(x, cache.memory), cache._replace(past=past)

  def _after(
    self, x: jax.Array, memory: Cache, real: jax.Array | None = None
  ) -> jax.Array:
    """Runs what follows self-attention."""
    y = self.cross_norm(x)
    x = x + self.cross_attention.attend(y, memory, where=real)
    return x + self.mlp(self.mlp_norm(x), real)


def layer_norm(module: nn.Module) -> nn.LayerNorm:
  """Makes the norm of a module that has a `dtype`."""
  # Not the mean of squares less the squared mean, which cancels.
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=module.dtype)
