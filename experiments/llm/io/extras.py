"""What a model's files hold beside the model, handed through as it is.

Settings of generation and padding, special tokens, the licence, the model card:
the project uses few of them, but who runs a model needs them.
"""

import base64
import dataclasses
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

from experiments.errors import UserError
from experiments.llm.io import files

# Weights, in any framework's format. They are written anew, or were not read.
_WEIGHTS = (
  *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json"),
  *(".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"),
  *(".part", ".tmp"),
)
_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_TEMPLATES = "additional_chat_templates"  # the one folder that belongs
_NAMES = re.compile(rf"({_TEMPLATES}/)?[^./\\][^/\\]*")
# What readers of a folder look for: another model's must not stay there.
_READ_BY_OTHERS = (
  *(_GENERATION, "special_tokens_map.json", "added_tokens.json"),
  *("chat_template.jinja", "chat_template.json", "tokenizer.model"),
  *("vocab.json", "vocab.txt", "merges.txt"),
)


@dataclasses.dataclass(frozen=True)
class Extras:
  """What to write beside a model, as it was read.

  Attributes:
    config: the object of config.json; keys of GGUF files under its names.
    files: the contents of other files by name, tokenizer files among them.
    metadata: of the safetensors file.
  """

  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def stop_tokens(self) -> list[int]:
    """Lists the tokens by which config and generation config end an answer.

    Raises:
      UserError: they are no integers, or the file is damaged.
    """
    found = []
    objects = {_CONFIG: self.config}
    if _GENERATION in self.files:
      text = self.files[_GENERATION]
      objects[_GENERATION] = files.parsed_json(text, where=_GENERATION)
    for where, raw in objects.items():
      ids = raw.get("eos_token_id")
      ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
      if wrong := [i for i in ids if type(i) is not int or i < 0]:
        raise UserError(
          f"{where}: wanted eos_token_id to be a token's number, or a list of "
          f"them, got {wrong[0]!r} in it; mend it, or take it out."
        )
      found += ids
    return found


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
  """Reads the files of a model's folder that are neither weights nor config.

  Hidden files and folders are left out: they belong to repositories and hold
  the weights in other formats. `additional_chat_templates` is read.

  Args:
    folder: the model's.

  Returns:
    The contents by name.
  """
  paths = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(paths)
    if path.is_file()
    and not path.name.startswith(".")
    and not path.name.endswith(_WEIGHTS)
    and path.name != _CONFIG
  }


def write_files(folder: pathlib.Path, contents: Mapping[str, bytes]) -> None:
  """Writes files as they were read, in place of those of another model.

  Args:
    folder: where to; what readers of models look for there, and `contents` has
      not, is deleted.
    contents: by name.
  """
  for name in _READ_BY_OTHERS:
    if name not in contents:
      (folder / name).unlink(missing_ok=True)
  for path in (folder / _TEMPLATES).glob("*.jinja"):
    if path.relative_to(folder).as_posix() not in contents:
      path.unlink()
  for name, content in contents.items():
    with files.replacing(folder / name) as path:
      path.write_bytes(content)


def to_json(extras: Extras) -> dict[str, Any]:
  """Makes an object that JSON can hold, with the files compressed."""
  made = {
    name: base64.b64encode(zlib.compress(content)).decode()
    for name, content in extras.files.items()
  }
  return dataclasses.asdict(extras) | {"files": made}


def from_json(fields: Mapping[str, Any]) -> Extras:
  """Reads the object of `to_json`.

  Raises:
    KeyError, TypeError, ValueError: it is damaged.
  """
  try:
    made = {
      name: zlib.decompress(base64.b64decode(text))
      for name, text in fields["files"].items()
    }
  except zlib.error as error:
    raise ValueError(str(error)) from error
  # Others' files must not say where to write.
  if wrong := [name for name in made if not _NAMES.fullmatch(name)]:
    raise ValueError(f"{wrong[0]!r} is no name of a file in a model's folder")
  return Extras(fields["config"], made, fields["metadata"])
