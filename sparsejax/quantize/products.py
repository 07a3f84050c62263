"""Products with matrices of INT8."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import kernels
from sparsejax.quantize import rounding


def product(
  x: jax.Array, values: jax.Array, scales: jax.Array, *, dynamic: bool
) -> jax.Array:
  """Multiplies activations by a matrix of INT8.

  Args:
    x: [..., in], floats.
    values: int8[out, in].
    scales: float32[out, groups].
    dynamic: Whether to round each token to INT8, and to add up integers.

  Returns:
    [..., out], of x's dtype.
  """
  if values.ndim != 2:
    raise ValueError(
      f"got {values.ndim - 2} axes of stacked matrices, wanted one matrix: run "
      "over them by lax.scan"
    )
  return _product(dynamic, x, values, scales)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(dynamic, x, values, scales):
  anywhere = dynamic_product if dynamic else _by_floats
  if masked(values, scales) is None:
    return anywhere(x, values, scales)

  def by_kernel(x, values, scales):
    x, dtype = x.astype(jnp.float32), x.dtype
    y = kernels.multiply_int8(x, values, scales, dynamic=dynamic)
    return y.astype(dtype)

  return lax.platform_dependent(
    x, values, scales, cpu=by_kernel, default=anywhere
  )


def masked(
  values: jax.Array, scales: jax.Array, *, dynamic: bool = False
) -> kernels.Masked | None:
  """Returns a matrix of INT8 as the kernels take it; None if they do not."""
  several, size = scales.shape[1] > 1, values.shape[1] // scales.shape[1]
  if not kernels.available() or (several and size % 8):
    return None
  return kernels.Masked(values, scales, dynamic=dynamic)


def _forward(dynamic, x, values, scales):
  return _product(dynamic, x, values, scales), (x, values, scales)


def _backward(dynamic, saved, g):
  del dynamic  # straight through
  x, values, scales = saved
  _, pull = jax.vjp(lambda x, s: _by_floats(x, values, s), x, scales)
  of_x, of_scales = pull(g)
  return of_x, None, of_scales


_product.defvjp(_forward, _backward)


def _by_floats(x, values, scales):
  if scales.shape[1] == 1:  # after the product: fewer numbers
    return (x @ values.T.astype(x.dtype)) * scales[:, 0].astype(x.dtype)
  return x @ rounding.multiples(values.T, scales).astype(x.dtype)


def dynamic_product(
  x: jax.Array, values: jax.Array, scales: jax.Array
) -> jax.Array:
  """Multiplies in integers: x is rounded to INT8, token by token.

  Args:
    x: [..., in], floats.
    values: int8[out, in].
    scales: float32[out, groups].

  Returns:
    [..., out], of x's dtype: sums of int32, exact, times the two scales, added
    over groups in float32.
  """
  numbers, scale = rounded_tokens(x)
  groups = scales.shape[1]
  # [..., groups, in / groups] and [out, groups, in / groups], group by group.
  numbers = numbers.reshape(-1, groups, x.shape[-1] // groups)
  parts = values.reshape(values.shape[0], groups, -1)
  sums = lax.dot_general(
    numbers,
    parts,
    (((2,), (2,)), ((1,), (1,))),
    preferred_element_type=jnp.int32,
  )  # [groups, tokens, out]
  y = jnp.sum(sums * scales.T[:, None], 0)
  return (y.reshape(*x.shape[:-1], -1) * scale).astype(x.dtype)


def rounded_tokens(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds activations to INT8, token by token.

  Args:
    x: [..., in].

  Returns:
    int8[..., in], and float32[..., 1], what one of the integers stands for.
  """
  scale = rounding.scale_of(jnp.max(jnp.abs(x), -1, keepdims=True))
  return rounding.nearest(x, scale), scale
