"""Parameters made from a file's tensors, and tensors made from parameters.

Files hold one tensor per layer, matrices [out, in]; parameters are stacked over
the layers, kernels [in, out].
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.errors import UserError, check_known
from experiments.llm.families import protocol, registry
from experiments.llm.families.protocol import (
  EMBEDDING,
  Config,
  is_kernel,
  is_layer_kernel,
  is_stacked,
)
from sparsejax import quantize

DTYPES = ("float32", "float16", "bfloat16")
_SHOWN = 5

Shape = tuple[int, ...]


def params_from_tensors(
  config: Config,
  names: Mapping[str, str],
  *,
  shapes: Mapping[str, Shape],
  load: Callable[[str], np.ndarray],
  where: Any,
  dtype: jax.typing.DTypeLike,
) -> dict[str, Any]:
  """Makes the parameters from a file's tensors, loading one at a time.

  Args:
    config: the model's.
    names: the tensor's name by parameter path; {} stands for the layer.
    shapes: of the tensors in the file.
    load: returns the tensor of a name.
    where: the file, for errors.
    dtype: of the parameters.

  Returns:
    The parameters, as NumPy arrays.

  Raises:
    UserError: a tensor is missing, has another shape, is not expected, or has
      values that are not finite; or the dtype is another.
  """
  dtype = jnp.dtype(dtype)
  check_known("dtype of parameters", dtype.name, DTYPES)
  leaves = _shapes(config)
  wanted = {}
  for path, shape in leaves.items():
    count, shape = (shape[0], shape[1:]) if is_stacked(path) else (1, shape)
    for i in range(count):
      name = names[path].format(i)
      wanted[name] = shape[::-1] if is_kernel(path) else shape
  _compare(shapes, wanted, where)
  params, lost = {}, {}
  for path, shape in leaves.items():
    params[path] = np.empty(shape, dtype)
    stacked = params[path] if is_stacked(path) else params[path][None]
    for i, x in enumerate(stacked):
      name = names[path].format(i)
      tensor = cast(load(name), dtype, f"{where}: tensor {name}", lost)
      x[...] = tensor.T if is_kernel(path) else tensor
  warn_of_zeros(lost, dtype)
  return traverse_util.unflatten_dict(params, sep="/")


def tensors_from_params(
  config: Config,
  names: Mapping[str, str],
  params: Any,
  *,
  dtype: jax.typing.DTypeLike,
) -> dict[str, np.ndarray]:
  """Makes a file's tensors from the parameters.

  Args:
    config: the model's.
    names: the tensor's name by parameter path; {} stands for the layer.
    params: the parameters.
    dtype: of the tensors.

  Returns:
    The tensors by name, contiguous.

  Raises:
    UserError: the parameters are not those of the config, are not finite, or
      too large for the dtype.
  """
  check_params(config, params, where="parameters")
  leaves = traverse_util.flatten_dict(params, sep="/")
  tensors, lost = {}, {}
  for path, leaf in leaves.items():
    stacked = np.asarray(leaf) if is_stacked(path) else np.asarray(leaf)[None]
    for i, x in enumerate(stacked):
      name = names[path].format(i)
      x = cast(x.T if is_kernel(path) else x, dtype, f"tensor {name}", lost)
      tensors[name] = np.ascontiguousarray(x)
  warn_of_zeros(lost, dtype)
  return tensors


def cast(
  x: np.ndarray,
  dtype: jax.typing.DTypeLike,
  where: str,
  lost: dict[str, int] | None = None,
) -> np.ndarray:
  """Rounds a tensor to a dtype, if that leaves all its values finite.

  Args:
    x: the tensor, of any float dtype.
    dtype: the dtype.
    where: its name, for errors.
    lost: takes, by that name, how many non-zeros become 0.

  Returns:
    The tensor, itself if it has the dtype.

  Raises:
    UserError: a value is NaN or infinite, or too large for the dtype.
  """
  dtype = jnp.dtype(dtype)
  with np.errstate(over="ignore"):
    made = x.astype(dtype, copy=False)
  if not np.isfinite(made).all():
    finite = np.isfinite(x)
    if not finite.all():
      raise UserError(
        f"{where} has {x.size - finite.sum()} of {x.size} values that are NaN "
        "or infinite; the file is damaged, or training has diverged."
      )
    raise UserError(
      f"{where} has a value of {np.abs(x).max():g}, but the largest of {dtype} "
      f"is {float(jnp.finfo(dtype).max):g}; take bfloat16, or float32."
    )
  if lost is not None and made.dtype != x.dtype:
    lost[where] = np.count_nonzero(x) - np.count_nonzero(made)
  return made


def warn_of_zeros(lost: Mapping[str, int], dtype: jax.typing.DTypeLike) -> None:
  """Warns of non-zeros that become 0 in a dtype, which prunes them.

  Args:
    lost: how many, by the tensor's name, as `cast` counts them.
    dtype: the dtype.
  """
  if total := sum(lost.values()):
    most = max(lost, key=lambda name: lost[name])
    warnings.warn(
      f"{total} non-zeros are too small for {jnp.dtype(dtype)} and become 0, "
      f"{lost[most]} of them in {most}: the model gets sparser. float32 keeps "
      "them, and bfloat16 nearly all.",
      stacklevel=3,
    )


def check_params(config: Config, params: Any, *, where: Any) -> None:
  """Checks that parameters, packed or not, have the shapes of a config.

  Args:
    config: the model's.
    params: the parameters.
    where: the file, or what else they belong to, for errors.

  Raises:
    UserError: one is missing, has another shape, or is not expected.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")

  def shape(path: str, leaf: Any) -> Shape:
    turned = quantize.is_quantized(leaf) and path == EMBEDDING
    return leaf.shape[::-1] if turned else leaf.shape

  shapes = {path: shape(path, leaf) for path, leaf in leaves.items()}
  _compare(shapes, _shapes(config), where)


