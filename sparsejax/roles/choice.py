"""Which leaves are to be sparse, and what all of them are."""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from sparsejax.masks import PyTree
from sparsejax.names import rules_by_path
from sparsejax.roles.base import KINDS, Role, complete, reading
from sparsejax.roles.inference import Leaf, leaves_of, read

Prunable = Callable[[str, Any], bool] | str


def of(params: PyTree, prunable: Prunable | None = None) -> dict[str, Role]:
  """Finds the role of every leaf.

  Args:
    params: A pytree of arrays or `jax.ShapeDtypeStruct`s. Masks work too, but
      scalar leaves say nothing about the leaves beside them.
    prunable: The result of `by_path`, whose rules take precedence; anything
      else is ignored.

  Returns:
    Roles by key path. Axes count from 0.

  Raises:
    ValueError: If a rule matches no leaf, or does not fit a leaf it matches.

  Example:
    >>> import jax.numpy as jnp
    >>> layers = {"kernel": jnp.ones((6, 32, 16)), "bias": jnp.ones((6, 16))}
    >>> roles = of({"layers": layers})
    >>> roles["layers/bias"].kind, roles["layers/kernel"].stacked
    ('bias', (0,))
  """
  return _roles(leaves_of(params), prunable)


def _roles(leaves, prunable):
  roles = read(leaves)
  if isinstance(prunable, ByPath):
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    said = rules_by_path(prunable.rules, shapes, "leaf")
    for path, role in said.items():
      roles[path] = complete(path, shapes[path], role)
  return roles


def sparse(
  params: PyTree, prunable: Prunable | None = None, *, warn: bool = False
) -> dict[str, Role]:
  """Finds the leaves that are to be sparse.

  Args:
    params: A pytree of arrays or `jax.ShapeDtypeStruct`s.
    prunable: `(path, leaf) -> bool`, or a regular expression that `re.search`
      looks for in key paths; `matrices` by default. `matrices` and the result
      of `by_path` use roles, which depend on all leaves together.
    warn: Whether to warn about leaves whose axes can be read in several ways.

  Returns:
    The roles of these leaves by key path, in the order of the leaves.

  Raises:
    ValueError: If two of these leaves have the same key path, or as in `of`.
    TypeError: If `prunable` is none of these.
  """
  chosen = {}
  for leaf, role, taken in _rows(params, prunable):
    if taken and leaf.path in chosen:
      raise ValueError(
        f"two leaves have the key path {leaf.path!r}: rename one, since "
        "budgets and random draws go by path"
      )
    if taken:
      chosen[leaf.path] = role
    if warn and taken and role.doubt:
      warnings.warn(
        f"{leaf.path or 'the array'}: the shape {leaf.shape} is taken for "
        f"{reading(role, leaf.shape)}; {role.doubt}. Say what it is with "
        "prunable=roles.by_path({regular expression: roles.Role(...)})",
        stacklevel=2,
      )
  return chosen


def _rows(params, prunable) -> list[tuple[Leaf, Role, bool]]:
  """Lists each leaf, its role, and whether it is to be sparse."""
  leaves = leaves_of(params)
  roles = _roles(leaves, prunable)
  return [
    (leaf, roles[leaf.path], _taken(prunable, leaf, roles[leaf.path]))
    for leaf in leaves
  ]


def _taken(prunable, leaf, role) -> bool:
  if isinstance(prunable, ByPath) and prunable.rule(leaf.path) is None:
    prunable = prunable.rest
  if prunable in (None, matrices) or isinstance(prunable, ByPath):
    return role.kind == "weight" and leaf.floating
  if isinstance(prunable, str):
    return re.search(prunable, leaf.path) is not None
  if not callable(prunable):
    raise TypeError(
      f"prunable: got {prunable!r:.60}, a {type(prunable).__name__}, wanted a "
      "function (path, leaf) -> bool, a regular expression, or "
      "roles.by_path({regular expression: roles.Role(...)})"
    )
  return bool(prunable(leaf.path, leaf.array))


