"""Changes of a config from the command line: `--config.key=value`.

Every key that a config can have can be set, also one that its file leaves out;
`schema` says which these are. Another `name` brings the keywords of another
function: those that both have keep their values.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from experiments.config import schema, values
from experiments.config.schema import REQUIRED, Key, Section
from experiments.errors import UserError

Changes = tuple[tuple[str, str], ...]  # dotted keys and the text of values


class UnknownKey(UserError):
  """A config can have no such key."""


def apply(
  config: ml_collections.ConfigDict,
  changes: Changes,
  section: Section,
  *,
  refused: dict[str, UserError] | None = None,
) -> list[str]:
  """Changes a config in place.

  What follows from a changed value in the config file (`t_end` from `steps`, by
  a reference) follows it here as well.

  Args:
    config: The config.
    changes: The keys and the text of their values. Names are set before the
      keywords of what they name, in any order here.
    section: What the config can have.
    refused: Takes the errors of keys that the config cannot have, by key; they
      are raised if None.

  Returns:
    A sentence for each name that has brought or lost keywords.

  Raises:
    UserError: If there is no such key, a text is no value of its type, or what
      a new name needs is not told.
  """
  notes: dict[str, str] = {}
  changer = _Changer(config, section, notes)
  for path, text in sorted(changes, key=lambda one: _order(section, one[0])):
    try:
      changer.change(path, text)
    except UnknownKey as error:
      if refused is None:
        raise
      refused[path] = error
  for path in notes:
    changer.check_complete(path)
  return list(notes.values())


def _order(section: Section, path: str) -> tuple[int, int]:
  """Sorts numbers of a run first, then names, then what they name."""
  keys = path.split(".")
  found, named = section, False
  for key in keys[:-1]:
    found = (found or Section()).within(key)
    named = named or bool(found and found.kind)
  found = found or Section()
  if found.within(keys[-1]) or (found.kind and keys[-1] == "name"):
    return 1, len(keys)
  return (2 if named else 0), len(keys)


class _Changer:
  """A config that is being changed."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    section: Section,
    notes: dict[str, str],
  ):
    self.config, self.section, self.notes = config, section, notes

  def change(self, path: str, text: str) -> None:
    """Sets the value of a dotted key, or what a name stands for."""
    for rule, other in self.section.instead.items():
      given = self.config.get(other.partition(".")[0])
      if given and re.fullmatch(rule, path):
        raise UserError(
          f"config.{path} would change nothing: config.{other} decides"
        )
    if path == "driver" and text != self.config.driver:
      raise UserError("config.driver is that of the config file; give another")
    if "[" in path:
      raise UserError(
        f"--config.{path}={text}: an item of a list cannot be set alone; set "
        f"the whole list, --config.{path.partition('[')[0]}"
      )
    parent, _, key = path.rpartition(".")
    holder, section = self._find(parent, path)
    known = _keys(section, holder)
    inside = section.within(key, known)
    if key == "name" and section.kind:
      self._rename(parent, holder, section, text)
    elif inside and inside.kind:
      self._set_section(path, holder, key, inside, text)
    elif key in holder or key in known or inside:
      value = self._value(path, holder, key, known.get(key), text)
      if key == "sparsity" and value != holder.get(key):
        self._check_called(path, f"{100 * (holder.get(key) or 0):g} %", text)
      _set(holder, key, value)
    elif section.takes_any(holder.get("name")):
      _set(holder, key, values.parse(path, text, Any))
    else:
      raise self._unknown(path, section)

  def _check_called(self, path: str, old: str, new: str) -> None:
    """Refuses that what a table calls by a value has another."""
    section = self.section
    for key in path.split("."):
      if key not in section.inner and "*" in section.inner and old in key:
        raise UserError(
          f"config.{path} cannot be {new}: {key!r} is the name of a row, which "
          f"says {old}. Add another to config.{path.partition('.')[0]}"
        )
      section = section.within(key) or Section()

  def _find(self, parent: str, path: str) -> tuple[Any, Section]:
    """Returns the mapping at a path, and what it can have."""
    holder, section, at = self.config, self.section, ""
    for key in filter(None, parent.split(".")):
      at, inside = f"{at}.{key}".strip("."), section.within(key)
      if not hasattr(holder.get(key), "items"):
        can = key in holder or key in _keys(section, holder)
        if inside is None or not (can or "*" in section.inner):
          raise self._unknown(path, section)
        if inside.kind and path not in (at, f"{at}.name"):
          raise UnknownKey(
            f"config.{at} is {holder.get(key)!r}, so {path} has no meaning; "
            f"set --config.{at}.name as well, to one of: "
            + ", ".join(inside.names())
          )
        _set(holder, key, ml_collections.ConfigDict())
      holder, section = holder[key], inside or Section()
    return holder, section

  def _value(
    self,
    path: str,
    holder: Mapping[str, Any],
    key: str,
    known: Key | None,
    text: str,
  ) -> Any:
    value = holder.get(key)
    if known is not None and known.hint not in (Any, tuple):
      return values.parse(path, text, known.hint)
    if value is None and isinstance(holder, ml_collections.ConfigDict):
      hint = holder.get_type(key) if key in holder else Any
      return values.parse(path, text, Any if hint is type(None) else hint)
    hint = dict if hasattr(value, "items") else values.of_value(value)
    return values.parse(path, text, hint)

  def _set_section(
    self, path: str, holder: Any, key: str, section: Section, text: str
  ) -> None:
    """Puts a whole mapping in a section's place, or another name."""
    value = values.parse(path, text, Any)
    if isinstance(value, Mapping):
      _set(holder, key, ml_collections.ConfigDict(value))
      if "name" not in value:
        raise UserError(f"config.{path} is {text}; it lacks a name")
    elif section.words and value not in section.names():
      _set(holder, key, tuple(value) if isinstance(value, list) else value)
    else:
      self.change(f"{path}.name", text)

  def _rename(self, path: str, part: Any, section: Section, name: str) -> None:
    """Sets a name; drops and adds keywords."""
    old = part.get("name")
    if name == old:
      return
    known = section.keys(name)  # refuses what there is not
    if old:
      self._check_called(path, old, name)
    options = [key for key in part if key != "name"]
    kept = [k for k in options if k in known or section.takes_any(name)]
    lost = [key for key in options if key not in kept]
    for key in lost:
      with part.unlocked():
        del part[key]
    _set(part, "name", name)
    new = {}
    if section.fill:
      old_values = {key: part[key] for key in kept}
      new = section.fill(name, self._steps(path), old_values)
    for key, value in new.items():
      _set(part, key, value)
    title = self.config.get("name", "")
    if section.kind == "algorithm" and old and title.startswith(f"{old}_"):
      self.config.name = name + title[len(old) :]
    kept = [key for key in kept if key not in new]
    self.notes[path] = _note(path, part.to_dict(), old, kept, lost, new)

  def _steps(self, path: str) -> int:
    """Finds how many steps the runs have that a part belongs to."""
    found = self.config.get("base", self.config).get("steps", 0)
    holder = self.config
    for key in path.split("."):
      found = holder.get("steps", found)
      holder = holder[key]
    return found

  def check_complete(self, path: str) -> None:
    """Raises a UserError if a named function lacks a keyword that it needs."""
    part, section = self._find(path, path)
    lacks = {
      key: one
      for key, one in section.keys(part.name).items()
      if one.default is REQUIRED and key not in part
    }
    if lacks:
      told = "; ".join(
        f"--config.{path}.{key}=... {one.meaning}" for key, one in lacks.items()
      )
      raise UserError(
        f"{section.kind} {part.name} needs what the config cannot know: {told}"
      )

  def _unknown(self, path: str, section: Section) -> UserError:
    """Makes the error for a key that there is not, with what is near."""
    known = [one for one, *_ in schema.paths(self.config, self.section)]
    error = UnknownKey(str(schema.near(path, known)))
    parent, _, key = path.rpartition(".")
    others = [name for name in section.table if key in section.keys(name)]
    if others:
      error.args = (
        f"{error}; with another --config.{parent}.name there is: "
        + ", ".join(sorted(others)),
      )
    return error


def _keys(section: Section, holder: Mapping[str, Any]) -> dict[str, Key]:
  """Lists the keys that a mapping can have."""
  if section.kind and "name" not in holder:
    return {}
  return section.keys(holder.get("name"))


def _set(holder: Any, key: str, value: Any) -> None:
  """Sets a value; one that others refer to changes for them too."""
  with holder.unlocked(), holder.ignore_type():
    holder[key] = value


def _note(
  path: str,
  part: Mapping[str, Any],
  old: str | None,
  kept: Iterable[str],
  lost: Iterable[str],
  new: Iterable[str],
) -> str:
  """Says what has become of a part's keywords."""

  def told(keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={part[key]!r}" for key in keys)

  parts = [f"config.{path} is {part['name']}"]
  if old:
    parts[0] += f" in place of {old}"
  for words, text in (
    ("keeps", told(kept)),
    ("loses", ", ".join(lost)),
    ("gets", told(new)),
  ):
    if text:
      parts.append(f"{words} {text}")
  return "; ".join(parts)
