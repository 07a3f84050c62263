"""Products with a packed matrix, dense for a moment or by the kernels.

In the backward pass the dense gradient of one matrix exists for a moment, if at
all: what is asked of it is read off there.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unpacked(look, values, structure, found, given):
  """The dense array; its gradient is gathered, and looked at if `look`."""
  del look, found, given
  return structure.expand(values)


def _unpacked_forward(look, values, structure, found, given):
  dense = unpacked(look, values, structure, found, given)
  return dense, (structure, given)


def _unpacked_backward(look, saved, gradient):
  structure, given = saved
  found = None if look is None else look(gradient, given)
  return structure.gather(gradient), None, found, None


unpacked.defvjp(_unpacked_forward, _unpacked_backward)


def dense_product(x: jax.Array, packed) -> jax.Array:
  """`x [..., in]` times a packed matrix, made dense twice rather than kept."""

  @jax.checkpoint
  def times(x, packed):
    return x @ packed.unpack().astype(x.dtype)

  return times(x, packed)


def kernel_product(x: jax.Array, packed) -> jax.Array:
  """The same by the kernels, on CPUs; dense on other platforms."""
  if not kernels.available():
    return dense_product(x, packed)
  return lax.platform_dependent(
    x, packed, cpu=_kernel_product, default=dense_product
  )


def _kernel_product(x, packed):
  probe = packed.probe
  look, found, given = (None, None, None)
  if probe is not None:
    look, found, given = probe.look, probe.found, probe.given
  # By feature: XLA hides transposes where it can choose layouts.
  by_example = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  y = _by_kernel(
    look, by_example.T, packed.values, packed.structure, found, given
  )
  return y.T.reshape(*x.shape[:-1], -1).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(look, x, values, structure, found, given):
  """`x [in, batch]` to [out, batch]."""
  del look, found, given
  if x.shape[1] == 1:
    return kernels.multiply(
      x[:, 0], structure.pointers, structure.inputs, values
    )[:, None]
  return kernels.multiply(x, structure.pointers, structure.inputs, values)


def _by_kernel_forward(look, x, values, structure, found, given):
  y = _by_kernel(look, x, values, structure, found, given)
  return y, (x, values, structure, given)


def _by_kernel_backward(look, saved, g):
  x, values, structure, given = saved
  back = structure.back
  if back is None:
    gradient_of_x = structure.expand(values).astype(g.dtype) @ g
  else:
    gradient_of_x = kernels.multiply(
      g, back.pointers, back.outputs, values, back.slots
    )
  sampled = kernels.sample(
    x, g, structure.pointers, structure.inputs, values.dtype
  )
  found = None
  if look is not None:
    found = look((x @ g.T).astype(values.dtype), given)
  return gradient_of_x, sampled, None, found, None


_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)
