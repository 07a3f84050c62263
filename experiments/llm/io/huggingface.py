"""Reads and writes models in the folders of Hugging Face's transformers.

The files: config.json, model.safetensors (or several, with an index), and the
tokenizer's; see tokenizer.py.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from experiments.errors import UserError, check_known
from experiments.llm.families import registry
from experiments.llm.io import extras, files, identify, tensors, tokenizer
from experiments.llm.io.extras import Extras
from experiments.llm.io.model import Model, check_vocabulary
from experiments.llm.io.tensors import DTYPES

_IN_FILES = ("F32", "F16", "BF16")
# Keys of config.json that say how the tensors are stored, so not ours to keep.
_STORAGE = ("quantization_config", "compression_config", "sparsity_config")


def read_model(
  path: str | pathlib.Path, *, dtype: jax.typing.DTypeLike = "float32"
) -> Model:
  """Reads a model of any family.

  Args:
    path: the model's folder, downloaded whole.
    dtype: of the parameters; files hold float32, float16 or bfloat16.

  Returns:
    The model, in host memory.

  Raises:
    UserError: a file is missing or damaged, the config asks for what its
      family does not compute, or the tensors are not those of the config.
  """
  folder = pathlib.Path(path)
  path = folder / "config.json"
  if not path.is_file():
    raise identify.not_wanted(folder, "the folder of a language model")
  raw = files.read_json(path)
  if "model_type" not in raw:
    raise identify.not_wanted(folder, "the folder of a language model")
  family = registry.reader(
    raw.get("model_type"),
    lambda family: family.huggingface.MODEL_TYPES,
    where=f"{path}, model_type",
  )
  _check_storage(raw, path)
  config = family.huggingface.read_config(raw, path=path)
  metadata = {}
  with contextlib.ExitStack() as stack:
    lazy = _open(folder, family.huggingface.IGNORED, stack, metadata)
    for name, original in family.huggingface.duplicates(config).items():
      if name not in lazy:
        continue
      if not np.array_equal(lazy.pop(name)[:], lazy[original][:]):
        raise UserError(
          f"{folder}: config.json ties {name} to {original}, but they "
          "differ; set tie_word_embeddings to what the model was trained with."
        )
    params = tensors.params_from_tensors(
      config,
      family.huggingface.TENSORS,
      shapes={name: tuple(x.get_shape()) for name, x in lazy.items()},
      load=lambda name: lazy[name][:],
      where=folder,
      dtype=dtype,
    )
  model = Model(
    config,
    params,
    tokenizer.read_tokenizer(folder),
    Extras(raw, extras.read_files(folder), metadata),
  )
  check_vocabulary(model)
  model.extras.stop_tokens()  # which raises where they are damaged
  return model


def write_model(
  folder: str | pathlib.Path, model: Model, *, dtype: str = "float32"
) -> None:
  """Writes a model for `read_model` and for transformers.

  float32 keeps all bits. Zeros stay zeros in every dtype; in float16 the
  smallest weights become zeros, of which a warning tells how many. What was
  read beside a model is written as it was: see extras.py.

  Args:
    folder: of the files; made if need be. Each file is replaced when the new
      one is complete.
    model: the model.
    dtype: of the tensors: float32, float16 or bfloat16.

  Raises:
    UserError: the dtype is unknown or too small for a value, a value is not
      finite, no model type has this config, or the parameters or the tokenizer
      do not belong to it.
  """
  write_folder(folder, *tensors_and_config(model, dtype), model)


def tensors_and_config(
  model: Model, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Makes the contents of a model's files.

  Args:
    model: the model.
    dtype: of the tensors: float32, float16 or bfloat16.

  Returns:
    The tensors by name, and the object for config.json.

  Raises:
    UserError: as `write_model` does.
  """
  check_known("dtype of tensors", dtype, DTYPES)
  check_vocabulary(model)
  layout = model.family.huggingface
  config = {
    "eos_token_id": model.tokenizer.eos,
    "bos_token_id": model.tokenizer.bos,
    **_config_json(model),
    "dtype": dtype,
    "torch_dtype": dtype,
  }
  made = tensors.tensors_from_params(
    model.config, layout.TENSORS, model.params, dtype=jnp.dtype(dtype)
  )
  return made, config


def _config_json(model: Model) -> dict[str, Any]:
  """Makes config.json: as it was read, where that still describes the model.

  Otherwise with our keys over it, or ours alone where others contradict them.
  """
  raw = {k: v for k, v in model.extras.config.items() if k not in _STORAGE}
  layout = model.family.huggingface
  ours = layout.config_json(model.config)
  over = {**raw, **ours}
  for made in (raw, over) if "model_type" in raw else (over,):
    if layout.read_config(made, path="config.json") == model.config:
      return made
  return ours


def write_folder(
  folder: str | pathlib.Path,
  by_name: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  model: Model,
) -> None:
  """Writes the files of a model, each replaced when the new one is complete.

  Args:
    folder: of the files; made if need be.
    by_name: the tensors.
    config: the object for config.json.
    model: whose tokenizer and extras to write.
  """
  folder = pathlib.Path(folder)
  # transformers asks for this metadata, whatever wrote the file.
  metadata = {**model.extras.metadata, "format": "pt"}
  with files.replacing(folder / "model.safetensors") as path:
    safetensors.numpy.save_file(dict(by_name), path, metadata=metadata)
  made = tokenizer.to_files(model.tokenizer)
  extras.write_files(folder, {**made, **model.extras.files})
  with files.replacing(folder / "config.json") as path:
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _check_storage(raw: Mapping[str, Any], path: pathlib.Path) -> None:
  """Refuses a config by which tensors are not stored as plain floats."""
  for key in _STORAGE:
    said = raw.get(key)
    if said and not _is_dense(said):
      raise UserError(
        f"{path}: {key} is {said!r}; only models whose tensors are plain "
        f"{', '.join(DTYPES)} are read. Load it where it was made, and "
        "save it dense in bfloat16."
      )


def _is_dense(storage: Any) -> bool:
  """Whether compressed-tensors says so: weights that are sparse, but plain."""
  if not isinstance(storage, Mapping) or storage.get("config_groups"):
    return False
  return storage.get("sparsity_config", storage).get("format") == "dense"


def _open(
  folder: pathlib.Path,
  ignored: tuple[str, ...],
  stack: contextlib.ExitStack,
  metadata: dict[str, str],
) -> dict[str, Any]:
  """Opens a folder's tensors, to be read by slicing while the stack is open.

  Adds what the files say of themselves to `metadata`.
  """
  names = ["model.safetensors"]
  index = folder / "model.safetensors.index.json"
  if not (folder / names[0]).is_file() and index.is_file():
    names = sorted(set(files.read_json(index).get("weight_map", {}).values()))
  lazy = {}
  for path in (folder / name for name in names):
    if not path.is_file():
      raise UserError(f"{path}: there is no such file; download it again.")
    try:
      file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except safetensors.SafetensorError as error:
      raise UserError(
        f"{path}: not a sound safetensors file ({error}); download it again."
      ) from error
    metadata |= file.metadata() or {}
    for name in file.keys():  # noqa: SIM118, as it is no mapping.
      if name.endswith(ignored):
        continue
      lazy[name] = file.get_slice(name)
      kind = lazy[name].get_dtype()
      if kind not in _IN_FILES:
        raise UserError(
          f"{path}: tensor {name} is {kind}, wanted one of "
          f"{', '.join(_IN_FILES)}; quantized models are not read from here: "
          "save it in bfloat16 where it was made, and take that."
        )
  return lazy
