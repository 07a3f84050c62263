"""Patterns of a tree: several by path, and the budgets that they leave."""

import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

import numpy as np

from sparsejax import distributions
from sparsejax.distributions import Distribution, check_sparsity
from sparsejax.names import leaf_of, look_up, rules_by_path
from sparsejax.patterns.base import Pattern, Patterns, for_layer
from sparsejax.patterns.groups import n_of_m
from sparsejax.patterns.parts import blocks, channels
from sparsejax.patterns.simple import fan_in, unstructured


def by_path(
  rules: Mapping[str, Pattern | str], rest: Pattern | str | None = None
) -> Callable[[Collection[str]], dict[str, Pattern]]:
  """Gives leaves patterns of their own, by regular expression.

  Args:
    rules: Pattern, or its name, by regular expression. A sparse leaf gets the
      pattern of the first expression that `re.search` finds in its key path.
    rest: The pattern of the leaves that no rule matches; unstructured by
      default.

  Returns:
    A value for the argument `pattern` of the algorithms. They raise a
    ValueError for a rule that matches no sparse leaf.

  Example:
    >>> import jax, jax.numpy as jnp, optax, sparsejax
    >>> from sparsejax.patterns import n_of_m
    >>> tx = sparsejax.static(optax.sgd(0.1), 0.5, key=jax.random.key(0),
    ...                       pattern=by_path({"^mlp": n_of_m(2, 4)}))
    >>> params = {"mlp": jnp.ones((8, 3)), "head": jnp.ones((3, 5))}
    >>> params, _ = sparsejax.init(tx, params)
    >>> print(params["mlp"].reshape(2, 4, 3).sum(1))
    [[2. 2. 2.]
     [2. 2. 2.]]
  """
  rest = named(rest or unstructured())
  rules = {rule: named(pattern) for rule, pattern in rules.items()}

  def patterns(paths):
    return dict.fromkeys(paths, rest) | rules_by_path(rules, paths)

  return patterns


def resolve(
  pattern: Patterns | None, paths: Collection[str]
) -> dict[str, Pattern]:
  """Finds the pattern of each sparse leaf.

  Args:
    pattern: One for all, what `by_path` gives, or None: unstructured.
    paths: The key paths of the sparse leaves.

  Returns:
    A pattern by key path.

  Raises:
    ValueError: If a rule of `by_path` names no leaf.
  """
  pattern = named(unstructured() if pattern is None else pattern)
  if isinstance(pattern, Pattern):
    return dict.fromkeys(paths, pattern)
  return dict(pattern(paths))


def named(pattern: Patterns) -> Patterns:
  """Returns a pattern by its name.

  Args:
    pattern: "unstructured", "fan_in", "channels", N:M such as "2:4", or blocks
      such as "4x4"; anything else comes back as it is.

  Returns:
    The pattern, or the function of paths.

  Raises:
    ValueError: If there is none of that name.
    TypeError: If it is neither a name, a pattern nor a function.

  Example:
    >>> named("2:4").density
    Fraction(1, 2)
  """
  if isinstance(pattern, str):
    if numbers := re.fullmatch(r"(\d+):(\d+)", pattern):
      return n_of_m(*map(int, numbers.groups()))
    if numbers := re.fullmatch(r"(\d+)x(\d+)", pattern):
      return blocks(tuple(map(int, numbers.groups())))
    return look_up("pattern", pattern, _NAMES)()
  if not isinstance(pattern, Pattern) and not callable(pattern):
    raise TypeError(
      f"pattern: got {pattern!r}, wanted one of sparsejax.patterns, such as "
      "patterns.n_of_m(2, 4), or its name"
    )
  return pattern


_NAMES = {
  "unstructured": unstructured,
  "fan_in": fan_in,
  "channels": channels,
  "2:4": n_of_m,  # stands for all N:M, and 4x4 for all blocks
  "4x4": blocks,
}


def distribution(rest: Distribution, pattern: Patterns) -> Distribution:
  """Makes a distribution that gives each leaf what its pattern can keep.

  Args:
    rest: Shares the weights among the leaves whose pattern does not fix their
      density. Leaves whose pattern fixes it, as 2:4 does, are left out of this
      budget.
    pattern: One pattern for all leaves, or the result of `by_path`.

  Returns:
    The distribution. It raises a ValueError that names the leaf if its shape
    does not fit the pattern. It also raises one if the patterns fix the density
    of all leaves, but not at the given sparsity.

  Example:
    >>> from sparsejax import distributions, patterns
    >>> d = distribution(distributions.uniform, patterns.blocks((4, 4)))
    >>> d({"a": (8, 8), "b": (8, 4)}, 0.7)
    {'a': 16, 'b': 16}
  """
  rest = distributions.named(rest)

  def counts(shapes, sparsity):
    of_leaf = resolve(pattern, list(dict.fromkeys(map(leaf_of, shapes))))
    of = {
      path: for_layer(of_leaf[leaf_of(path)], getattr(shape, "features", None))
      for path, shape in shapes.items()
    }
    settled = {p.density for p in of.values()}
    if None not in settled:
      _check_settled(sparsity, settled)
    free = {p: s for p, s in shapes.items() if of[p].density is None}
    wanted = rest(free, sparsity) if free else {}
    kept = {
      path: _budget(path, of[path], shape, wanted.get(path))
      for path, shape in shapes.items()
    }
    return kept | _as_many_each(kept, wanted, of, shapes)

  return counts


def _budget(path, pattern, shape, wanted):
  if pattern.density is None and not isinstance(wanted, int | np.integer):
    return wanted  # refused, by name, where distributions are checked
  if 0 in shape:
    return 0
  if not pattern.merged:
    shape = getattr(shape, "own", shape)
  try:
    return pattern.budget(tuple(shape), wanted)
  except ValueError as error:
    raise ValueError(f"{path or 'the array'}: {error}") from None


def _as_many_each(kept, wanted, of, shapes):
  """Gives the layers of a stack as many parts each, where they are rounded.

  Distributions may give one layer a weight more than another, which rounding to
  a pattern's parts would make a whole part.
  """
  stacks = {}
  for path in wanted:
    if path in kept and kept[path] != wanted[path] and path != leaf_of(path):
      stacks[leaf_of(path)] = of[path]
  again = {}
  for leaf, pattern in stacks.items():
    paths = [path for path in kept if leaf_of(path) == leaf]
    mean = Fraction(sum(wanted[path] for path in paths), len(paths))
    each = _budget(leaf, pattern, shapes[paths[0]], round(mean))
    again |= dict.fromkeys(paths, each)
  return again


def _check_settled(sparsity, densities):
  check_sparsity(sparsity)
  low, high = (float(1 - d) for d in (max(densities), min(densities)))
  if not low - 1e-3 <= sparsity <= high + 1e-3:  # 0.333 will do for 2:3
    wanted = f"{low:g}" + (f" to {high:g}" if low < high else "")
    raise ValueError(
      f"sparsity: got {sparsity}, but all leaves have patterns that settle it, "
      f"as 2:4 does: wanted {wanted}"
    )
