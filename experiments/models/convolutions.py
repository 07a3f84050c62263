"""Convolutions as products of matrices, for programs that run them in loops.

XLA's CPU backend runs a convolution inside a loop five times slower than
outside, and one of many kernels at once, as `jax.vmap` over nets makes it,
slower still. A product it runs as fast anywhere.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax


def as_products(call, args, kwargs, context):
  """Runs plain convolutions as products: for `nn.intercept_methods`.

  The sums are the same but for the order of their terms. Convolutions with
  groups, dilation or masks stay as they are.

  Args:
    call: The method that is intercepted.
    args: Its arguments.
    kwargs: Its keywords.
    context: Flax's, with the module and the method's name.

  Returns:
    What the method returns.
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
  """A convolution, channels last, as one product of matrices.

  Args:
    x: [batch, *space, channels].
    kernel: [*window, channels, features].
    strides: Of all axes of space, or of each.
    padding: "SAME", "VALID", or how much on both sides, likewise.

  Returns:
    [batch, *space, features], in the dtype of the kernel.
  """
  *window, channels, features = kernel.shape
  steps = _each(1 if strides is None else strides, len(window))
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(x.shape[1:-1], window, steps, padding)
  else:
    pads = [(p, p) for p in _each(padding, len(window))]
  x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
  places = [
    (size - width) // step + 1
    for size, width, step in zip(x.shape[1:-1], window, steps, strict=True)
  ]

  def seen(offset):
    """What one weight of the window sees at all places."""
    ends = [
      start + (n - 1) * step + 1
      for start, n, step in zip(offset, places, steps, strict=True)
    ]
    return lax.slice(
      x, (0, *offset, 0), (len(x), *ends, channels), (1, *steps, 1)
    )

  patches = [seen(offset) for offset in _offsets(window)]
  rows = jnp.concatenate(patches, -1).reshape(-1, math.prod(window) * channels)
  y = rows @ kernel.reshape(-1, features)
  return y.reshape(len(x), *places, features)


def _is_plain(module) -> bool:
  """Whether a convolution has nothing that `convolved` does not know."""
  padding = module.padding
  plain = isinstance(padding, int) or padding in ("SAME", "VALID")
  dilations = module.input_dilation, module.kernel_dilation
  return (
    plain
    and all(set(_each(d or 1, 1)) == {1} for d in dilations)
    and module.feature_group_count == 1
    and module.mask is None
    and (module.precision, module.conv_general_dilated) == (None, None)
  )


def _each(value, n: int) -> tuple[int, ...]:
  return (value,) * n if isinstance(value, int) else tuple(value)


def _offsets(window):
  if not window:
    return [()]
  return [(i, *rest) for i in range(window[0]) for rest in _offsets(window[1:])]
