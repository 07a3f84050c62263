"""Language models in packed files: the non-zeros, the config, the tokenizer.

The layout is that of packed_files.py; `about` holds the fields of the config,
under the name of its family, and `tokenizer`, its text and special tokens.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.llm.families import registry
from experiments.llm.families.protocol import (
  EMBEDDING,
  HEAD,
  Config,
  is_layer_kernel,
)
from experiments.llm.io import (
  extras,
  identify,
  packed_files,
  tensors,
  tokenizer,
)
from experiments.llm.io.model import Model, check_vocabulary
from sparsejax import packed, quantize
from sparsejax.masks import path_name

_INT8 = "int8"
_FLOATS = ("float32", "bfloat16")
DTYPES = (*_FLOATS, _INT8)  # what the kernels multiply
ACTIVATIONS = ("float", _INT8)
# Above this density rows take more memory than bit masks, and more time.
_MOST_BY_ROWS = 0.06
_MOST_PACKED = 0.7  # above it long prompts would be slower than dense ones


def pack(
  model: Model,
  *,
  dtype: str = "float32",
  group: int | None = None,
  activations: str = "float",
  head: str | None = None,
) -> Model:
  """Packs the layers' kernels, of which only the non-zeros are kept.

  Args:
    model: A model with zeros in place.
    dtype: Of all weights; or "int8", of all kernels and the embedding, with all
      else in float32. Kernels that have been rounded before keep their scales.
    group: Of INT8, how many neighbouring inputs share a scale; all by default.
    activations: Of INT8, what these kernels multiply: "float", or "int8", each
      token rounded by its largest activation, so that integers are added up.
    head: Of floats, the dtype of embedding and head, which are not pruned and
      of a sparse model most of what a token reads; that of the rest if None.

  Returns:
    The model with `packed.Packed` kernels for the CPU's kernels: as rows up to
    a density of 0.06, as bit masks up to 0.7; denser ones stay arrays. Of INT8
    all packed ones are bit masks, and denser ones are `quantize.Quantized`, as
    are head and embedding.

  Raises:
    UserError: If activations are to be integers and weights are not, or a head
      floats and weights are integers.
  """
  if activations == _INT8 and dtype != _INT8:
    raise UserError(
      f"got activations of int8 for weights of {dtype}, wanted dtype=int8, too"
    )
  if head is not None and (dtype == _INT8 or head not in _FLOATS):
    raise UserError(
      f"got a head of {head} for weights of {dtype}, wanted "
      f"{' or '.join(_FLOATS)} for weights of floats; that of int8 is int8, too"
    )

  def mask_of(path: tuple[Any, ...], x: Any) -> Any:
    mask = np.asarray(x) != 0
    packs = is_layer_kernel(path_name(path)) and mask.mean() <= _MOST_PACKED
    return mask if packs else True

  def dtype_of(name: str) -> str:
    if head is not None and name in (EMBEDDING, HEAD):
      return head
    return "float32" if dtype == _INT8 else dtype

  masks = jax.tree_util.tree_map_with_path(mask_of, model.params)
  lost = {}
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(
      tensors.cast(
        np.asarray(x),
        dtype_of(path_name(path)),
        path_name(path),
        lost,
      )
    ),
    model.params,
  )
  tensors.warn_of_zeros(lost, dtype)
  if dtype != _INT8:
    return model._replace(params=packed.pack(params, masks, formats=_format))
  dynamic = activations == _INT8
  return model._replace(params=_int8(params, masks, group, dynamic))


def _int8(params: Any, masks: Any, group: int | None, dynamic: bool) -> Any:
  """Packs params of float32, and rounds all that is multiplied to INT8."""
  form = packed.stacked(packed.row_bits())
  params = packed.pack(params, masks, formats=form)

  def rounded(path: tuple[Any, ...], x: Any) -> Any:
    name = path_name(path)

    def scales(w: jax.Array) -> jax.Array:
      try:
        return quantize.exact_scales(w, group=group)
      except ValueError as error:
        raise UserError(f"{name}: {error}") from error

    if packed.is_packed(x):
      return packed.quantize(x, scales=scales, dynamic=dynamic)
    if is_layer_kernel(name) or name == HEAD:
      return quantize.matrix(x, scales=scales(x), dynamic=dynamic)
    if name == EMBEDDING:
      return quantize.matrix(x.T, scales=scales(x.T), dynamic=dynamic)
    return x

  return jax.tree_util.tree_map_with_path(
    rounded, params, is_leaf=packed.is_packed
  )


def _format(name: str, mask: np.ndarray) -> packed.Format:
  """Chooses the format of a kernel's mask [layers, in, out]."""
  del name
  # 2:4 as well: its codes are as large as a mask's bits, and have no kernel.
  choices = [packed.row_bits()]
  if mask.mean() <= _MOST_BY_ROWS:
    choices.insert(0, packed.rows(kernel=True))
  return packed.fitting(mask, wanted=tuple(map(packed.stacked, choices)))