def kernel_names(config: Config, names: Mapping[str, str]) -> list[str]:
  """Lists the tensors that hold the layers' kernels.

  Args:
    config: the model's.
    names: the tensor's name by parameter path; {} stands for the layer.

  Returns:
    The names, layer by layer.
  """
  return [
    names[path].format(i)
    for stack in protocol.stacks(registry.network(config))
    for i in range(stack.count)
    for path in _shapes(config)
    if is_layer_kernel(path) and path.startswith(stack.path)
  ]


@functools.cache
def _shapes(config: Config) -> dict[str, Shape]:
  """Computes the shape of every parameter, by path."""
  init = functools.partial(protocol.init, registry.network(config))
  params = jax.eval_shape(init, jax.random.key(0))
  leaves = traverse_util.flatten_dict(params, sep="/")
  return {path: leaf.shape for path, leaf in leaves.items()}


def _compare(
  got: Mapping[str, Shape], wanted: Mapping[str, Shape], where: Any
) -> None:
  """Raises a UserError that lists how tensors differ from those wanted."""
  wrong = [
    f"{name}: got {tuple(got[name])}, wanted {tuple(wanted[name])}"
    for name in wanted
    if name in got and tuple(got[name]) != tuple(wanted[name])
  ]
  complaints = {
    "missing": [name for name in wanted if name not in got],
    "not expected": [name for name in got if name not in wanted],
    "of another shape": wrong,
  }
  if any(complaints.values()):
    raise UserError(
      f"{where}: the tensors are not those of the config. "
      + " ".join(
        f"{len(names)} {what}: {listed(names)}."
        for what, names in complaints.items()
        if names
      )
      + " Its parts may be of different models, or it is a model of another "
      "kind."
    )


def listed(names: Sequence[str]) -> str:
  """Joins the first names of a list, and says how many more there are."""
  more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more
