"""Names: of layers within leaves, of what a rule is for, of what is known."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")


class LayerPath(str):
  """The key path of one layer of a stack, such as `layers/kernel[3]`."""

  leaf: str


def layer_path(path: str, index: tuple[int, ...]) -> str:
  """Makes the key path of one layer of a leaf; of a single one, the leaf's."""
  if not index:
    return path
  layer = LayerPath(f"{path}[{', '.join(map(str, index))}]")
  layer.leaf = path
  return layer


def leaf_of(path: str) -> str:
  """Returns the key path of the leaf that a layer is of."""
  return getattr(path, "leaf", path)


def rules_by_path(
  rules: Mapping[str, T], paths: Collection[str], what: str = "sparse leaf"
) -> dict[str, T]:
  """Finds what the first rule says that `re.search` finds in each key path.

  Args:
    rules: Anything by regular expression.
    paths: Key paths of leaves. Of a layer, that of its leaf is looked at.
    what: What these are, for the message.

  Returns:
    What is said of a leaf, by key path; leaves that no rule names are missing.

  Raises:
    ValueError: If a rule names no leaf.
  """
  leaves = list(dict.fromkeys(map(leaf_of, paths)))
  for rule in rules:
    if not any(re.search(rule, leaf) for leaf in leaves):
      near = difflib.get_close_matches(rule, leaves, n=3, cutoff=0.1)
      raise ValueError(
        f"rule {rule!r} names no {what}. Near it: {', '.join(near)}"
      )
  hits = {p: [r for r in rules if re.search(r, leaf_of(p))] for p in paths}
  return {path: rules[found[0]] for path, found in hits.items() if found}


def look_up(what: str, name: str, known: Mapping[str, T]) -> T:
  """Returns what has a name.

  Args:
    what: What is looked for, for the message.
    name: Its name.
    known: All there are, by name.

  Raises:
    ValueError: If there is none of that name; it gives the near ones.
  """
  if name not in known:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise ValueError(
      f"no {what} is called {name!r}. Near it: {', '.join(near or known)}"
    )
  return known[name]
