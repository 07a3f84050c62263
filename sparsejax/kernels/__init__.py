"""Kernels: products with the non-zeros of a matrix, and selection, on CPUs.

Call these C++ kernels only if `available()`. A matrix [in, out] is stored by
the inputs of each output; activations are [batch, features]. Products of blocks
on GPUs are in `blocks`. `sparsejax.packed` decides which kernel to use.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.kernels.build import available, loaded

__all__ = [
  "Masked",
  "available",
  "loaded",
  "multiply",
  "multiply_and_sample",
  "multiply_bits",
  "multiply_each",
  "multiply_int8",
  "sample",
  "top_k",
]

_LANES = 16  # as in kernels.h


def multiply(
  x: jax.Array,
  pointers: jax.Array,
  columns: jax.Array,
  values: jax.Array,
  slots: jax.Array | None = None,
) -> jax.Array:
  """Multiplies activations by a matrix that is stored by rows.

  Args:
    x: float32 [width] or [batch, width].
    pointers: int32 [rows + 1]: the entries of row r begin at pointers[r].
    columns: uint16 [n], the column of each entry, below width.
    values: float32 or bfloat16 [slots].
    slots: int32 [n]: the slot of each entry's value; None if entry i has
      slot i.

  Returns:
    float32 [rows] or [batch, rows].

  Raises:
    jax.errors.JaxRuntimeError: When it runs, if an index is out of range.

  Example:
    >>> if available(quiet=True):
    ...   pointers = jnp.array([0, 2, 3], jnp.int32)
    ...   columns = jnp.array([0, 2, 1], jnp.uint16)
    ...   values = jnp.array([1.0, 2.0, 3.0])
    ...   x = jnp.array([[1.0, 10.0, 100.0]])
    ...   print(multiply(x, pointers, columns, values))
    [[201.  30.]]
  """
  if x.ndim == 1 and slots is None:
    rows = pointers.shape[0] - 1
    return _call("sparsejax_multiply_one", _floats(rows))(
      x, pointers, columns, values
    )
  if x.ndim == 1:
    return multiply(x[None], pointers, columns, values, slots)[0]
  product, _ = _layer(x, None, pointers, columns, values, slots)
  return product


def sample(
  x: jax.Array,
  g: jax.Array,
  pointers: jax.Array,
  columns: jax.Array,
  dtype: jnp.dtype,
) -> jax.Array:
  """Computes g^T x at the entries of a sparse matrix.

  Args:
    x: float32 [batch, width].
    g: float32 [batch, rows].
    pointers: int32 [rows + 1], as in `multiply`.
    columns: uint16 [n].
    dtype: The dtype of the result, float32 or bfloat16.

  Returns:
    [n]: for an entry in row r and column c the product of g[:, r] and x[:, c],
    summed over the batch; 0 where no row has that entry.
  """
  like = jnp.zeros(columns.shape, dtype)
  _, dots = _layer(x, g, pointers, columns, like, None, product=False)
  return dots


def multiply_and_sample(
  x: jax.Array,
  g: jax.Array,
  pointers: jax.Array,
  columns: jax.Array,
  values: jax.Array,
  slots: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Computes both gradients of a layer, reading activations once.

  Args:
    x: float32 [batch, width].
    g: float32 [batch, rows].
    pointers: int32 [rows + 1], as in `multiply`.
    columns: uint16 [n].
    values: float32 or bfloat16 [slots].
    slots: int32 [n]: the slot of each entry's value.

  Returns:
    The result of `multiply`, float32 [batch, rows]; and the result of `sample`,
    ordered by slots and of the dtype of the values.
  """
  return _layer(x, g, pointers, columns, values, slots)


