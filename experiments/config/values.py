"""Values of keys from the text on a command line, by the types they have."""

import ast
import collections.abc
import json
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from experiments.errors import UserError

_WORDS = {"true": True, "yes": True, "false": False, "no": False}
_BITS = {"1": True, "0": False}
_NOTHING = object()
# The kinds of values that a config can hold, and what they are called.
_CALLED = {
  None: "None",
  bool: "true or false",
  int: "a whole number",
  float: "a number such as 0.3",
  tuple: "a list such as (1, 2)",
  dict: "a mapping such as {'name': 'sgd'}",
  str: "a text",
  Callable: "a name",
}


def parse(path: str, text: str, hint: Any) -> Any:
  """Turns the text of a command line into a value.

  Args:
    path: The dotted key, for errors.
    text: The text.
    hint: The type that the value should have: a class, a union, or a generic
      such as `Sequence[int]`. With `Any`, what looks like a literal is one.

  Returns:
    A bool, number, string, tuple, dict or None.

  Raises:
    UserError: If the text is no such value.

  Example:
    >>> parse("steps", "1e4", int), parse("seeds", "0,1,2", tuple)
    (10000, (0, 1, 2))
    >>> parse("n_of_m", "2:4", tuple)
    (2, 4)
  """
  kinds = list(dict.fromkeys(_kinds(hint)))
  literal = _literal(text)
  if Any in kinds:
    return _WORDS.get(text.lower(), text if literal is _NOTHING else literal)
  for kind in _CALLED:
    value = _of_kind(kind, text, literal) if kind in kinds else _NOTHING
    if value is not _NOTHING:
      return _with_items(path, value, hint) if kind is tuple else value
  wanted = " or ".join(_CALLED[kind] for kind in kinds)
  message = f"config.{path} is {text!r}; wanted {wanted}"
  if tuple in kinds and re.fullmatch(r"-?\d+", text):
    message += (
      f". For a list of the one number {text} write {text}, with the comma; "
      "for several, 0,1,2"
    )
  raise UserError(message)


def of_value(value: Any) -> Any:
  """Returns the type that other values in a value's place should have."""
  if isinstance(value, (tuple, list)):
    first = {type(one) for one in value}
    return tuple[first.pop(), ...] if len(first) == 1 else tuple
  return Any if value is None else type(value)


def _kinds(hint: Any) -> Iterator[Any]:
  """Yields which of the kinds a type's values may be, or `Any`."""
  origin = typing.get_origin(hint) or hint
  if origin in (typing.Union, types.UnionType):
    for one in typing.get_args(hint):
      yield from _kinds(one)
  elif origin in (None, types.NoneType):
    yield None
  elif origin is Any or not isinstance(origin, type):
    yield Any
  elif issubclass(origin, (str, pathlib.PurePath)):
    yield str
  elif issubclass(origin, (bool, int, float)):
    yield next(kind for kind in (bool, int, float) if issubclass(origin, kind))
  elif issubclass(origin, collections.abc.Mapping):
    yield dict
  elif issubclass(origin, collections.abc.Sequence) and not hasattr(
    origin, "_fields"
  ):
    yield tuple
  else:  # what only code can make: a config has a name for it
    yield Callable


def _literal(text: str) -> Any:
  for read in (ast.literal_eval, json.loads):
    try:
      return read(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      pass
  return _NOTHING


def _of_kind(kind: Any, text: str, literal: Any) -> Any:
  """Returns the value of a text as one of the kinds, or _NOTHING."""
  number = isinstance(literal, (int, float)) and not isinstance(literal, bool)
  if kind is None:
    return None if text.lower() in ("none", "null") else _NOTHING
  if kind is bool:
    return (_WORDS | _BITS).get(text.lower(), _NOTHING)
  if kind is int:
    return int(literal) if number and literal == int(literal) else _NOTHING
  if kind is float:
    number = number or text in ("inf", "-inf")
    return float(text) if number else _NOTHING
  if kind is tuple:
    return _items(text, literal)
  if kind is dict:
    return literal if isinstance(literal, dict) else _NOTHING
  if kind is Callable and isinstance(literal, (tuple, list, dict)):
    return literal  # rules by path, or a name and keywords
  return text


def _items(text: str, literal: Any) -> Any:
  """Reads a list: a literal, or words, numbers or N:M with commas between."""
  if isinstance(literal, (tuple, list)):
    return tuple(literal)
  if re.fullmatch(r"\d+:\d+", text):
    return tuple(map(int, text.split(":")))
  # A whole number alone may be one of the list, or how many.
  if isinstance(literal, (int, dict)) or text[:1] in ("", *"([{"):
    return _NOTHING
  words = [word.strip() for word in text.split(",")]
  return tuple(
    _items(word, None) if ":" in word else parse("", word, Any)
    for word in words
    if word
  )


def _with_items(path: str, value: tuple[Any, ...], hint: Any) -> Any:
  """Checks a list's items by the type that they should have."""
  options = typing.get_args(hint) if _is_union(hint) else (hint,)
  for option in options:
    items = [one for one in typing.get_args(option) if one is not ...]
    if tuple in _kinds(option) and len(items) == 1:
      kinds = list(_kinds(items[0]))
      if kinds == [tuple] and value and not isinstance(value[0], (tuple, list)):
        return (value,)
      return tuple(_item(path, one, kinds) for one in value)
  return value


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _item(path: str, item: Any, kinds: list[Any]) -> Any:
  if Any in kinds or isinstance(item, (tuple, list, dict)):
    return item
  for kind in kinds:
    value = _of_kind(kind, str(item), item)
    if value is not _NOTHING:
      return value
  wanted = " or ".join(_CALLED[kind] for kind in kinds)
  raise UserError(f"config.{path} has the item {item!r}; wanted {wanted}")
