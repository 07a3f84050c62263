"""Convolutions as products of matrices, for programs that run them in loops.

XLA's CPU backend runs a convolution inside a loop five times slower than
outside, and one of many kernels at once, as `jax.vmap` over nets makes it,
slower still. A product it runs as fast anywhere.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax


def as_products(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
  """Computes plain convolutions as products, under `nn.intercept_methods`.

  Results differ by rounding, since terms are summed in another order.
  Convolutions with groups, dilation or masks are left to Flax.

  Args:
    call: The intercepted method.
    args: Its arguments.
    kwargs: Its keywords.
    context: Flax's, with the module and the method's name.

  Returns:
    The method's result.
  """
  module = context.module
  if (
    not isinstance(module, nn.Conv)
    or context.method_name != "__call__"
    or module.is_initializing()
    or kwargs
    or not _is_plain(module)
  ):
    return call(*args, **kwargs)
  (x,) = args
  own = module.variables["params"]
  x, kernel, bias = promote_dtype(
    x, own["kernel"], own.get("bias"), dtype=module.dtype
  )
  y = convolved(x, kernel, strides=module.strides, padding=module.padding)
  return y if bias is None else y + bias


def convolved(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: int | tuple[int, ...] | None = None,
  padding: str | int | tuple[int, ...] = "SAME",
) -> jax.Array:
  """Computes a convolution, channels last, as one product of matrices.

  Args:
    x: [batch, *space, channels].
    kernel: [*window, channels, features].
    strides: Of all axes of space, or of each.
    padding: "SAME", "VALID", or what is added on both sides, of all axes or of
      each.

  Returns:
    [batch, *positions, features], in the kernel's dtype.
  """
  *window, channels, features = kernel.shape
  steps = _per_axis(1 if strides is None else strides, len(window))
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(x.shape[1:-1], window, steps, padding)
  else:
    pads = [(p, p) for p in _per_axis(padding, len(window))]
  x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
  positions = [
    (size - width) // step + 1
    for size, width, step in zip(x.shape[1:-1], window, steps, strict=True)
  ]

  def inputs_of(offset: tuple[int, ...]) -> jax.Array:
    """Slices the inputs of one weight of the window, at all positions."""
    axes = zip(offset, positions, steps, strict=True)
    return x[:, *(slice(i, i + (n - 1) * by + 1, by) for i, n, by in axes)]

  patches = [inputs_of(offset) for offset in np.ndindex(*window)]
  rows = jnp.concatenate(patches, -1).reshape(-1, math.prod(window) * channels)
  y = rows @ kernel.reshape(-1, features)
  return y.reshape(len(x), *positions, features)


def _is_plain(module: nn.Conv) -> bool:
  """Whether `convolved` can compute a convolution."""
  padding = module.padding
  plain = isinstance(padding, int) or padding in ("SAME", "VALID")
  dilations = module.input_dilation, module.kernel_dilation
  return (
    plain
    and all(set(_per_axis(d or 1, 1)) == {1} for d in dilations)
    and module.feature_group_count == 1
    and module.mask is None
    and (module.precision, module.conv_general_dilated) == (None, None)
  )


def _per_axis(value: int | Iterable[int], n: int) -> tuple[int, ...]:
  return (value,) * n if isinstance(value, int) else tuple(value)
