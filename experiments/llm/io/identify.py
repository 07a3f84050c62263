"""Says what lies at a path that does not hold what a command wants."""

import pathlib
from typing import Any

import safetensors

from experiments.errors import UserError
from experiments.llm.io import files

FORMAT = "sparsejax-packed"
_GENERATES = "`python -m experiments.generate` and `experiments.export` take it"


def not_wanted(path: str | pathlib.Path, wanted: str) -> UserError:
  """Makes the error for a path with something else, and what to do with that.

  Args:
    path: the file or folder, which need not be there.
    wanted: what the command takes, such as "a packed language model".

  Returns:
    The error, to be raised.
  """
  return UserError(f"{path}: wanted {wanted}, got {_describe(path)}.")


def is_gguf(path: str | pathlib.Path) -> bool:
  """Returns whether there is a file that begins as GGUF files do."""
  path = pathlib.Path(path)
  if not path.is_file():
    return False
  with path.open("rb") as file:
    return file.read(4) == b"GGUF"


def is_function(path: str | pathlib.Path) -> bool:
  """Returns whether there is the file of an exported language model."""
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return _holds_function(file.metadata() or {})
  except (OSError, safetensors.SafetensorError):
    return False


def _holds_function(metadata: dict[str, str]) -> bool:
  about = metadata.get("about", "")
  return metadata.get("format") == FORMAT and about.startswith('{"function"')


def _describe(path: str | pathlib.Path) -> str:
  """Describes what lies at a path, and what takes it."""
  path = pathlib.Path(path)
  if not path.exists():
    return "nothing, as there is no such file or folder"
  if path.is_dir():
    return _describe_folder(path)
  if not path.stat().st_size:
    return "an empty file"
  if is_gguf(path):
    return f"a GGUF file of a language model; {_GENERATES}"
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return _describe_tensors(file.metadata() or {})
  except (OSError, safetensors.SafetensorError) as error:
    return f"a file that is neither safetensors ({error}) nor GGUF"


def _describe_tensors(metadata: dict[str, str]) -> str:
  """Describes a safetensors file by its metadata."""
  if _holds_function(metadata):
    return (
      "an exported language model; `python -m experiments.generate` runs it"
    )
  if metadata.get("format") == FORMAT:
    if '"tokenizer"' in metadata.get("about", ""):
      return f"a packed language model; {_GENERATES}"
    return "a packed image model; `python -m experiments.predict` runs it"
  if "about" in metadata:
    return (
      "the dense file of an image model; export its run with --format=packed"
    )
  return (
    "a safetensors file that is not packed; if it is of a language model, name "
    "the folder that it lies in"
  )


def _describe_folder(path: pathlib.Path) -> str:
  """Describes a folder by its config.json."""
  try:
    config: Any = files.read_json(path / "config.json")
  except UserError:
    return "a folder without a config.json that can be read"
  if "model_type" in config:
    return f"the folder of a language model; {_GENERATES}"
  if (path / "model" / "config.json").is_file():
    return f"the directory of a run; its language model is in {path / 'model'}"
  if "config" in config:
    return (
      "the directory of a run; if it is of an image model, "
      "`python -m experiments.export --workdir` takes it"
    )
  return "a folder whose config.json is not of a model"
