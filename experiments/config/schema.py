"""The keys that a config can have, from the functions that its parts name.

A config file sets some keys; every keyword of the functions that it names can
be set besides. What they are called, their types, defaults and meanings follow
from signatures and docstrings, so that nothing is listed twice.
"""

import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import ml_collections

from experiments import names
from experiments.errors import unknown

REQUIRED = inspect.Parameter.empty  # the default of what has none
_SECTION = re.compile(r"^(Args|Attributes|Keys):\n((?:[ \n].*\n?|\n)+)", re.M)
_ENTRY = re.compile(
  r"^( {2,4})(\w+(?:, \w+)*)(?: \(.*?\))?: (.+(?:\n\1 .+)*)", re.M
)


class Key(NamedTuple):
  """A key that a config can have.

  Attributes:
    default: Its value where a config does not set it, or REQUIRED.
    hint: The type of its values; `Any` if nothing says.
    meaning: What it is, in a sentence; "" if nothing says.
    needs: The keyword without which a function has no such key.
  """

  default: Any = REQUIRED
  hint: Any = Any
  meaning: str = ""
  needs: str = ""


class Section(NamedTuple):
  """A mapping in a config: which keys it can have.

  Attributes:
    kind: What its `name` is the name of, such as "optimizer"; "" if it has no
      `name`.
    table: The functions that `name` may stand for; their keywords are keys.
    plain: Further names, of which there are no keywords.
    after: How many arguments of the functions are given by position.
    in_code: Keywords of them that a config cannot set.
    more: Further keys.
    inner: Sections inside, by their key; "*" stands for any.
    lookup: `(name) -> function`, if that is not `names.find` in the table.
    fill: `(name, steps, keywords) -> keywords` that a function gets when its
      name is set in place of another, from those it keeps; None for none.
    words: Whether a string or a list may stand in its place.
    instead: Of a whole config: what decides in place of keys that every run
      gets anew, by a regular expression for their paths.
  """

  kind: str = ""
  table: Mapping[str, Callable[..., Any]] = {}
  plain: Set[str] = frozenset()
  after: int = 0
  in_code: Set[str] = frozenset()
  more: Mapping[str, Key] = {}
  inner: Mapping[str, "Section"] = {}
  lookup: Callable[[str], Callable[..., Any]] | None = None
  fill: Callable[..., dict[str, Any]] | None = None
  words: bool = False
  instead: Mapping[str, str] = {}

  def within(
    self, key: str, known: Mapping[str, Key] | None = None
  ) -> "Section | None":
    """Returns the section under a key, or None if there is none.

    Args:
      key: The key.
      known: What is known of the keys; one that is a number has no section.
    """
    if known and key in known and known[key].hint in (bool, int, float):
      return None
    return self.inner.get(key, self.inner.get("*"))

  def names(self) -> list[str]:
    """Lists what its `name` may be."""
    return sorted({*self.table, *self.plain})

  def keys(self, name: str | None = None) -> dict[str, Key]:
    """Lists its keys, but `name`.

    Args:
      name: Its name, if it has one.

    Raises:
      UserError: If there is no function of that name.
    """
    found = {}
    if self.kind and name in self.plain:
      return found
    if self.kind:
      function = self._function(name)
      hidden = {*self.in_code, *getattr(function, "keywords", {})}
      for key, one in keywords(function, self.after).items():
        if key not in hidden:
          found[key] = one if one.meaning else self._told_elsewhere(key, one)
    return found | {
      key: one
      for key, one in self.more.items()
      if not one.needs or one.needs in found
    }

  def takes_any(self, name: str | None) -> bool:
    """Returns whether a function takes keywords that nothing lists."""
    if not self.kind or name is None or name in self.plain:
      return False
    return names.keywords(self._function(name))[1]

  def _function(self, name: str) -> Callable[..., Any]:
    if self.lookup:
      return self.lookup(name)
    return names.find(self.kind, name, self.table)

  def _told_elsewhere(self, key: str, one: Key) -> Key:
    """Takes the meaning of a key from another function of the table."""
    for function in self.table.values():
      other = keywords(function, self.after).get(key, one)
      if other.meaning:
        return one._replace(meaning=other.meaning)
    return one


