"""What the readers of all families' files have in common."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UserError


def sizes(
  raw: Mapping[str, Any],
  keys: Mapping[str, str],
  *,
  also: Iterable[str] = (),
  path: Any,
) -> dict[str, Any]:
  """Reads the fields of a config that have names of their own in a file.

  Args:
    raw: the object in config.json.
    keys: their names by ours.
    also: names that have to be in the file, too.
    path: the file, for errors.

  Returns:
    The values by our names.

  Raises:
    UserError: one is missing.
  """
  wanted = (*keys.values(), *also)
  if missing := [name for name in wanted if raw.get(name) is None]:
    raise UserError(f"{path}: there is no {', '.join(missing)} in it.")
  return {ours: raw[theirs] for ours, theirs in keys.items()}


def check(name: str, got: Any, wanted: Collection[Any], *, path: Any) -> None:
  """Raises a UserError unless a file's value is one that a network computes."""
  if got not in wanted:
    raise UserError(
      f"{path}: {name} is {got!r}; only models where it is "
      f"{' or '.join(map(repr, wanted))} are read."
    )


class GgufHeader(NamedTuple):
  """What a GGUF file says of its model.

  Attributes:
    fields: the metadata; indexing one that is missing raises a UserError.
    names: of the file's tensors.
    load: returns the values of a tensor, float32.
    path: the file, for errors.
  """

  fields: Mapping[str, Any]
  names: Collection[str]
  load: Callable[[str], np.ndarray]
  path: Any

  @property
  def architecture(self) -> str:
    """What the file calls the model's architecture."""
    return self.fields["general.architecture"]

  def field(self, name: str) -> Any:
    """Returns the architecture's field, or raises a UserError."""
    return self.fields[f"{self.architecture}.{name}"]

  def get(self, name: str, default: Any = None) -> Any:
    """Returns the architecture's field, or the default if there is none."""
    return self.fields.get(f"{self.architecture}.{name}", default)

  @property
  def vocab_size(self) -> int:
    """The number of tokens."""
    tokens = self.fields["tokenizer.ggml.tokens"]
    return self.get("vocab_size", len(tokens))

  def check(self, name: str, default: Any, wanted: Any) -> None:
    """Raises a UserError unless a field is what a family's network computes."""
    got, name = self.get(name, default), f"{self.architecture}.{name}"
    check(name, got, [wanted], path=self.path)


def shortest(x: float) -> float:
  """Returns 1e-5 for the float32 nearest to it, which is what files have."""
  return float(str(np.float32(x)))
