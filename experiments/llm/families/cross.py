"""Blocks of an encoder, and of a decoder that attends to it.

A family fills them with its own norm, attention and feed-forward layer; their
order and what they are called with is the same in all. EncoderDecoder, in
encoder_decoder.py, runs them.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families.cache import Cache, Spans
from experiments.llm.families.layers import Linear, together


class CrossCache(NamedTuple):
  """What a decoder attends to: its tokens so far, and the source.

  Attributes:
    past: keys and values of the tokens, by their positions.
    memory: keys and values of the source.
    source_real: bool[layers, batch, s], what of the source is no padding; None
      if there is no padding.
  """

  past: Cache
  memory: Cache
  source_real: jax.Array | None


class Parts(NamedTuple):
  """What the blocks of a family are made of.

  Attributes:
    norm: makes the norm of a module that has a `config` and a `dtype`.
    attention: `(config, dtype)` -> an `Attention`.
    mlp: `(config, dtype)` -> the feed-forward layer, which maps x[batch, t,
      dim] and `where`, bool[batch, t] or None, to the same shape as x.
  """

  norm: Callable[[nn.Module], nn.Module]
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]


class Attention(nn.Module):
  """Attention to the same stream or another: a base class.

  A family's `setup` makes the layers `query`, `key`, `value` and `output`.

  Attributes:
    config: the model's, with head_dim.
    dtype: in which to compute; the softmax is in float32.
    scale: of the scores; head_dim ** -0.5 if None.
  """

  config: Any
  dtype: jax.typing.DTypeLike = jnp.float32
  scale: ClassVar[float | None] = None

  def project(
    self, x: jax.Array, where: jax.Array | None = None
  ) -> list[jax.Array]:
    """Computes what a stream needs to attend to itself.

    Args:
      x: of shape [batch, t, dim].
      where: bool[batch, t], what of it is no padding.

    Returns:
      Queries, keys and values, each of shape [batch, t, heads, head_dim].
    """
    return self._heads(x, where, self.query, self.key, self.value)

  def queries(self, x: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Computes queries only, as `project` does."""
    (query,) = self._heads(x, where, self.query)
    return query

  def remember(self, x: jax.Array, where: jax.Array | None = None) -> Cache:
    """Computes keys and values only, as `project` does."""
    return Cache.of(*self._heads(x, where, self.key, self.value))

  def attend(
    self,
    query: jax.Array,
    seen: Cache,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | Spans | None = None,
    where: jax.Array | None = None,
  ) -> jax.Array:
    """Maps queries to [batch, t, dim] by what they attend to.

    Args:
      query: of shape [batch, t, heads, head_dim].
      seen: keys and values.
      bias: [batch or 1, heads, t, s], added to the scores.
      mask: what is seen: bool, broadcast to [batch, t, s], or spans.
      where: bool[batch, t], what of the queries is no padding.

    Returns:
      Of the compute dtype.
    """
    y = seen.attend(query, mask, bias, scale=self.scale)
    return self.output(y.reshape(*query.shape[:2], -1), where)

  def _heads(
    self, x: jax.Array, where: jax.Array | None, *layers: Linear
  ) -> list[jax.Array]:
    """Splits the last axis of what layers give into heads."""
    shape = (*x.shape[:2], -1, self.config.head_dim)
    return [y.reshape(shape) for y in together(x, *layers, where=where)]


class _Block(nn.Module):
  """The layers that blocks of encoders and decoders have in common.

  Attributes:
    parts: what makes the layers.
    config: the model's.
    dtype: in which to compute.
  """

  parts: Parts
  config: Any
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    self.attention_norm = self.parts.norm(self)
    self.attention = self.parts.attention(self.config, self.dtype)
    self.mlp_norm = self.parts.norm(self)
    self.mlp = self.parts.mlp(self.config, self.dtype)

  def _attend(
    self,
    x: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    real: jax.Array | None,
  ) -> jax.Array:
    """Lets the stream attend to itself."""
    query, *seen = self.attention.project(self.attention_norm(x), real)
    return x + self.attention.attend(
      query, Cache.of(*seen), bias=bias, mask=mask, where=real
    )


class EncoderBlock(_Block):
  """A block of the encoder, which also runs alone, on its own parameters.

  Layers: `attention_norm`, `attention`, `mlp_norm` and `mlp`.

  Attributes:
    parts: what makes the layers.
    config: the model's.
    dtype: in which to compute.
  """

  def __call__(
    self,
    x: jax.Array,
    *,
    bias: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> jax.Array:
    """Maps the stream before the block to that after it.

    Args:
      x: of shape [batch, s, dim].
      bias: [1, heads, s, s], added to the scores.
      real: bool[batch, s], what is no padding; all if None.

    Returns:
      Of x's shape.
    """
    x = self._attend(x, bias, _keys(real), real)
    return x + self.mlp(self.mlp_norm(x), real)


class DecoderBlock(_Block):
  """A block of the decoder, which also runs alone, on its own parameters.

  Layers: as of `EncoderBlock`, and between attention and feed-forward layer
  `cross_norm` and `cross_attention`.

  Attributes:
    parts: what makes the layers.
    config: the model's.
    dtype: in which to compute.
  """

  def setup(self) -> None:
    """Makes the layers."""
    super().setup()
    self.cross_norm = self.parts.norm(self)
    self.cross_attention = self.parts.attention(self.config, self.dtype)

  def __call__(
    self,
    x: jax.Array,
    *,
    bias: jax.Array | None = None,
    memory: jax.Array,
    source_real: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> jax.Array:
    """Maps the stream before the block to that after it.

    Args:
      x: of shape [batch, t, dim].
      bias: [1, heads, t, t], added to the scores.
      memory: the encoder's output [batch, s, dim].
      source_real: bool[batch, s], what of it is no padding; all if None.
      real: bool[batch, t], the tokens that are no padding; all if None.

    Returns:
      Of x's shape.
    """
    x = self._attend(x, bias, jnp.tri(x.shape[1], dtype=bool)[None], real)
    seen = self.cross_attention.remember(memory, source_real)
    return self._after(x, seen, source_real, real)

  def remember(self, memory: jax.Array) -> Cache:
    """Computes the keys and values of the source for `extend`."""
    return self.cross_attention.remember(memory)

  def extend(
    self,
    x: jax.Array,
    cache: CrossCache,
    *,
    positions: jax.Array,
    bias: jax.Array | None = None,
  ) -> tuple[jax.Array, CrossCache]:
    """Runs `Network.extend` for this layer: its x[batch, t, dim] and cache."""
    query, *new = self.attention.project(self.attention_norm(x))
    past = cache.past.store(*new, positions)
    x = x + self.attention.attend(
      query, past, bias=bias, mask=Spans.past(positions)
    )
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
    query = self.cross_attention.queries(self.cross_norm(x), real)
    mask = _keys(source_real)
    x = x + self.cross_attention.attend(query, memory, mask=mask, where=real)
    return x + self.mlp(self.mlp_norm(x), real)


def _keys(real: jax.Array | None) -> jax.Array | None:
  """Makes the mask of keys [batch, 1, s] from bool[batch, s]."""
  return None if real is None else real[:, None]