def unpack(model: Model) -> Model:
  """Unpacks a model's kernels into arrays with zeros in place.

  Args:
    model: A model, packed or not.

  Returns:
    The model with NumPy arrays.
  """

  def dense(path: tuple[Any, ...], x: Any) -> np.ndarray:
    if packed.is_packed(x):
      return np.asarray(x.unpack())
    if not quantize.is_quantized(x):
      return np.asarray(x)
    w = np.asarray(x.dequantize())
    return w.T if path_name(path) == EMBEDDING else w

  params = jax.tree_util.tree_map_with_path(
    dense,
    model.params,
    is_leaf=lambda x: packed.is_packed(x) or quantize.is_quantized(x),
  )
  return model._replace(params=params)


def write_model(path: str | pathlib.Path, model: Model) -> None:
  """Writes a packed model to one file.

  Args:
    path: The file.
    model: The model.
  """
  packed_files.write_tree(path, model.params, about(model))


def about(model: Any) -> dict[str, Any]:
  """Describes a model for a file: config, tokenizer, and files beside it.

  Args:
    model: Of these attributes and a `family`.

  Returns:
    What JSON can hold, and `described` reads.
  """
  words = model.tokenizer
  return {
    model.family.NAME: dataclasses.asdict(model.config),
    "tokenizer": {
      "text": words.backend.to_str(),
      "eos": words.eos,
      "bos": words.bos,
      "chat_template": words.chat_template,
      "pad": words.pad,
    },
    "extras": extras.to_json(model.extras),
  }


def read_model(path: str | pathlib.Path) -> Model:
  """Reads a model that `write_model` wrote.

  Args:
    path: The file.

  Returns:
    The model, with packed kernels.

  Raises:
    UserError: If the file is missing, damaged, or of another kind.
  """
  params, about = packed_files.read_tree(path)
  config, words, beside = described(about, path)
  model = Model(config, params, words, beside)
  check_vocabulary(model)
  tensors.check_params(config, params, where=path)
  return model


def described(
  about: dict[str, Any], path: str | pathlib.Path
) -> tuple[Config, tokenizer.Tokenizer, extras.Extras]:
  """Reads what `about` has made.

  Args:
    about: The description.
    path: The file, for errors.

  Returns:
    The config, the tokenizer, and what lies beside the model.

  Raises:
    UserError: If it is damaged, or of no language model.
  """
  families = [f for f in registry.FAMILIES.values() if f.NAME in about]
  if not families:
    raise identify.not_wanted(path, "a packed language model")
  (family,) = families
  try:
    # JSON has no tuples; a config, which is hashed, has no lists.
    fields = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in about[family.NAME].items()
    }
    config = family.Config(**fields)
    fields = dict(about["tokenizer"])
    words = tokenizer.Tokenizer(tokenizer.backend(fields.pop("text")), **fields)
    # Files of earlier versions have none.
    beside = extras.from_json(about["extras"]) if "extras" in about else None
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  return config, words, beside or extras.Extras()
