"""Keys and values of past tokens, which generation attends to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
  """Keys and values of the tokens so far, indexed by their positions.

  Attributes:
    key: of shape [layers, batch, length, kv_heads, head_dim]; inside a layer
      without the first axis.
    value: of the shape of `key`.
  """

  key: jax.Array
  value: jax.Array

  def store(
    self, key: jax.Array, value: jax.Array, positions: jax.Array
  ) -> "Cache":
    """Stores one layer's keys and values at their positions.

    Args:
      key: of shape [batch, t, kv_heads, head_dim].
      value: of the shape of `key`.
      positions: int32[batch, t]; those beyond the length are dropped.

    Returns:
      The layer's cache.
    """
    sequence = jnp.arange(len(key))[:, None]
    return Cache(
      self.key.at[sequence, positions].set(key.astype(self.key.dtype)),
      self.value.at[sequence, positions].set(value.astype(self.value.dtype)),
    )
