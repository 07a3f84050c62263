"""Flax Linen layers on packed arrays; the one module here that imports Flax."""

import contextlib
from collections.abc import Iterator

import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from sparsejax.linear import matmul
from sparsejax.packed import is_packed, unpack


@contextlib.contextmanager
def packed_layers() -> Iterator[None]:
  """Lets any Linen model run with packed params.

  Within it `nn.Dense` multiplies by `sparsejax.matmul`; any other layer that
  has packed params of its own runs with dense ones, which are made anew in the
  backward pass rather than kept.

  Yields:
    Nothing.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from sparsejax import packed
    >>> model = nn.Dense(3, use_bias=False)
    >>> kernel = jnp.eye(3)
    >>> tree = {"kernel": packed.pack(kernel, kernel != 0)}
    >>> with packed_layers():
    ...   print(model.apply({"params": tree}, jnp.array([[1.0, 2.0, 3.0]])))
    [[1. 2. 3.]]
  """
  with nn.intercept_methods(_intercepted):
    yield


def _intercepted(call, args, kwargs, context):
  module = context.module
  if context.method_name != "__call__" or module.scope is None:
    return call(*args, **kwargs)
  own = dict(module.variables.get("params", {}))
  if not any(map(is_packed, own.values())):
    return call(*args, **kwargs)
  if isinstance(module, nn.Dense) and _is_plain(module, kwargs):
    return _dense(module, own, *args)
  # The same layer by itself, of params as arguments: what it keeps for the
  # backward pass are these, packed.
  alone = module.clone(parent=None)

  @jax.checkpoint
  def layer(own, args):
    return alone.apply({"params": unpack(own)}, *args, **kwargs)

  return layer(own, args)


def _is_plain(module, kwargs):
  defaults = module.precision is None and module.dot_general is None
  return defaults and module.dot_general_cls is None and not kwargs


def _dense(module, own, x):
  x, bias = promote_dtype(x, own.get("bias"), dtype=module.dtype)
  y = matmul(x, own["kernel"])
  return y if bias is None else y + bias
