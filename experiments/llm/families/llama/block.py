"""One layer of the model: attention and a feed-forward layer, each residual."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import decoder
from experiments.llm.families.cache import Cache, Spans
from experiments.llm.families.layers import Linear, together
from experiments.llm.families.llama.config import Config, rope_frequencies
from sparsejax.xla import materialised


class Places(NamedTuple):
  """Positions, and how they turn queries and keys.

  Attributes:
    positions: int32[batch, t].
    cos: float32[batch, t, 1, head_dim / 2], of the angles.
    sin: of the shape of `cos`.
  """

  positions: jax.Array
  cos: jax.Array
  sin: jax.Array

  @classmethod
  def of(cls, config: Config, positions: jax.Array) -> "Places":
    """Computes the angles' cosines and sines."""
    frequencies = jnp.asarray(rope_frequencies(config), jnp.float32)
    angles = positions[..., None, None] * frequencies
    return cls(positions, jnp.cos(angles), jnp.sin(angles))


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
    query, key, value = self._project(x, Places.of(self.config, positions))
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
    self, x: jax.Array, places: Places, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Adds x[batch, t, dim] to this layer's cache and attends to the cache."""
    query, key, value = self._project(x, places)
    cache = cache.store(key, value, places.positions)
    y = cache.attend(query, Spans.past(places.positions, self.config.window))
    return self.output(y.reshape(*x.shape[:2], -1)), cache

  def _project(
    self, x: jax.Array, places: Places
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes queries, keys and values [batch, t, heads, head_dim] of x."""
    heads = (*x.shape[:2], -1, self.config.head_dim)
    query, key, value = (
      y.reshape(heads) for y in together(x, self.query, self.key, self.value)
    )
    return _rotate(query, places), _rotate(key, places), value


def _rotate(x: jax.Array, places: Places) -> jax.Array:
  """Turns the pairs (i, i + d / 2) of x[b, t, heads, d].

  In the layout of Hugging Face's models; Meta's own have pairs (2 i, 2 i + 1).
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  _, cos, sin = places
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
    gate = Linear(self.config.hidden, dtype=self.dtype, name="gate")
    up = Linear(self.config.hidden, dtype=self.dtype, name="up")
    gate, up = together(x, gate, up)
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

  @nn.nowrap
  def places(self, positions: jax.Array) -> Places:
    """Computes cosines and sines once, for all layers."""
    # Or XLA computes them anew in every layer.
    return materialised(functools.partial(Places.of, self.config), positions)


def rms_norm(module: nn.Module) -> nn.RMSNorm:
  """Makes the norm of a module that has a `config` and a `dtype`."""
  return nn.RMSNorm(epsilon=module.config.norm_eps, dtype=module.dtype)
