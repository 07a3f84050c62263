"""Flax Linen layers on packed arrays, without importing Flax."""

import jax
import jax.numpy as jnp

from sparsejax.linear import matmul
from sparsejax.packed import is_packed, unpack


def packed_layers(call, args, kwargs, context):
  """Runs any Linen model with packed params, in `nn.intercept_methods`.

  `nn.Dense` then multiplies by `sparsejax.matmul`; any other layer that has
  packed params of its own runs with dense ones, which are made anew in the
  backward pass rather than kept.

  Args:
    call: The method that is intercepted.
    args: Its arguments.
    kwargs: Its keywords.
    context: Flax's, with the module and the method's name.

  Returns:
    What the method returns.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from sparsejax import packed
    >>> model = nn.Dense(3, use_bias=False)
    >>> kernel = jnp.eye(3)
    >>> tree = {"kernel": packed.pack(kernel, kernel != 0)}
    >>> with nn.intercept_methods(packed_layers):
    ...   print(model.apply({"params": tree}, jnp.array([[1.0, 2.0, 3.0]])))
    [[1. 2. 3.]]
  """
  module = context.module
  if context.method_name != "__call__" or module.scope is None:
    return call(*args, **kwargs)
  own = dict(module.variables.get("params", {}))
  if not any(map(is_packed, own.values())):
    return call(*args, **kwargs)
  if _is_plain_dense(module) and not kwargs:
    return _dense(module, own, *args)
  # The same layer by itself, of params as arguments: what it keeps for the
  # backward pass are these, packed.
  alone = module.clone(parent=None)

  @jax.checkpoint
  def layer(own, args):
    return alone.apply({"params": unpack(own)}, *args, **kwargs)

  return layer(own, args)


def _is_plain_dense(module):
  kind = type(module)
  return (kind.__module__, kind.__name__) == (
    "flax.linen.linear",
    "Dense",
  ) and (module.precision, module.dot_general, module.dot_general_cls) == (
    (None,) * 3
  )


def _dense(module, own, x):
  kernel, bias = own["kernel"], own.get("bias")
  there = [a.dtype for a in (x, kernel, bias) if a is not None]
  dtype = module.dtype or jnp.result_type(*there)
  y = matmul(x.astype(dtype), kernel)
  return y if bias is None else y + bias.astype(dtype)