@functools.cache
def keywords(function: Callable[..., Any], after: int = 0) -> dict[str, Key]:
  """Lists the keywords of a function or class, with types and meanings.

  Args:
    function: The function.
    after: How many of its arguments are given by position.
  """
  inner = function
  while isinstance(inner, functools.partial):
    inner = inner.func
  try:
    hints = typing.get_type_hints(inner)
  except (NameError, TypeError):  # of what is imported for type checkers only
    hints = {}
  told = meanings(inner)
  return {
    p.name: Key(
      p.default,
      hints.get(p.name, Any if p.annotation is p.empty else p.annotation),
      told.get(p.name, ""),
    )
    for p in names.parameters(function, after)
  }


def meanings(documented: Any) -> dict[str, str]:
  """Reads from a docstring what arguments, attributes or keys mean.

  Args:
    documented: A function, a class, or a docstring.

  Returns:
    A sentence by name: of its section Args, Attributes or Keys.
  """
  text = documented
  if not isinstance(documented, str):
    text = documented.__doc__ or ""
  found = {}
  for section in _SECTION.finditer(inspect.cleandoc(text) + "\n"):
    for entry in _ENTRY.finditer(section[2]):
      sentence = re.split(r"\. |; ", " ".join(entry[3].split()))[0]
      for name in entry[2].split(", "):
        found[name] = sentence.rstrip(".") + "."
  return found


def of_defaults(
  make: Callable[[], ml_collections.ConfigDict],
) -> dict[str, Key]:
  """Lists the keys of a driver's defaults.

  Args:
    make: Makes them; its docstring has a section Keys.
  """
  told = meanings(make)
  return {
    key: Key(
      value, dict if hasattr(value, "items") else type(value), told.get(key, "")
    )
    for key, value in make().items()
  }


def paths(
  config: Mapping[str, Any], section: Section | None, prefix: str = ""
) -> Iterator[tuple[str, Key, Any, bool]]:
  """Lists every key that a config has or can have.

  Args:
    config: The config, or a mapping in it.
    section: What can be in it; None if nothing says.
    prefix: Its own path and a dot.

  Yields:
    A dotted path; what is known of the key; its value, or the default; and
    whether the config sets it.
  """
  section = section or Section()
  known = {}
  if not section.kind or "name" in config:
    known = section.keys(config.get("name"))
  if section.kind:
    meaning = f"The {section.kind}: {', '.join(section.names())}."
    known = {"name": Key(hint=str, meaning=meaning), **known}
  first = ["name"] if section.kind else []
  for key in dict.fromkeys((*first, *config, *known)):
    one = known.get(key, Key())
    inside = section.within(key, known)
    if hasattr(config.get(key), "items"):
      yield from paths(config[key], inside, f"{prefix}{key}.")
      continue
    if inside and inside.kind:
      more = f" By name, with keywords: {', '.join(inside.names())}."
      one = one._replace(meaning=one.meaning + more)
    yield prefix + key, one, config.get(key, one.default), key in config


def near(path: str, known: list[str]) -> Exception:
  """Makes the error for a key that there is not, with those that are near."""
  parent, _, last = path.rpartition(".")
  alike = [one for one in known if one.rpartition(".")[2] == last][:3]
  if not (alike or difflib.get_close_matches(path, known, n=1, cutoff=0.5)):
    # Of hundreds, those that are in the same place.
    alike = [one for one in known if parent and one.startswith(f"{parent}.")]
    alike = alike or sorted({one.partition(".")[0] for one in known})
  return unknown("key of the config", path, alike or known)
