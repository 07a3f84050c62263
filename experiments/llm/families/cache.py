"""Keys and values of past tokens, which generation attends to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import kernels
from sparsejax.kernels import attention

_FEW = 4  # tokens, up to which a kernel reads what they see and no more


class Spans(NamedTuple):
  """The positions of a cache that tokens attend to.

  Attributes:
    begin: int32[batch, t], of each token the first one.
    end: int32[batch, t], what follows the last one.
  """

  begin: jax.Array
  end: jax.Array

  @classmethod
  def past(cls, positions: jax.Array, window: int | None = None) -> "Spans":
    """Makes the spans up to the tokens' own positions.

    Args:
      positions: int32[batch, t].
      window: the most positions of each, its own included; None for all.

    Returns:
      The spans.
    """
    begin = jnp.zeros_like(positions)
    if window is not None:
      begin = jnp.maximum(positions - window + 1, begin)
    return cls(begin, positions + 1)

  def mask(self, length: int) -> jax.Array:
    """Makes bool[batch, t, length], whether a token attends to a position."""
    at = jnp.arange(length)
    return (at >= self.begin[..., None]) & (at < self.end[..., None])


class Cache(NamedTuple):
  """Keys and values of the tokens so far, indexed by their positions.

  Attributes:
    key: of shape [layers, batch * kv_heads, length, head_dim]; inside a layer
      without the first axis.
    value: of the shape of `key`.
  """

  # As the batched products of attention take them: of any other shape XLA makes
  # several copies at every step, since it writes what the products read and
  # what is handed on apart.
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
    return cls(_by_heads(key), _by_heads(value))

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

    def put(x: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_slice_in_dim(x, new, first, axis=1)

    def put_all(x: jax.Array, new: jax.Array) -> jax.Array:
      new = _by_heads(new).astype(x.dtype)
      batch = len(positions)
      # Written in place; what vmap makes of it is a scatter, which copies.
      if batch == 1:
        return put(x, new, positions[0, 0])
      apart = (a.reshape(batch, -1, *a.shape[1:]) for a in (x, new))
      return jax.vmap(put)(*apart, positions[:, 0]).reshape(x.shape)

    return Cache(put_all(self.key, key), put_all(self.value, value))

  def attend(
    self,
    query: jax.Array,
    seen: jax.Array | Spans | None,
    bias: jax.Array | None = None,
    *,
    scale: float | None = None,
  ) -> jax.Array:
    """Attends to one layer's keys and values.

    Args:
      query: of shape [batch, t, heads, head_dim]; head i reads head
        i // (heads / kv_heads) of the cache.
      seen: the positions that each token attends to, as spans, or as bool
        [batch, t, length] or what broadcasts to it; None for all.
      bias: is added to the scores, of a shape that broadcasts to
        [batch, heads, t, length]; None for none.
      scale: of the scores, by default head_dim ** -0.5.

    Returns:
      Of the query's shape and dtype; the softmax is in float32.
    """
    batch, t, _, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    spanned = seen is None or isinstance(seen, Spans)
    if not spanned or t > _FEW or not kernels.available(quiet=True):
      return self._attend(query, seen, bias, scale)
    spans = seen
    if seen is None:
      spans = Spans.past(jnp.full((batch, t), self.length - 1, jnp.int32))

    def by_xla(
      cache: Cache, query: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
      return cache._attend(query, seen, bias, scale)

    @jax.custom_jvp
    def attended(
      cache: Cache, query: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
      return jax.lax.platform_dependent(
        cpu=lambda: _attend_by_kernel(cache, query, spans, bias, scale),
        default=lambda: by_xla(cache, query, bias),
      )

    # The kernel has no derivative, and losses may be of a few tokens.
    attended.defjvp(functools.partial(jax.jvp, by_xla))
    return attended(self, query, bias)

  def _attend(
    self,
    query: jax.Array,
    seen: jax.Array | Spans | None,
    bias: jax.Array | None,
    scale: float,
  ) -> jax.Array:
    batch, t, heads, head_dim = query.shape
    if isinstance(seen, Spans):
      seen = seen.mask(self.length)
    # The queries of each of the cache's heads together, and products in the
    # order of their own axes, or XLA transposes all keys or values.
    scores = jnp.einsum(
      "nqd,nld->nql",
      query.swapaxes(1, 2).reshape(len(self.key), -1, head_dim),
      self.key.astype(query.dtype),
      preferred_element_type=jnp.float32,
    )
    scores = scores.reshape(batch, heads, t, self.length)
    scores *= scale
    if bias is not None:
      scores += bias
    if seen is not None:
      lowest = jnp.finfo(scores.dtype).min
      scores = jnp.where(seen[:, None], scores, lowest)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    y = jnp.einsum(
      "nql,nld->nqd",
      weights.reshape(len(self.key), -1, self.length),
      self.value.astype(query.dtype),
    )
    return y.reshape(batch, heads, t, head_dim).swapaxes(1, 2)


def _attend_by_kernel(
  cache: Cache,
  query: jax.Array,
  seen: Spans,
  bias: jax.Array | None,
  scale: float,
) -> jax.Array:
  batch, t, heads, head_dim = query.shape
  count = len(cache.key)
  if bias is not None:
    bias = jnp.broadcast_to(bias, (batch, heads, t, cache.length))
    bias = bias.reshape(count, -1, cache.length)
  y = attention.attend(
    query.swapaxes(1, 2).reshape(count, -1, head_dim).astype(jnp.float32),
    *(cache.key, cache.value),
    jnp.repeat(jnp.stack(seen, axis=-1), count // batch, axis=0),
    bias,
    scale=scale,
  )
  y = y.reshape(batch, heads, t, head_dim).swapaxes(1, 2)
  return y.astype(query.dtype)


def _by_heads(x: jax.Array) -> jax.Array:
  """Maps [batch, t, heads, d] to [batch * heads, t, d]."""
  return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])
