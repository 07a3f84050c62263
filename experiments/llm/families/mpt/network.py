"""The model, from tokens to float32 logits, and its layers."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import decoder
from experiments.llm.families.cache import Cache, Spans
from experiments.llm.families.layers import Linear
from experiments.llm.families.mpt.config import Config, alibi_slopes


class Attention(nn.Module):
  """Causal self-attention with linear biases.

  Layers: `qkv`, which makes queries, keys and values, in this order, by one
  kernel, and `output`.

  Attributes:
    config: the model's.
    dtype: in which to compute; the softmax is in float32.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    self.qkv = Linear(3 * self.config.dim, dtype=self.dtype)
    self.output = Linear(self.config.dim, dtype=self.dtype)

  def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Maps x[batch, t, dim], in the order of time, to [batch, t, dim]."""
    query, key, value = self._project(x)
    distance = positions[:, :, None] - positions[:, None]
    y = jax.nn.dot_product_attention(
      query, key, value, bias=self._bias(distance), is_causal=True
    )
    return self.output(y.reshape(x.shape))

  def extend(
    self, x: jax.Array, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Adds x[batch, t, dim] to this layer's cache and attends to the cache."""
    query, key, value = self._project(x)
    cache = cache.store(key, value, positions)
    distance = positions[:, :, None] - jnp.arange(cache.length)
    y = cache.attend(query, Spans.past(positions), self._bias(distance))
    return self.output(y.reshape(x.shape)), cache

  def _project(self, x: jax.Array) -> list[jax.Array]:
    """Computes queries, keys and values [batch, t, heads, head_dim] of x."""
    c = self.config
    y = self.qkv(x)
    if c.clip_qkv is not None:
      y = jnp.clip(y, -c.clip_qkv, c.clip_qkv)
    return [
      part.reshape(*x.shape[:2], c.heads, c.head_dim)
      for part in jnp.split(y, 3, axis=-1)
    ]

  def _bias(self, distance: jax.Array) -> jax.Array:
    """Maps int32[batch, t, s], from a query back to a key, to every head's."""
    slopes = jnp.asarray(alibi_slopes(self.config), jnp.float32)
    return -slopes[:, None, None] * distance[:, None]


class MLP(nn.Module):
  """The feed-forward layer `down`(gelu(`up`(x))).

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x[..., dim] to [..., dim]."""
    up = Linear(self.config.hidden, dtype=self.dtype, name="up")(x)
    down = Linear(self.config.dim, dtype=self.dtype, name="down")
    return down(nn.gelu(up, approximate=False))


class Block(decoder.Block):
  """One layer of the model, which also runs alone, on its own parameters.

  Layers: `attention_norm`, `attention/{qkv, output}`, `mlp_norm`,
  `mlp/{up, down}`.
  """

  def setup(self) -> None:
    """Makes the layers."""
    self.attention_norm = layer_norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.mlp_norm = layer_norm(self)
    self.mlp = MLP(self.config, self.dtype)


class Network(decoder.Decoder):
  """The model: a `Decoder` of `Block`s, which sees positions as distances.

  Attributes:
    config: the model's, a `Config`.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
  """

  @nn.nowrap
  def block(self) -> Block:
    """Returns the module of one layer, which runs alone."""
    return Block(self.config, self.dtype)

  @nn.nowrap
  def final_norm(self) -> nn.LayerNorm:
    """Returns the module between the last layer and the head."""
    return layer_norm(self)


def layer_norm(module: nn.Module) -> nn.LayerNorm:
  """Makes the norm of a module that has a `config` and a `dtype`."""
  return nn.LayerNorm(
    epsilon=module.config.norm_eps,
    use_bias=False,
    # Not the mean of squares less the squared mean, which cancels.
    use_fast_variance=False,
    dtype=module.dtype,
  )
