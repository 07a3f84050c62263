"""The families of language models, a row each."""

from collections.abc import Callable, Collection
from typing import Any

from experiments.errors import UserError
from experiments.llm.families import llama, mpt, t5, whisper
from experiments.llm.families.protocol import Config, Family, Network

_ROWS: tuple[Family, ...] = (llama, mpt, t5, whisper)

FAMILIES = {family.NAME: family for family in _ROWS}
DEFAULT = llama.NAME  # of models that are trained from scratch


def of(config: Config) -> Family:
  """Returns the family whose config this is."""
  return next(f for f in FAMILIES.values() if isinstance(config, f.Config))


def network(config: Config, **options: Any) -> Network:
  """Makes the Linen module of any family's config; see `Family.Network`."""
  return of(config).Network(config, **options)


def reader(
  kind: str, kinds: Callable[[Family], Collection[str]], *, where: str
) -> Family:
  """Finds the family that reads a kind of model.

  Args:
    kind: what the file calls its model.
    kinds: returns the kinds that a family reads.
    where: the file and its field, for errors.

  Returns:
    The family.

  Raises:
    UserError: none reads it.
  """
  for family in FAMILIES.values():
    if kind in kinds(family):
      return family
  known = [name for family in FAMILIES.values() for name in kinds(family)]
  raise UserError(f"{where}: wanted one of {', '.join(known)}, got {kind!r}.")
