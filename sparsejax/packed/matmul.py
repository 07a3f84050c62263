"""Products with a packed matrix, dense for a moment or by the kernels.

In the backward pass the dense gradient of one matrix exists for a moment, if at
all: what is asked of it is read off there.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import kernels
from sparsejax.nodes import once


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
  gathered = structure.gather(gradient)
  found, gathered = looked(look, gradient, given, gathered)
  return gathered, None, found, None


unpacked.defvjp(_unpacked_forward, _unpacked_backward)


def looked(look, gradient, given, passing):
  """What is found in a dense gradient, before anything goes on.

  Args:
    look: As of a `Probe`; None for nothing.
    gradient: The dense gradient.
    given: What `look` needs.
    passing: Arrays that the backward pass goes on with.

  Returns:
    What is found, and these arrays.
  """
  if look is None:
    return None, passing
  return once(lambda *xs: (look(*xs[:2]), xs[2]), gradient, given, passing)


def parts(packed):
  """What a product with a custom gradient takes for a `Packed` matrix."""
  probe = packed.probe
  if probe is None:
    return None, (packed.values, packed.structure, None, None)
  return probe.look, (
    packed.values,
    packed.structure,
    probe.found,
    probe.given,
  )


def dense_product(x: jax.Array, packed) -> jax.Array:
  """`x [..., in]` times a packed matrix, made dense twice rather than kept."""
  look, rest = parts(packed)
  return _dense(look, x, *rest)


def _times(x, w):
  return x @ w.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(look, x, values, structure, found, given):
  del look, found, given
  # Or XLA would make all matrices at first, and keep them for the gradients.
  return once(
    lambda x, values, structure: _times(x, structure.expand(values)),
    *(x, values, structure),
  )


def _dense_forward(look, x, values, structure, found, given):
  y = _dense(look, x, values, structure, found, given)
  return y, (x, values, structure, given)


def _dense_backward(look, saved, g):
  x, values, structure, given = saved

  def backward(x, values, structure, given, g):
    # The very products that JAX's own gradient makes.
    _, pull = jax.vjp(_times, x, structure.expand(values))
    of_x, gradient = pull(g)
    gathered = structure.gather(gradient)
    found, (of_x, gathered) = looked(look, gradient, given, (of_x, gathered))
    return of_x, gathered, found

  of_x, gathered, found = once(backward, x, values, structure, given, g)
  return of_x, gathered, None, found, None


_dense.defvjp(_dense_forward, _dense_backward)


def kernel_product(x: jax.Array, packed) -> jax.Array:
  """The same by the kernels, on CPUs; dense on other platforms."""
  if not kernels.available():
    return dense_product(x, packed)
  return lax.platform_dependent(
    x, packed, cpu=_kernel_product, default=dense_product
  )


def _kernel_product(x, packed):
  look, rest = parts(packed)
  # By feature: XLA hides transposes where it can choose layouts.
  by_example = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  y = _by_kernel(look, by_example.T, *rest)
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
    of_x = structure.expand(values).astype(g.dtype) @ g
  else:
    of_x = kernels.multiply(g, back.pointers, back.outputs, values, back.slots)
  sampled = kernels.sample(
    x, g, structure.pointers, structure.inputs, values.dtype
  )
  found = None
  if look is not None:
    gradient = (x @ g.T).astype(values.dtype)
    found, of_x = looked(look, gradient, given, of_x)
  return of_x, sampled, None, found, None


_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)