def matrices(path: str, leaf: Any) -> bool:
  """Returns whether a leaf is a weight of two axes or more: the default.

  Args:
    path: The leaf's key path.
    leaf: The leaf.

  Returns:
    True for floating kernels of linear and convolutional layers; False for
    biases, norms and embeddings with any number of axes, for statistics and for
    integers. Algorithms also look at the leaves beside it: see `of`.

  Example:
    >>> import jax.numpy as jnp
    >>> [matrices(p, jnp.ones((4, 8))) for p in ("kernel", "bias", "embedding")]
    [True, False, False]
  """
  one = Leaf(path, tuple(path.split("/")), (), leaf)
  return one.floating and read([one])[path].kind == "weight"


class ByPath:
  """Rules about leaves, by regular expression: see `by_path`."""

  def __init__(self, rules: Mapping[str, Role], rest: Prunable):
    """Keeps the rules, and the predicate for what they do not name."""
    self.rules, self.rest = dict(rules), rest

  def rule(self, path: str) -> Role | None:
    """Returns the first rule that names a leaf."""
    return next((r for p, r in self.rules.items() if re.search(p, path)), None)

  def __call__(self, path: str, leaf: Any) -> bool:
    """Returns whether a leaf is to be sparse."""
    role = self.rule(path)
    return self.rest(path, leaf) if role is None else role.kind == "weight"


def by_path(rules: Mapping[str, Role], rest: Prunable = matrices) -> ByPath:
  """Says what leaves are, by regular expression.

  Args:
    rules: A role by regular expression. A leaf gets the role of the first
      expression that `re.search` finds in its key path. Weights become sparse,
      all other kinds stay dense. Axes may be negative. If you do not give a
      weight's inputs and outputs, they are the last two axes that are not
      stacked.
    rest: `(path, leaf) -> bool` for the leaves that no rule matches.

  Returns:
    A value for the argument `prunable` of all algorithms.

  Raises:
    ValueError: If a role's kind is none of KINDS.

  Example:
    >>> import jax.numpy as jnp
    >>> rules = {"^moe": Role("weight", stacked=(0, 1)), "table": Role("other")}
    >>> params = {"moe": jnp.ones((2, 8, 16, 32)), "table": jnp.ones((9, 4))}
    >>> roles = sparse(params, by_path(rules))
    >>> print(list(roles), roles["moe"].inputs, roles["moe"].outputs)
    ['moe'] (2,) (3,)
  """
  for rule, role in rules.items():
    if role.kind not in KINDS:
      raise ValueError(
        f"rule {rule!r}: got the kind {role.kind!r}, wanted one of "
        f"{', '.join(KINDS)}"
      )
  return ByPath(rules, rest)


def table(params: PyTree, prunable: Prunable | None = None) -> str:
  """Lists the role of each leaf, and whether it becomes sparse.

  Args:
    params: A pytree of arrays or `jax.ShapeDtypeStruct`s.
    prunable: As in `sparse`.

  Returns:
    A Markdown table with one row per leaf, and below it a line for each leaf
    that can be read in another way.

  Example:
    >>> import jax.numpy as jnp
    >>> conv = {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}
    >>> print(table({"conv": conv}))
    | leaf        | shape          | kind   | read as               | sparse |
    | :---------- | :------------- | :----- | :-------------------- | :----- |
    | conv/bias   | 16             | bias   | 16                    | no     |
    | conv/kernel | 3 x 3 x 8 x 16 | weight | kernel 3 x 3, 8 -> 16 | yes    |
  """
  head = ("leaf", "shape", "kind", "read as", "sparse")
  read_leaves = _rows(params, prunable)
  rows = [
    (
      (leaf.path or "the array").replace("|", r"\|"),
      " x ".join(map(str, leaf.shape)),
      role.kind,
      reading(role, leaf.shape),
      "yes" if taken else "no",
    )
    for leaf, role, taken in read_leaves
  ]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  rule = [":" + "-" * (width - 1) for width in widths]
  lines = [
    "| " + " | ".join(map(str.ljust, row, widths)) + " |"
    for row in (head, rule, *rows)
  ]
  doubts = [
    f"{leaf.path or 'the array'}: {role.doubt}."
    for leaf, role, taken in read_leaves
    if taken and role.doubt
  ]
  return "\n".join([*lines, *doubts])
