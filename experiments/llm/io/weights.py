"""A model as files hold it, and its parameters from their single tensors.

Files hold one tensor a layer, matrices [out, in]; parameters here are stacked
over the layers, kernels [in, out].
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io.tokenizer import Tokenizer

_SHOWN = 5

Shape = tuple[int, ...]


class Model(NamedTuple):
  """A language model.

  Attributes:
    config: what the model is.
    params: of `llama.Llama(config)`; read from a file they are NumPy arrays,
      to be put on devices once, with `jax.device_put`.
    tokenizer: its tokenizer.
  """

  config: llama.Config
  params: Any
  tokenizer: Tokenizer


def check(model: Model) -> None:
  """Checks that a model knows all tokens of its tokenizer.

  Args:
    model: the model.

  Raises:
    UserError: the tokenizer has more tokens.
  """
  got, limit = model.tokenizer.vocab_size, model.config.vocab_size
  if got > limit:
    raise UserError(
      f"the tokenizer has {got} tokens, wanted at most {limit}, as many as the "
      "model has; they are not of one model."
    )


def from_tensors(
  config: llama.Config,
  names: Mapping[str, str],
  *,
  shapes: Mapping[str, Shape],
  load: Callable[[str], np.ndarray],
  where: Any,
  dtype: jax.typing.DTypeLike = np.float32,
) -> dict[str, Any]:
  """Makes the parameters from a file's tensors, one of which is held at a time.

  Args:
    config: the model's.
    names: the tensor of each parameter; {} stands for the layer.
    shapes: of the tensors that the file has.
    load: gives the tensor of a name.
    where: the file, for the error.
    dtype: of the parameters.

  Returns:
    The parameters, as NumPy arrays.

  Raises:
    UserError: a tensor is missing or has another shape, or there are more.
  """
  leaves = _leaves(config)
  wanted = {}
  for path, shape in leaves.items():
    count, shape = (shape[0], shape[1:]) if _is_stacked(path) else (1, shape)
    for i in range(count):
      name = names[path].format(i)
      wanted[name] = shape[::-1] if _is_kernel(path) else shape
  _compare(shapes, wanted, where)
  params = {}
  for path, shape in leaves.items():
    params[path] = np.empty(shape, dtype)
    stacked = params[path] if _is_stacked(path) else params[path][None]
    for i, x in enumerate(stacked):
      tensor = load(names[path].format(i))
      x[...] = tensor.T if _is_kernel(path) else tensor
  return traverse_util.unflatten_dict(params, sep="/")


def to_tensors(
  config: llama.Config,
  names: Mapping[str, str],
  params: Any,
  *,
  dtype: jax.typing.DTypeLike,
) -> dict[str, np.ndarray]:
  """Makes a file's tensors from the parameters, contiguous ones.

  Args:
    config: the model's.
    names: the tensor of each parameter; {} stands for the layer.
    params: the parameters.
    dtype: of the tensors.

  Returns:
    The tensors by name.

  Raises:
    UserError: the parameters are not those of the config.
  """
  check_params(config, params, where="parameters")
  leaves = traverse_util.flatten_dict(params, sep="/")
  tensors = {}
  for path, leaf in leaves.items():
    stacked = np.asarray(leaf) if _is_stacked(path) else np.asarray(leaf)[None]
    for i, x in enumerate(stacked):
      tensors[names[path].format(i)] = np.ascontiguousarray(
        x.T if _is_kernel(path) else x, dtype
      )
  return tensors


def check_params(config: llama.Config, params: Any, *, where: Any) -> None:
  """Checks that parameters, packed or not, are those of a config.

  Args:
    config: the model's.
    params: the parameters.
    where: what they are of, for the error.

  Raises:
    UserError: one is missing or has another shape, or there are more.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  _compare(shapes, _leaves(config), where)


@functools.cache
def _leaves(config: llama.Config) -> dict[str, Shape]:
  """The shape of every parameter of the model."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  made = jax.eval_shape(llama.Llama(config).init, jax.random.key(0), tokens)
  leaves = traverse_util.flatten_dict(made["params"], sep="/")
  return {path: leaf.shape for path, leaf in leaves.items()}


def _is_kernel(path: str) -> bool:
  return path.endswith("/kernel")


def _is_stacked(path: str) -> bool:
  return path.startswith("layers/")


def _compare(
  got: Mapping[str, Shape], wanted: Mapping[str, Shape], where: Any
) -> None:
  wrong = [
    f"{name}: got {tuple(got[name])}, wanted {tuple(wanted[name])}"
    for name in wanted
    if name in got and tuple(got[name]) != tuple(wanted[name])
  ]
  complaints = [
    _some("missing", [name for name in wanted if name not in got]),
    _some("not expected", [name for name in got if name not in wanted]),
    _some("of another shape", wrong),
  ]
  if any(complaints):
    raise UserError(
      f"{where}: the tensors are not those of the config. "
      + " ".join(filter(None, complaints))
      + " Its parts may be of different models, or it is a model of another "
      "kind."
    )


def _some(what: str, names: Collection[str]) -> str:
  if not names:
    return ""
  shown = ", ".join(list(names)[:_SHOWN])
  more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return f"{len(names)} {what}: {shown}{more}."
