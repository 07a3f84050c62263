"""Flax Linen layers on packed arrays, without importing Flax."""

import warnings

import jax
import jax.numpy as jnp

from sparsejax.linear import matmul
from sparsejax.masks import path_name
from sparsejax.packed import is_packed

__all__ = ["packed_layers"]


def packed_layers(call, args, kwargs, context):
  """Runs any Linen model with packed params, in `nn.intercept_methods`.

  `nn.Dense` then multiplies by `sparsejax.matmul`. Any other layer with packed
  params of its own runs with dense ones, which are not kept for the backward
  pass but made again. Stacks of params that `nn.scan` or `nn.vmap` run over are
  dense for as long as the model runs, and there is a warning. Layers within
  `nn.WeightNorm` have to be dense.

  Args:
    call: The intercepted method.
    args: Its arguments.
    kwargs: Its keywords.
    context: Flax's, with the module and the method's name.

  Returns:
    What the method returns.

  Raises:
    ValueError: If packed params are where they cannot be used.

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
  module, method = context.module, context.method_name
  if module.scope is None:
    return call(*args, **kwargs)
  params = dict(module.variables.get("params", {}))
  own = {k: v for k, v in params.items() if is_packed(v)}
  if method == "setup" and own:
    # It would ask for params of the dense shapes. Every method runs on a layer
    # with dense params instead, and models that share an embedding read it.
    if _is(module, "Embed"):
      module.embedding = own["embedding"].unpack()
    return None
  if method == "__call__" and own and _is_plain_dense(module) and not kwargs:
    return _dense(module, params, *args)
  if own:
    return _run_alone(module, method, params, args, kwargs, _own_unpacked)
  _check_not_normalized(module)
  others = [] if module.scope.path else _packed_paths(params, _is_no_matrix)
  try:
    return call(*args, **kwargs)
  except Exception:
    # What lifts layers is not intercepted: it fails on packed stacks, in ways
    # of its own. Anything else fails again below.
    if not others:
      raise
  dense = jax.tree_util.tree_map_with_path(
    lambda path, x: x.unpack() if _is_no_matrix(path, x) else x,
    params,
    is_leaf=is_packed,
  )
  result = _run_alone(module, method, dense, args, kwargs)
  warnings.warn(
    f"the packed params {', '.join(others)} are dense for as long as the model "
    "runs, since nn.scan or nn.vmap runs over some of them: to save memory, "
    "leave those dense by `prunable` of the algorithm, or use a loop of layers",
    stacklevel=2,
  )
  return result


def _run_alone(module, method, params, args, kwargs, changed=None):
  """Runs the layer by itself, of params as arguments.

  With `changed`, which makes other params of them, the backward pass keeps the
  params as they are, and makes the others again.
  """
  alone, scope = module.clone(parent=None), module.scope
  rest = {k: v for k, v in module.variables.items() if k != "params"}

  # Not of `args` too, which may hold Python bools.
  def layer(params):
    return alone.apply(
      {"params": params if changed is None else changed(params), **rest},
      *args,
      method=method,
      rngs=scope.rngs,
      mutable=scope.mutable,
      **kwargs,
    )

  if changed is not None:
    layer = jax.checkpoint(layer)
  result = layer(params)
  if scope.mutable is False:
    return result
  result, written = result
  for collection, variables in written.items():
    for name, value in variables.items():
      if collection != "params":
        module.put_variable(collection, name, value)
  return result


def _own_unpacked(params):
  """Makes a layer's own params dense, and not those of layers within."""
  return {k: v.unpack() if is_packed(v) else v for k, v in params.items()}


def _is_no_matrix(path, x):
  """Tells whether a leaf is packed, and does not look like a Dense kernel."""
  return is_packed(x) and (x.ndim != 2 or path_name(path[-1:]) != "kernel")


def _packed_paths(params, wanted=lambda path, x: is_packed(x)):
  """Lists the key paths of the packed arrays of a kind."""
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_packed)
  return [path_name(path) for path, x in leaves if wanted(path, x)]


def _is(module, name):
  kind = type(module)
  return kind.__module__.startswith("flax.linen.") and kind.__name__ == name


def _check_not_normalized(module):
  """Refuses packed params that a layer around theirs would change."""
  if not (_is(module, "WeightNorm") or _is(module, "SpectralNorm")):
    return
  layer = module.layer_instance
  params = layer.variables.get("params", {})
  if paths := _packed_paths(params):
    where = "/".join((*layer.path, paths[0]))
    raise ValueError(
      f"{where}: got packed params in nn.{type(module).__name__}, which "
      "changes dense ones: leave them dense by `prunable` of the algorithm, or "
      "use masked mode"
    )


def _is_plain_dense(module):
  return _is(module, "Dense") and (
    module.precision,
    module.dot_general,
    module.dot_general_cls,
  ) == (None, None, None)


def _dense(module, own, x):
  kernel, bias = own["kernel"], own.get("bias")
  there = [a.dtype for a in (x, kernel, bias) if a is not None]
  dtype = module.dtype or jnp.result_type(*there)
  y = matmul(x.astype(dtype), kernel)
  return y if bias is None else y + bias.astype(dtype)
