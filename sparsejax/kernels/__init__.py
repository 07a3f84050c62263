"""Kernels: products with the non-zeros of a matrix, and selection, on CPUs.

C++, called only if `available()`. A matrix [in, out] is stored by the inputs of
each output; activations are by feature, [features, batch]. Products of blocks
on GPUs are in `blocks`; when which is used is decided in `sparsejax.packed`.
"""

import jax
import jax.numpy as jnp

from sparsejax.kernels.build import available, loaded

__all__ = ["available", "loaded", "multiply", "sample", "top_k"]

_LANES = 16


def multiply(
  x: jax.Array,
  pointers: jax.Array,
  columns: jax.Array,
  values: jax.Array,
  slots: jax.Array | None = None,
) -> jax.Array:
  """Multiplies a matrix, stored by rows, by activations.

  Args:
    x: float32 [width] or [width, batch].
    pointers: int32 [rows + 1]: row r has the entries from pointers[r] on.
    columns: uint16 [n], the column of each entry, below width.
    values: float32 or bfloat16 [slots].
    slots: int32 [n]: the slot of each entry's value; its own place if None.

  Returns:
    float32 [rows] or [rows, batch].

  Raises:
    jax.errors.JaxRuntimeError: When it runs, if a place is out of range.
  """
  rows = pointers.shape[0] - 1
  slots = jnp.zeros(0, jnp.int32) if slots is None else slots
  if x.ndim == 1 and slots.size:
    return multiply(x[:, None], pointers, columns, values, slots)[:, 0]
  if x.ndim == 1:
    return _call("sparsejax_multiply", (rows,), jnp.float32)(
      x, pointers, columns, values, slots
    )
  batch, x = x.shape[1], _padded(x)
  y = _call("sparsejax_multiply", (rows, x.shape[1]), jnp.float32)
  return y(x, pointers, columns, values, slots)[:, :batch]


def sample(
  x: jax.Array,
  g: jax.Array,
  pointers: jax.Array,
  columns: jax.Array,
  dtype: jnp.dtype,
) -> jax.Array:
  """Computes g x^T at the entries of a sparse matrix.

  Args:
    x: float32 [width, batch].
    g: float32 [rows, batch].
    pointers: int32 [rows + 1], as for `multiply`.
    columns: uint16 [n].
    dtype: Of the result, float32 or bfloat16.

  Returns:
    [n]: for an entry in row r and column c the product g[r] x[c], summed over
    the batch; 0 where no row has that entry.
  """
  out = _call("sparsejax_sample", columns.shape, dtype)
  return out(_padded(x), _padded(g), pointers, columns)


def top_k(keys: jax.Array, k: jax.Array) -> jax.Array:
  """Marks the k largest of uint32 keys; see `select.top_k_mask`.

  Args:
    keys: uint32 array of any shape; 0 is never marked.
    k: int32 scalar.

  Returns:
    A bool array of that shape.
  """
  return _call("sparsejax_top_k", keys.shape, jnp.bool_)(keys, k.reshape(1))


def _padded(x):
  """Pads the batch to a multiple of the vectors' length."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES)))


def _call(name, shape, dtype):
  return jax.ffi.ffi_call(
    name, jax.ShapeDtypeStruct(shape, dtype), vmap_method="sequential"
  )
