"""One layer of the model: attention and a feed-forward layer, each residual."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import decoder
from experiments.llm.families.cache import Cache
from experiments.llm.families.layers import Linear
from experiments.llm.families.llama.config import Config, rope_frequencies


class Attention(nn.Module):
  """Causal self-attention with rotary positions and grouped queries.

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
    project = functools.partial(Linear, use_bias=c.qkv_bias, dtype=self.dtype)
    self.query = project(c.heads * c.head_dim)
    self.key = project(c.kv_heads * c.head_dim)
    self.value = project(c.kv_heads * c.head_dim)
    self.output = Linear(c.dim, dtype=self.dtype)

  def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Maps x[batch, t, dim], in the order of time, to [batch, t, dim]."""
    query, key, value = self._project(x, positions)
    window = self.config.window
    y = jax.nn.dot_product_attention(
      query,
      key,
      value,
      is_causal=True,
      local_window_size=None if window is None else (window - 1, 0),
    )
    return self.output(y.reshape(*x.shape[:2], -1))

  def extend(
    self, x: jax.Array, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Adds x[batch, t, dim] to this layer's cache and attends to the cache."""
    query, key, value = self._project(x, positions)
    cache = cache.store(key, value, positions)
    past = positions[:, :, None] - jnp.arange(cache.length)
    seen = past >= 0
    if self.config.window is not None:
      seen &= past < self.config.window
    y = cache.attend(query, seen)
    return self.output(y.reshape(*x.shape[:2], -1)), cache

  def _project(
    self, x: jax.Array, positions: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes queries, keys and values [batch, t, heads, head_dim] of x."""
    c = self.config
    heads = (*x.shape[:2], -1, c.head_dim)
    angles = positions[..., None] * jnp.asarray(
      rope_frequencies(c), jnp.float32
    )
    query = _rotate(self.query(x).reshape(heads), angles)
    key = _rotate(self.key(x).reshape(heads), angles)
    return query, key, self.value(x).reshape(heads)


def _rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns the pairs (i, i + d / 2) of x[b, t, heads, d] by angles[b, t, d / 2].

  In the layout of Hugging Face's models; Meta's own have pairs (2 i, 2 i + 1).
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  turned = [first * cos - second * sin, first * sin + second * cos]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class MLP(nn.Module):
  """The feed-forward layer `down`(silu(`gate`(x)) `up`(x)).

  Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202: SwiGLU.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x[..., dim] to [..., dim]."""
    gate = Linear(self.config.hidden, dtype=self.dtype, name="gate")(x)
    up = Linear(self.config.hidden, dtype=self.dtype, name="up")(x)
    down = Linear(self.config.dim, dtype=self.dtype, name="down")
    return down(nn.silu(gate) * up)


class Block(decoder.Block):
  """One layer of the model, which also runs alone, on its own parameters.

      layer = jax.tree.map(lambda w: w[i], params["layers"])
      x = Block(config).apply({"params": layer}, x)

  Layers: `attention_norm`, `attention/{query, key, value, output}`,
  `mlp_norm`, `mlp/{gate, up, down}`.
  """

  def setup(self) -> None:
    """Makes the layers."""
    self.attention_norm = rms_norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.mlp_norm = rms_norm(self)
    self.mlp = MLP(self.config, self.dtype)


def rms_norm(module: nn.Module) -> nn.RMSNorm:
  """Makes the norm of a module that has a `config` and a `dtype`."""
  return nn.RMSNorm(epsilon=module.config.norm_eps, dtype=module.dtype)
