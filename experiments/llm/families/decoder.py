"""Models of one stack of causal blocks, from tokens to float32 logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import layers
from experiments.llm.families.cache import Cache
from experiments.llm.families.protocol import check_length


class Decoder(nn.Module):
  """What the networks of decoder-only families have in common: a base class.

  A family adds its `block` and `final_norm`. Layers: `embed`, `layers`, which
  are blocks stacked on a leading axis, `norm` and, unless tied, `head`.
  Parameters are float32 when initialized; `apply` takes any float dtype, and
  layers that `layers.apart` took apart.

  A block maps x[batch, t, dim] and positions int32[batch, t] or None to the
  next x. Its method `places` computes of positions what is the same in all
  layers; `extend` takes that and the layer's `Cache`, and returns both.

  Attributes:
    config: the model's, with what `Config` has and dim, kv_heads, head_dim and
      tied.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
  """

  config: Any
  remat: str = "none"
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the layers."""
    c = self.config
    self.embedding = layers.Embed(
      c.vocab_size,
      c.dim,
      embedding_init=layers.INIT,
      dtype=self.dtype,
      name="embed",
    )
    self.layers = self.block()
    self.norm = self.final_norm()
    if not c.tied:
      self.head = layers.Linear(c.vocab_size, dtype=self.dtype)

  def __call__(
    self, tokens: jax.Array, *, positions: jax.Array | None = None
  ) -> jax.Array:
    """Maps tokens to the logits of the tokens that follow them.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t], by default 0, 1, ... in every sequence. The
        causal mask follows the order of the tokens all the same.

    Returns:
      float32[batch, t, vocab_size].

    Raises:
      UserError: t is beyond the model's context, or `remat` is unknown.
    """

    def body(block: nn.Module, x: jax.Array, _) -> tuple[jax.Array, None]:
      return block(x, positions), None

    x, _ = self._scan(body, self.embed(tokens))
    return self.logits(x)

  def with_hidden(
    self, tokens: jax.Array, *, positions: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Maps tokens to logits and to the residual stream around every layer.

    Args:
      tokens: int32[batch, t].
      positions: as in `__call__`.

    Returns:
      The logits; and the stream before the first layer and after each, the
      last one normed, of shape [layers + 1, batch, t, dim]: what transformers
      calls hidden states.

    Raises:
      UserError: as `__call__`.
    """

    def body(block: nn.Module, x: jax.Array, _) -> tuple[jax.Array, jax.Array]:
      return block(x, positions), x

    x, before = self._scan(body, self.embed(tokens))
    x = self.norm(x)
    return self._unembed(x), jnp.concatenate([before, x[None]])

  def extend(
    self, tokens: jax.Array, *, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Runs tokens that follow those in a cache, and adds them to it.

    A token attends to the cache up to its own position. So a padded batch of
    ragged sequences needs no mask: what was computed for padding on the right
    lies at later positions, until it is overwritten.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t], consecutive in each sequence and below the
        cache's length.
      cache: from `init_cache`, or from the last call.

    Returns:
      The residual stream after the last layer, of shape [batch, t, dim], from
      which `logits` computes logits where they are needed; and the new cache.

    Raises:
      UserError: as `__call__`.
    """
    places = self.layers.places(positions)

    def body(
      block: nn.Module, x: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
      return block.extend(x, places, cache)

    return self._scan(body, self.embed(tokens), cache)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens int32[batch, t] to [batch, t, dim], the first layer's input.

    Args:
      tokens: from 0 to vocab_size - 1.

    Returns:
      Of the compute dtype.

    Raises:
      UserError: t is beyond the model's context.
    """
    check_length(self.config, tokens.shape[1])
    return layers.split_batch(self.embedding(tokens))

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [..., dim] after the last layer to float32[..., vocab_size]."""
    return self._unembed(self.norm(x))

  @nn.nowrap
  def block(self) -> nn.Module:
    """Returns the module of one layer, which runs alone."""
    raise NotImplementedError

  @nn.nowrap
  def final_norm(self) -> nn.Module:
    """Returns the module between the last layer and the head."""
    raise NotImplementedError

  @nn.nowrap
  def init_cache(
    self, batch: int, length: int, dtype: jax.typing.DTypeLike | None = None
  ) -> Cache:
    """Makes an empty cache for `extend`.

    Args:
      batch: the number of sequences.
      length: the most tokens that each can have.
      dtype: of the keys and values; by default the compute dtype.

    Returns:
      The cache.

    Raises:
      UserError: length is beyond the model's context.
    """
    check_length(self.config, length)
    c, dtype = self.config, dtype or self.dtype
    shape = (c.layers, batch * c.kv_heads, length, c.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def _unembed(self, x: jax.Array) -> jax.Array:
    y = self.embedding.attend(x) if self.config.tied else self.head(x)
    return y.astype(jnp.float32)

  def _scan(
    self, body: Callable[..., Any], x: jax.Array, xs: Any = None
  ) -> tuple[jax.Array, Any]:
    """Runs body(block, x, xs of that layer) -> (x, ys) over the layers."""
    return layers.scan(self, body, x, xs, length=self.config.layers)


class Block(nn.Module):
  """One layer: attention and a feed-forward layer, each normed and residual.

  A base class: a family's `setup` makes `attention_norm`, `attention`,
  `mlp_norm` and `mlp`.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Any
  dtype: jax.typing.DTypeLike = jnp.float32

  def __call__(
    self, x: jax.Array, positions: jax.Array | None = None
  ) -> jax.Array:
    """Maps the residual stream before the layer to that after it.

    Args:
      x: of shape [batch, t, dim].
      positions: int32[batch, t], by default 0, 1, ... in every sequence.

    Returns:
      Of shape [batch, t, dim].
    """
    if positions is None:
      positions = jnp.arange(x.shape[1])[None]
    x = x + self.attention(self.attention_norm(x), positions)
    return x + self.mlp(self.mlp_norm(x))

  @nn.nowrap
  def places(self, positions: jax.Array) -> Any:
    """Computes of positions int32[batch, t] what `extend` of all layers needs.

    It needs no parameters; by default it is the positions.
    """
    return positions

  def extend(
    self, x: jax.Array, places: Any, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Runs `Network.extend` for this layer.

    Args:
      x: of shape [batch, t, dim].
      places: of the tokens; see the method.
      cache: of the layer.

    Returns:
      The stream after the layer, and the cache.
    """
    y, cache = self.attention.extend(self.attention_norm(x), places, cache)
    x = x + y
    return x + self.mlp(self.mlp_norm(x)), cache
