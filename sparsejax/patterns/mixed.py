"""Patterns of a tree: several by path, and the budgets that they leave."""

from collections.abc import Callable, Collection, Mapping

import numpy as np

from sparsejax.distributions import Distribution, check_sparsity, rules_by_path
from sparsejax.patterns.base import Pattern, Patterns
from sparsejax.patterns.simple import unstructured


def by_path(
  rules: Mapping[str, Pattern], rest: Pattern | None = None
) -> Callable[[Collection[str]], dict[str, Pattern]]:
  """Gives leaves patterns of their own, by regular expression.

  Args:
    rules: Pattern by regular expression; the first that `re.search` finds in
      a sparse leaf's key path holds.
    rest: That of the leaves that no rule names; unstructured by default.

  Returns:
    What the argument `pattern` of the algorithms takes. It raises a ValueError
    for a rule that names no sparse leaf.

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
  rest = rest or unstructured()

  def patterns(paths):
    return dict.fromkeys(paths, rest) | rules_by_path(rules, paths)

  return patterns


def resolve(
  pattern: Patterns | None, paths: Collection[str]
) -> dict[str, Pattern]:
  """The pattern of each sparse leaf.

  Args:
    pattern: One for all, what `by_path` gives, or None: unstructured.
    paths: The key paths of the sparse leaves.

  Returns:
    A pattern by key path.

  Raises:
    ValueError: If a rule of `by_path` names no leaf.
  """
  if pattern is None:
    pattern = unstructured()
  if isinstance(pattern, Pattern):
    return dict.fromkeys(paths, pattern)
  return dict(pattern(paths))


def distribution(rest: Distribution, pattern: Patterns) -> Distribution:
  """A distribution that gives each leaf what its pattern can keep.

  Args:
    rest: Shares the weights among the leaves whose pattern leaves that open.
      Leaves whose pattern settles it, as 2:4 does, are left out of its budget.
    pattern: One for all leaves, or what `by_path` gives.

  Returns:
    The distribution. It raises a ValueError that names the leaf if its shape
    does not fit the pattern; and one if all patterns settle their leaves'
    density, but not at the sparsity that is asked for.

  Example:
    >>> from sparsejax import distributions, patterns
    >>> d = distribution(distributions.uniform, patterns.blocks((4, 4)))
    >>> d({"a": (8, 8), "b": (8, 4)}, 0.7)
    {'a': 16, 'b': 16}
  """

  def counts(shapes, sparsity):
    of = resolve(pattern, shapes)
    settled = {p.density for p in of.values()}
    if None not in settled:
      _check_settled(sparsity, settled)
    free = {p: s for p, s in shapes.items() if of[p].density is None}
    wanted = rest(free, sparsity) if free else {}
    return {
      path: _budget(path, of[path], shape, wanted.get(path))
      for path, shape in shapes.items()
    }

  return counts


def _budget(path, pattern, shape, wanted):
  if pattern.density is None and not isinstance(wanted, int | np.integer):
    return wanted  # refused, by name, where distributions are checked
  try:
    return pattern.budget(shape, wanted)
  except ValueError as error:
    raise ValueError(f"{path or 'the array'}: {error}") from None


def _check_settled(sparsity, densities):
  check_sparsity(sparsity)
  low, high = (float(1 - d) for d in (max(densities), min(densities)))
  if not low - 1e-3 <= sparsity <= high + 1e-3:  # 0.333 will do for 2:3
    wanted = f"{low:g}" + (f" to {high:g}" if low < high else "")
    raise ValueError(
      f"sparsity: got {sparsity}, but all leaves have patterns that settle it, "
      f"as 2:4 does: wanted {wanted}"
    )
