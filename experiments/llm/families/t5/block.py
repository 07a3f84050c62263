"""The blocks of encoder and decoder: attention and a feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families.cache import Cache
from experiments.llm.families.encoder_decoder import CrossCache
from experiments.llm.families.layers import Linear
from experiments.llm.families.t5.config import Config


def _linear(features: int, fan_in: int, dtype: jax.typing.DTypeLike) -> Linear:
  """Makes a layer whose first kernel has a variance of 1 / fan_in."""
  init = nn.initializers.normal(fan_in**-0.5)
  return Linear(features, dtype=dtype, kernel_init=init)


class Attention(nn.Module):
  """Attention without scaling of the scores, to the same stream or another.

  Layers: `query`, `key`, `value`, `output`.

  Attributes:
    config: the model's.
    dtype: in which to compute; the softmax is in float32.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    c = self.config
    width = c.heads * c.head_dim
    # What others divide scores by is in the first queries here.
    self.query = _linear(width, c.dim * c.head_dim, self.dtype)
    self.key = _linear(width, c.dim, self.dtype)
    self.value = _linear(width, c.dim, self.dtype)
    self.output = _linear(c.dim, width, self.dtype)

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
    heads = (*x.shape[:2], -1, self.config.head_dim)
    key, value = self.key(x, where), self.value(x, where)
    return key.reshape(heads), value.reshape(heads)

  def attend(
    self,
    x: jax.Array,
    seen: Cache,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    where: jax.Array | None = None,
  ) -> jax.Array:
    """Maps x[batch, t, dim] to [batch, t, dim] by what it attends to.

    Args:
      x: the queries' stream.
      seen: keys and values.
      bias: [batch or 1, heads, t, s], added to the scores.
      mask: bool, broadcast to [batch, t, s]: what is seen.
      where: bool[batch, t], what of x is no padding.

    Returns:
      Of the compute dtype.
    """
    query = self.query(x, where)
    query = query.reshape(*x.shape[:2], -1, self.config.head_dim)
    y = seen.attend(query, mask, bias, scale=1.0)
    return self.output(y.reshape(*x.shape[:2], -1), where)


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
      y = nn.gelu(self.gate(x, where)) * self.linear(x, where)
    else:
      y = nn.relu(self.up(x, where))
    return self.down(y, where)


class EncoderBlock(nn.Module):
  """A block of the encoder, which also runs alone, on its own parameters.

  Layers: `attention_norm`, `attention/{query, key, value, output}`,
  `mlp_norm`, and `mlp/{up, down}` or `mlp/{gate, linear, down}`.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    self.attention_norm = rms_norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.mlp_norm = rms_norm(self)
    self.mlp = MLP(self.config, self.dtype)

  def __call__(
    self, x: jax.Array, *, bias: jax.Array, real: jax.Array | None = None
  ) -> jax.Array:
    """Maps the stream before the block to that after it.

    Args:
      x: of shape [batch, s, dim].
      bias: [1, heads, s, s], of relative positions.
      real: bool[batch, s], what is no padding.

    Returns:
      Of x's shape.
    """
    y = self.attention_norm(x)
    x = x + self.attention.attend(
      y,
      Cache.of(*self.attention.project(y, real)),
      bias=bias,
      mask=_keys(real),
      where=real,
    )
    return x + self.mlp(self.mlp_norm(x), real)


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
    self.attention_norm = rms_norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.cross_norm = rms_norm(self)
    self.cross_attention = Attention(self.config, self.dtype)
    self.mlp_norm = rms_norm(self)
    self.mlp = MLP(self.config, self.dtype)

  def __call__(
    self,
    x: jax.Array,
    *,
    bias: jax.Array,
    memory: jax.Array,
    source_real: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> jax.Array:
    """Maps the stream before the block to that after it.

    Args:
      x: of shape [batch, t, dim].
      bias: [1, heads, t, t], of relative positions.
      memory: the encoder's output [batch, s, dim].
      source_real: bool[batch, s], what of it is no padding.
      real: bool[batch, t], the tokens that are none.

    Returns:
      Of x's shape.
    """
    y = self.attention_norm(x)
    seen = Cache.of(*self.attention.project(y, real))
    mask = jnp.tri(x.shape[1], dtype=bool)[None]
    x = x + self.attention.attend(y, seen, bias=bias, mask=mask, where=real)
    seen = Cache.of(*self.cross_attention.project(memory, source_real))
    return self._after(x, seen, source_real, real)

  def remember(self, memory: jax.Array) -> Cache:
    """Computes the keys and values of the source for `extend`."""
    return Cache.of(*self.cross_attention.project(memory))

  def extend(
    self,
    x: jax.Array,
    cache: CrossCache,
    *,
    bias: jax.Array,
    positions: jax.Array,
  ) -> tuple[jax.Array, CrossCache]:
    """Runs `Network.extend` for this layer: its x[batch, t, dim] and cache."""
    y = self.attention_norm(x)
    past = cache.past.store(*self.attention.project(y), positions)
    seen = positions[..., None] >= jnp.arange(past.length)
    x = x + self.attention.attend(y, past, bias=bias, mask=seen)
    x = self._after(x, cache.memory, cache.source_real, None)
    return x, cache._replace(past=past)

  def _after(
    self,
    x: jax.Array,
    memory: Cache,
    source_real: jax.Array | None,
    real: jax.Array | None,
  ) -> jax.Array:
    """Runs what follows self-attention."""
    y = self.cross_norm(x)
    x = x + self.cross_attention.attend(
      y, memory, mask=_keys(source_real), where=real
    )
    return x + self.mlp(self.mlp_norm(x), real)


def rms_norm(module: nn.Module) -> nn.RMSNorm:
  """Makes the norm of a module that has a `config` and a `dtype`."""
  return nn.RMSNorm(epsilon=module.config.norm_eps, dtype=module.dtype)


def _keys(real: jax.Array | None) -> jax.Array | None:
  """Makes the mask of keys [batch, 1, s] from bool[batch, s]."""
  return None if real is None else real[:, None]
