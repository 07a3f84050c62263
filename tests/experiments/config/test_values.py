"""Values of keys: what texts on a command line stand for, by their types."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
import pytest

from experiments.config import values
from experiments.errors import UserError


@pytest.mark.parametrize(
  ("text", "hint", "wanted"),
  [
    *[("3", int, 3), ("1e4", int, 10_000), ("1_000", int, 1000)],
    *[("3", float, 3.0), ("1e-3", float, 0.001), ("inf", float, float("inf"))],
    *[("true", bool, True), ("False", bool, False), ("0", bool, False)],
    *[("None", int | None, None), ("7", int | None, 7), ("none", str, "none")],
    *[
      ("3", str, "3"),
      ("a b", str, "a b"),
      ("", str, ""),
      ("None", str, "None"),
    ],
    ("data/x", str | pathlib.Path, "data/x"),
    ("0,1,2", Sequence[int], (0, 1, 2)),
    ("(5,)", tuple[int, ...], (5,)),
    ("5,", tuple[int, ...], (5,)),
    ("[64, 64]", Sequence[int], (64, 64)),
    ("0.9", tuple[float, ...], (0.9,)),
    ("0,0.5", tuple[float, ...], (0.0, 0.5)),
    ("rigl,set", tuple[str, ...], ("rigl", "set")),
    ("()", tuple, ()),
    ("2:4", Sequence[int], (2, 4)),
    ("2:4", values.of_value(((4, 8), (2, 4))), ((2, 4),)),
    ("2:4,4:8", values.of_value(((4, 8), (2, 4))), ((2, 4), (4, 8))),
    ("{'name': 'sgd'}", Mapping[str, Any], {"name": "sgd"}),
    ('{"name": null}', dict, {"name": None}),
    ("bfloat16", jax.typing.DTypeLike, "bfloat16"),
    ("0.3", optax.ScalarOrSchedule, 0.3),
    ("package.module:rule", optax.ScalarOrSchedule, "package.module:rule"),
    ("2:4", Callable[[int], int], "2:4"),
    ("[['^a', 'b']]", Callable[[int], int], [["^a", "b"]]),
    *[("3", Any, 3), ("x", Any, "x"), ("true", Any, True), ("2:4", Any, "2:4")],
  ],
)
def test_what_texts_stand_for(text, hint, wanted):
  found = values.parse("key", text, hint)
  assert found == wanted
  assert type(found) is type(wanted)


@pytest.mark.parametrize(
  ("text", "hint", "says"),
  [
    ("5", tuple[int, ...], r"list of the one number 5 write 5, with the comma"),
    ("5", Sequence[int] | None, "wanted a list .* or None"),
    ("a,b", Sequence[int], "has the item 'a'; wanted a whole number"),
    ("1.5", int, "config.key is '1.5'; wanted a whole number"),
    ("true", int, "wanted a whole number"),
    ("half", float, "wanted a number"),
    ("nan", float, "wanted a number"),
    ("2", bool, "wanted true or false"),
    ("x", int | bool, "wanted a whole number or true or false"),
    ("x", dict, "wanted a mapping"),
    ("[1, 2", tuple, "wanted a list"),
  ],
)
def test_what_is_no_such_value(text, hint, says):
  with pytest.raises(UserError, match=says):
    values.parse("key", text, hint)
