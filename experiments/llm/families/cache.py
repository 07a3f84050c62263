"""Keys and values of past tokens, which generation attends to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
  """Keys and values of the tokens so far, indexed by their positions.

  Attributes:
    key: of shape [layers, batch, kv_heads, length, head_dim]; inside a layer
      without the first axis.
    value: of the shape of `key`.
  """

  # Heads come before positions, or every step would transpose all keys and
  # values for the batched products of attention.
  key: jax.Array
  value: jax.Array

  @classmethod
  def of(cls, key: jax.Array, value: jax.Array) -> "Cache":
    """Makes the cache of one layer that has all keys and values already.

    Args:
      key: of shape [batch, length, kv_heads, head_dim].
      value: of the shape of `key`.

    Returns:
      The layer's cache.
    """
    return cls(key.swapaxes(1, 2), value.swapaxes(1, 2))

  @property
  def length(self) -> int:
    """The most tokens that a sequence can have."""
    return self.key.shape[-2]

  def store(
    self, key: jax.Array, value: jax.Array, positions: jax.Array
  ) -> "Cache":
    """Stores one layer's keys and values at their positions.

    Args:
      key: of shape [batch, t, kv_heads, head_dim].
      value: of the shape of `key`.
      positions: int32[batch, t], consecutive in each sequence and below the
        length.

    Returns:
      The layer's cache.
    """

    # One slice a sequence: a token at a time would be a loop of t rounds.
    def put(all_of_them: jax.Array, new: jax.Array) -> jax.Array:
      new = new.astype(all_of_them.dtype).swapaxes(1, 2)
      return jax.vmap(
        lambda x, at, first: jax.lax.dynamic_update_slice_in_dim(
          x, at, first, axis=1
        )
      )(all_of_them, new, positions[:, 0])

    return Cache(put(self.key, key), put(self.value, value))

  def attend(
    self,
    query: jax.Array,
    seen: jax.Array | None,
    bias: jax.Array | None = None,
    *,
    scale: float | None = None,
  ) -> jax.Array:
    """Attends to one layer's keys and values.

    Args:
      query: of shape [batch, t, heads, head_dim]; head i reads head
        i // (heads / kv_heads) of the cache.
      seen: bool[batch, t, length], or what broadcasts to it: the positions that
        each token attends to; None for all.
      bias: is added to the scores, of a shape that broadcasts to
        [batch, heads, t, length]; None for none.
      scale: of the scores, by default head_dim ** -0.5.

    Returns:
      Of the query's shape and dtype; the softmax is in float32.
    """
    batch, t, heads, head_dim = query.shape
    kv_heads = self.key.shape[1]
    grouped = query.reshape(batch, t, kv_heads, -1, head_dim)
    scores = jnp.einsum(
      "btkgd,bkld->bkgtl",
      grouped,
      self.key.astype(query.dtype),
      preferred_element_type=jnp.float32,
    )
    scores *= head_dim**-0.5 if scale is None else scale
    if bias is not None:
      bias = jnp.broadcast_to(bias, (batch, heads, t, self.length))
      scores += bias.reshape(scores.shape)
    if seen is not None:
      lowest = jnp.finfo(scores.dtype).min
      scores = jnp.where(seen[:, None, None], scores, lowest)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    y = jnp.einsum("bkgtl,bkld->btkgd", weights, self.value.astype(query.dtype))
    return y.reshape(query.shape)
