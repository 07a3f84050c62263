"""Attention of a few tokens to a cache of keys and values, on CPUs.

C++, called only if `kernels.available()`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  spans: jax.Array,
  bias: jax.Array | None = None,
  *,
  scale: float,
) -> jax.Array:
  """Attends to what each token sees of a cache, and reads nothing else of it.

  Args:
    query: float32[heads, queries, width]: of a head of the cache, of all
      sequences, the queries that read it.
    key: float32 or bfloat16 [heads, length, width].
    value: As key.
    spans: int32[heads, tokens, 2]: the positions that a token sees, from the
      first up to below the second, at least one. Query q is of token
      q % tokens.
    bias: float32[heads, queries, length], is added to scores; None for none.
    scale: What products of queries and keys are times.

  Returns:
    float32[heads, queries, width]. Softmax is in float32.

  Raises:
    jax.errors.JaxRuntimeError: When it runs, if a span is empty or out of
      range.

  Example:
    >>> from sparsejax import kernels
    >>> if kernels.available(quiet=True):
    ...   value = jnp.array([[[1.0], [3.0], [100.0]]])
    ...   spans = jnp.array([[[0, 2]]], jnp.int32)
    ...   print(attend(value[:, :1], 0 * value, value, spans, scale=1.0))
    [[[2.]]]
  """
  if bias is None:
    bias = jnp.zeros(0, jnp.float32)
  call = jax.ffi.ffi_call(
    "sparsejax_attend",
    jax.ShapeDtypeStruct(query.shape, jnp.float32),
    vmap_method="sequential",
  )
  return call(query, key, value, bias, spans, scale=np.float32(scale))