def _layer(x, g, pointers, columns, values, slots, *, product=True):
  """Computes a product, dot products with g, or both."""
  batch, width = x.shape
  rows = pointers.shape[0] - 1
  padded = batch + -batch % _LANES
  # Room for x turned over, and for values and dots in the order of entries.
  room = padded * width + columns.size * (1 if g is None else 2)
  y, dots, _ = _call(
    "sparsejax_layer",
    _floats(batch, rows) if product else _floats(0),
    jax.ShapeDtypeStruct(values.shape if g is not None else (0,), values.dtype),
    _floats(room),
  )(
    *(x, jnp.zeros(0, jnp.float32) if g is None else g, pointers, columns),
    *(values, jnp.zeros(0, jnp.int32) if slots is None else slots),
  )
  return y, dots


def top_k(keys: jax.Array, k: jax.Array) -> jax.Array:
  """Marks the k largest of uint32 keys; see `select.top_k_mask`.

  Args:
    keys: uint32 array of any shape; 0 is never marked.
    k: int32 scalar.

  Returns:
    A bool array of that shape.
  """
  return _call("sparsejax_top_k", jax.ShapeDtypeStruct(keys.shape, jnp.bool_))(
    keys, k.reshape(1)
  )


def multiply_bits(
  x: jax.Array,
  bits: jax.Array,
  pointers: jax.Array,
  values: jax.Array,
  scales: jax.Array | None = None,
  *,
  dynamic: bool = False,
) -> jax.Array:
  """Multiplies activations by a matrix that has a bit for every weight.

  Args:
    x: float32 [in] or [batch, in].
    bits: uint8 [out, ceil(in / 8)]: the bit of input i is bit i % 8 of byte
      i // 8, counted from the lowest bit.
    pointers: int32 [out + 1]: the values of output o begin at pointers[o].
    values: float32, bfloat16 or int8 [slots], in order of (output, input).
    scales: float32 [out, groups]: the factors of int8 values, one for each
      in / groups neighbouring inputs. If there are several groups, in / groups
      has to be a multiple of 8.
    dynamic: For int8 values, whether to round activations to INT8, each example
      by its largest one, and to add up integers.

  Returns:
    float32 [out] or [batch, out].

  Raises:
    ValueError: If shapes or dtypes do not fit together.
    jax.errors.JaxRuntimeError: When it runs, if bits and pointers do not fit.

  Example:
    >>> if available(quiet=True):
    ...   bits = jnp.array([[0b101], [0b010]], jnp.uint8)
    ...   pointers = jnp.array([0, 2, 3], jnp.int32)
    ...   values = jnp.array([1.0, 2.0, 3.0])
    ...   print(multiply_bits(jnp.array([1.0, 10.0, 100.0]), bits, pointers,
    ...                       values))
    [201.  30.]
  """
  matrix = Masked(values, scales, bits, pointers, dynamic)
  return multiply_each(x, [matrix])[0]


def multiply_int8(
  x: jax.Array,
  values: jax.Array,
  scales: jax.Array,
  *,
  dynamic: bool = False,
) -> jax.Array:
  """Multiplies activations by a dense matrix of int8.

  Args:
    x: float32 [in] or [batch, in].
    values: int8 [out, in].
    scales: float32 [out, groups], as in `multiply_bits`.
    dynamic: As in `multiply_bits`.

  Returns:
    float32 [out] or [batch, out].

  Raises:
    ValueError: If shapes or dtypes do not fit together.

  Example:
    >>> if available(quiet=True):
    ...   values = jnp.array([[1, 2], [3, 4]], jnp.int8)
    ...   print(multiply_int8(jnp.ones(2), values, jnp.array([[1.0], [0.5]])))
    [3.  3.5]
  """
  if values.dtype != jnp.int8:
    raise ValueError(f"got values of {values.dtype}, wanted int8")
  return multiply_each(x, [Masked(values, scales, dynamic=dynamic)])[0]


