"""Integers that order as floats do, by the bits of these."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import xla


def order_keys(
  scores: jax.Array, finish: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Computes the integers of `ordered` once, for all later passes.

  Otherwise counts and comparisons of scores might not agree, and k weights not
  be k; see `xla.materialised`.

  Args:
    scores: Floating array.
    finish: What else is to be done to the integers, elementwise.

  Returns:
    An array of their shape and unsigned dtype.
  """
  uint = jnp.dtype(f"uint{jnp.finfo(scores.dtype).bits}")

  def order(bits: jax.Array) -> jax.Array:
    return finish(ordered(lax.bitcast_convert_type(bits, scores.dtype)))

  return xla.materialised(order, lax.bitcast_convert_type(scores, uint))


def ordered(x: jax.Array) -> jax.Array:
  """Maps floats to unsigned integers that order as `top_k_mask` says.

  Args:
    x: Floating array.

  Returns:
    An array of its shape, of the unsigned dtype of its size. NaN is 1; 0 and
    the largest integer are what no float becomes.

  Example:
    >>> print(ordered(jnp.array([0.0, -0.0, 1.0])) >> 28)
    [ 8  8 11]
  """
  bits = jnp.finfo(x.dtype).bits
  uint = jnp.dtype(f"uint{bits}")
  sign = jnp.array(1 << (bits - 1), uint)
  i = lax.bitcast_convert_type(x, uint)
  i = jnp.where(i == sign, jnp.zeros_like(i), i)  # -0.0 is 0.0
  i = jnp.where(i >= sign, ~i, i | sign)
  return jnp.where(jnp.isnan(x), jnp.ones_like(i), i)


def of_one_dtype(leaves: Sequence[jax.Array]) -> Sequence[jax.Array]:
  """Widens what is narrower than the widest, if there are several dtypes."""
  dtypes = {x.dtype for x in leaves}
  if len(dtypes) < 2:
    return leaves
  wide = max(jnp.float32, *dtypes, key=lambda d: jnp.finfo(d).bits)
  return [_widen(x, jnp.dtype(wide)) for x in leaves]


def _widen(x, dtype):
  """Converts to a wider dtype, subnormal numbers among them."""
  if x.dtype == dtype:
    return x
  wide = x.astype(dtype)
  if dtype != jnp.float64:
    return wide
  # Arithmetic may flush float32's subnormal numbers: take them from the bits.
  info = jnp.finfo(x.dtype)
  bits = lax.bitcast_convert_type(x, f"uint{info.bits}")
  size = bits & ((1 << (info.bits - 1)) - 1)
  small = size.astype(dtype) * float(info.smallest_subnormal)
  small = jnp.where(size < bits, -small, small)
  return jnp.where(size < 1 << info.nmant, small, wide)
