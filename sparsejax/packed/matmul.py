"""Products with a packed matrix, dense for a moment or by the kernels.

In the backward pass the dense gradient of one matrix exists for a moment, if at
all; the matrix's probe reads what it needs off it there.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_derivatives, lax

from sparsejax import kernels
from sparsejax.nodes import cotangent, without_zeros
from sparsejax.quantize import products, rounding
from sparsejax.xla import begun_after, materialised


@jax.custom_vjp
def unpacked(packed) -> jax.Array:
  """Makes a `Packed` array dense; its gradient is gathered at the non-zeros."""
  return _dense(packed, packed.values)


def _dense(packed, values):
  dense = packed.structure.expand(values)
  if packed.scales is None:
    return dense
  return rounding.multiples(dense, packed.scales)


def _gathered(packed, gradient):
  """Gathers the gradient of values; of integers there is none."""
  if packed.scales is not None:
    return None
  return packed.structure.gather(gradient)


def _unpacked_forward(packed):
  return unpacked(packed), without_zeros(packed)


def _unpacked_backward(packed, gradient):
  gathered = _gathered(packed, gradient)
  gathered, found = read_off(packed, gradient, gathered)
  return (_cotangent(packed, found, gathered),)


def _cotangent(packed, found, values):
  fields = {"values": values, "structure": None, "scales": None}
  return cotangent(packed, found, **fields)


unpacked.defvjp(_unpacked_forward, _unpacked_backward)


def read_off(packed, gradient: jax.Array, passing: Any) -> tuple[Any, Any]:
  """Lets the probe of a `Packed` array read, before anything goes on.

  Args:
    packed: The array.
    gradient: Its dense gradient.
    passing: Arrays that the backward pass goes on with.

  Returns:
    These arrays, and what was read; None without a probe.
  """
  if packed.probe is None:
    return passing, None

  def read(gradient, packed, passing):
    weights = packed.values, packed.structure
    probe = packed.probe
    return passing, probe.read(gradient, weights, probe.operands)

  return materialised(read, gradient, packed, passing)


def _expanded(packed, first):
  return _dense(packed, begun_after(first, packed.values))


def _times(x, w):
  return x @ w.astype(x.dtype)


def _product(x, packed):
  if packed.dynamic:
    values = packed.structure.expand(begun_after(x, packed.values))
    return products.dynamic_product(x, values.T, packed.scales)
  return _times(x, _expanded(packed, x))


@jax.custom_vjp
def dense_product(x: jax.Array, packed) -> jax.Array:
  """Multiplies `x [..., in]` by a `Packed` matrix, dense for a moment."""
  # Without the loop XLA makes all matrices first, since they depend on params
  # alone, and keeps them for the gradients.
  return materialised(_product, x, packed)


def _dense_forward(x, packed):
  return dense_product(x, packed), (x, without_zeros(packed))


def _dense_backward(saved, g):
  def backward(x, packed, g):
    # The very products that JAX's own gradient makes; straight through the
    # rounding of x.
    _, pull = jax.vjp(_times, x, _expanded(packed, g))
    of_x, gradient = pull(g)
    gathered = _gathered(packed, gradient)
    return read_off(packed, gradient, (of_x, gathered))

  x, packed = saved
  (of_x, gathered), found = materialised(backward, x, packed, g)
  return of_x, _cotangent(packed, found, gathered)


dense_product.defvjp(_dense_forward, _dense_backward)


def bits_product(x: jax.Array, packed) -> jax.Array:
  """Multiplies `x [..., in]` by a `Packed` matrix of `RowBits`.

  By the kernels on CPUs, and by `dense_product` on other platforms.
  """
  if masked(packed) is None:
    return dense_product(x, packed)
  return lax.platform_dependent(
    x, packed, cpu=_bits_product, default=dense_product
  )


def masked(packed) -> kernels.Masked | None:
  """Returns a `Packed` matrix of `RowBits` as the kernels take it, if so."""
  structure, scales = packed.structure, packed.scales
  groups = 1 if scales is None else scales.shape[-1]
  # Groups that begin within a byte of bits are left to the dense product.
  if not kernels.available() or (groups > 1 and packed.shape[0] // groups % 8):
    return None
  where = structure.bits, structure.pointers
  return kernels.Masked(packed.values, scales, *where, packed.dynamic)


@jax.custom_vjp
def _bits_product(x, packed):
  (y,) = kernels.multiply_each(x.astype(jnp.float32), [masked(packed)])
  return y.astype(x.dtype)


def _bits_forward(x, packed):
  return _bits_product(x, packed), (x, without_zeros(packed))


# Of a format for inference: gradients are right, and no faster than dense.
_bits_product.defvjp(_bits_forward, _dense_backward)


def kernel_product(x: jax.Array, packed) -> jax.Array:
  """Multiplies `x [..., in]` by a `Packed` matrix of `Rows`.

  By the kernels on CPUs, and by `dense_product` on other platforms.
  """
  if not kernels.available() or packed.scales is not None:
    return dense_product(x, packed)
  return lax.platform_dependent(
    x, packed, cpu=_kernel_product, default=dense_product
  )


def _kernel_product(x, packed):
  by_example = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  y = _by_kernel(by_example, packed)
  return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


@jax.custom_vjp
def _by_kernel(x, packed):
  """Multiplies `x [batch, in]`: [batch, out]."""
  structure, values = packed.structure, packed.values
  x = x[0] if x.shape[0] == 1 else x
  y = kernels.multiply(x, structure.pointers, structure.inputs, values)
  return jnp.atleast_2d(y)


def _by_kernel_forward(x, packed):
  of_x = x.perturbed
  of_values = packed.values.perturbed or packed.probe is not None
  x, packed = jax.tree.map(
    lambda leaf: leaf.value,
    (x, packed),
    is_leaf=lambda leaf: isinstance(leaf, custom_derivatives.CustomVJPPrimal),
  )
  # What gradients are wanted is told by what is there: a matrix that is not
  # trained keeps no activations, and a first layer has no gradient of its own.
  kept = x if of_values else None
  return _by_kernel(x, packed), (
    () if of_x else None,
    kept,
    without_zeros(packed),
  )


def _by_kernel_backward(saved, g):
  wanted, x, packed = saved
  structure, values, back = (
    packed.structure,
    packed.values,
    packed.structure.back,
  )
  if isinstance(g, custom_derivatives.SymbolicZero):
    g = jnp.zeros(g.shape, g.dtype)
  of_x = sampled = found = None
  if wanted is not None and back is None:
    of_x = g @ structure.expand(values).astype(g.dtype).T
  elif wanted is not None and x is None:
    of_x = kernels.multiply(g, back.pointers, back.outputs, values, back.slots)
  elif wanted is not None:
    of_x, sampled = kernels.multiply_and_sample(
      g, x, back.pointers, back.outputs, values, back.slots
    )
  if x is not None and sampled is None:
    sampled = kernels.sample(
      x, g, structure.pointers, structure.inputs, values.dtype
    )
  if packed.probe is not None:
    gradient = (x.T @ g).astype(values.dtype)
    of_x, found = read_off(packed, gradient, of_x)
  return of_x, _cotangent(packed, found, sampled)


_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward, symbolic_zeros=True)