class Masked(NamedTuple):
  """A matrix as `multiply_bits` takes it, or a dense one.

  Attributes:
    values: As in `multiply_bits`; [out, in] for a dense matrix.
    scales: As in `multiply_bits`.
    bits: As in `multiply_bits`; None for a dense matrix.
    pointers: As in `multiply_bits`; None for a dense matrix.
    dynamic: As in `multiply_bits`.
  """

  values: jax.Array
  scales: jax.Array | None = None
  bits: jax.Array | None = None
  pointers: jax.Array | None = None
  dynamic: bool = False


def multiply_each(x: jax.Array, matrices: Sequence[Masked]) -> list[jax.Array]:
  """Multiplies the same activations by several matrices, in one call.

  Threads share the rows of all matrices, so small matrices do not each cost a
  call.

  Args:
    x: float32 [..., in].
    matrices: One or more matrices with as many inputs as x.

  Returns:
    For each matrix, float32 [..., out], with the same bits as if it was
    multiplied alone.

  Raises:
    ValueError: If shapes or dtypes do not fit together.
    jax.errors.JaxRuntimeError: When it runs, if bits and pointers do not fit.

  Example:
    >>> if available(quiet=True):
    ...   scale = jnp.ones((1, 1))
    ...   rows = [jnp.array([[1, 2]], jnp.int8), jnp.array([[3, 4]], jnp.int8)]
    ...   print(multiply_each(jnp.ones(2), [Masked(r, scale) for r in rows]))
    [Array([3.], dtype=float32), Array([7.], dtype=float32)]
  """
  width = x.shape[-1]
  operands, results = [], []
  for matrix in matrices:
    outputs = _outputs(matrix, width)
    values, scales, bits, pointers, _ = matrix
    if bits is None:
      bits, pointers = jnp.zeros((0, 0), jnp.uint8), jnp.zeros(0, jnp.int32)
    if scales is None:
      scales = jnp.zeros((0, 1), jnp.float32)
    operands += [bits, pointers, values, scales]
    results.append(_floats(x.size // width, outputs))
  call = jax.ffi.ffi_call(
    "sparsejax_multiply_masked", results, vmap_method="sequential"
  )
  dynamic = sum(1 << i for i, matrix in enumerate(matrices) if matrix.dynamic)
  found = call(x.reshape(-1, width), *operands, dynamic=np.int64(dynamic))
  return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in found]


def _outputs(matrix: Masked, width: int) -> int:
  """Counts the outputs of a matrix whose buffers go together, or raises."""
  values, scales, bits, pointers, dynamic = matrix
  if bits is None:
    outputs = values.shape[0]
    if values.shape != (outputs, width):
      raise ValueError(
        f"got values of shape {values.shape}, wanted (out, {width}), the "
        "inputs of x"
      )
  else:
    outputs = pointers.shape[0] - 1
    if bits.shape != (outputs, -(-width // 8)):
      raise ValueError(
        f"got bits of shape {bits.shape}, wanted {(outputs, -(-width // 8))}: "
        f"one for each of {width} inputs, for {outputs} outputs"
      )
  if (scales is None) == (values.dtype == jnp.int8):
    raise ValueError(
      f"got values of {values.dtype} {'without' if scales is None else 'with'} "
      "scales, wanted scales with int8 and with nothing else"
    )
  if dynamic and values.dtype != jnp.int8:
    raise ValueError(
      f"got activations of int8 for values of {values.dtype}, wanted int8"
    )
  if scales is not None:
    groups = scales.shape[-1]
    size, rest = divmod(width, max(groups, 1))
    if scales.shape != (outputs, groups) or rest or (groups > 1 and size % 8):
      raise ValueError(
        f"got scales of shape {scales.shape} for {outputs} outputs and {width} "
        "inputs, wanted (out, groups), and one group or groups of a multiple "
        "of 8 inputs"
      )
  return outputs


def _floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(name, *results):
  of = results if len(results) > 1 else results[0]
  return jax.ffi.ffi_call(name, of, vmap_method="sequential")
