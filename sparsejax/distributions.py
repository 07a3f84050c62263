"""How many weights each leaf keeps: exact integers, settled before training.

A distribution takes the shapes of the sparse leaves, by key path, and a
sparsity. It returns the number of weights that each leaf keeps. It sees no
arrays. Layers that are stacked in one array count as separate leaves.
"""

import heapq
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from sparsejax import roles as roles_lib
from sparsejax.masks import PyTree
from sparsejax.names import leaf_of, look_up, rules_by_path
from sparsejax.roles import Prunable, matrices
from sparsejax.roles.inference import leaves_of

Shapes = Mapping[str, tuple[int, ...]]
Distribution = Callable[[Shapes, float], Mapping[str, int]] | str

__all__ = [
  "Distribution",
  "Prunable",
  "Shapes",
  "budgets",
  "by_path",
  "check_sparsity",
  "erdos_renyi",
  "erdos_renyi_kernel",
  "matching",
  "matrices",
  "named",
  "uniform",
]


def matching(pattern: str) -> Prunable:
  """Picks the leaves whose key path a regular expression matches.

  Args:
    pattern: What `re.search` looks for in a path such as `Dense_0/kernel`.

  Returns:
    A predicate for the argument `prunable` of the algorithms. It selects
    every leaf that matches, including vectors.

  Example:
    >>> matching(r"Dense_[01]/kernel$")("Dense_1/kernel", None)
    True
  """
  return lambda path, leaf: re.search(pattern, path) is not None


def uniform(shapes: Shapes, sparsity: float) -> dict[str, int]:
  """Gives every leaf the same sparsity.

  Args:
    shapes: The leaves' shapes by key path.
    sparsity: The share of zeros, in [0, 1), taken as the exact decimal that it
      prints as.

  Returns:
    The number of weights that each leaf keeps: size x (1 - sparsity),
    rounded so that the total is exact to the nearest integer. At least 1.

  Raises:
    ValueError: If the sparsity is out of range, or leaves less than one
      weight per leaf.

  Example:
    >>> uniform({"a": (5, 5), "b": (3, 5)}, 0.5)
    {'a': 13, 'b': 7}
  """
  keep = 1 - check_sparsity(sparsity)
  return _round({p: math.prod(s) * keep for p, s in shapes.items()}, shapes)


def erdos_renyi(
  shapes: Shapes,
  sparsity: float,
  *,
  power_scale: float = 1.0,
  axes: tuple[int, int] | None = None,
) -> dict[str, int]:
  """Gives leaves densities in proportion to (n_in + n_out) / (n_in n_out).

  Args:
    shapes: The leaves' shapes by key path; vectors count as [1, n].
    sparsity: The share of zeros over all leaves together, in [0, 1).
    power_scale: Exponent of that ratio; 0 gives the uniform distribution.
    axes: The axes of input and output features; by default those that `roles`
      finds, and the last two where it finds none.

  Returns:
    The number of weights that each leaf keeps, as in `erdos_renyi_kernel`.

  Raises:
    ValueError: As in `erdos_renyi_kernel`.

  References:
    Mocanu et al., Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science,
    arXiv:1707.04780, 2018, equation 1.
  """

  def features(shape):
    if axes is None:
      at, sizes = getattr(shape, "features", None) or (-2, -1), shape
    else:
      at, sizes = axes, getattr(shape, "own", shape)
    sizes = (1,) * (2 - len(sizes)) + tuple(sizes)
    return [sizes[axis] for axis in at]

  pairs = {path: features(shape) for path, shape in shapes.items()}
  return _scaled(shapes, pairs, sparsity, power_scale)


def erdos_renyi_kernel(
  shapes: Shapes, sparsity: float, *, power_scale: float = 1.0
) -> dict[str, int]:
  """Gives leaves densities in proportion to sum(shape) / prod(shape): ERK.

  Leaves whose share would exceed their size are kept whole, the largest
  ratio first, and the others get fewer weights to make up for it.

  Args:
    shapes: The leaves' shapes by key path, kernel axes included. Features that
      span several axes count as one axis: queries [in, heads, head size] get
      the budget of the matrix [in, heads x head size]. So the number of a
      layer's neurons counts, not how they are stored.
    sparsity: The share of zeros over all leaves together, in [0, 1).
    power_scale: Exponent of the ratio; 0 gives the uniform distribution.

  Returns:
    The number of weights that each leaf keeps, at least 1. The sum is exactly
    size x (1 - sparsity), rounded to the nearest integer.

  Raises:
    ValueError: If the sparsity is out of range, or leaves less than one
      weight per leaf.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv:1911.11134, 2020, section 3, step 1.

  Example:
    >>> erdos_renyi_kernel({"a": (100, 100), "b": (100, 10)}, 0.9)
    {'a': 710, 'b': 390}
  """
  return _scaled(shapes, shapes, sparsity, power_scale)


_NAMES = {
  "uniform": uniform,
  "erdos_renyi": erdos_renyi,
  "er": erdos_renyi,
  "erdos_renyi_kernel": erdos_renyi_kernel,
  "erk": erdos_renyi_kernel,
}


def by_path(
  rules: Mapping[str, float], rest: Distribution = erdos_renyi_kernel
) -> Distribution:
  """Gives some leaves a sparsity of their own, by regular expression.

  Args:
    rules: Sparsity by regular expression. A leaf gets the sparsity of the first
      expression that `re.search` finds in its key path. 0 keeps a leaf whole.
    rest: The distribution of the leaves that no rule matches, or its name. The
      algorithm's sparsity holds for these leaves alone, as in the code of RigL:
      leaves with a rule are left out of that budget.

  Returns:
    A distribution. It raises a ValueError for a rule that matches no leaf.

  Example:
    >>> d = by_path({"^first": 0.0}, rest=uniform)
    >>> d({"first": (2, 5), "second": (10, 10)}, 0.9)
    {'first': 10, 'second': 10}
  """
  rest = named(rest)
  for pattern, sparsity in rules.items():
    check_sparsity(sparsity, f"rule {pattern!r}")

  def distribution(shapes, sparsity):
    ruled = rules_by_path(rules, shapes)
    others = {p: s for p, s in shapes.items() if p not in ruled}
    counts = dict(rest(others, sparsity)) if others else {}
    for leaf in dict.fromkeys(map(leaf_of, ruled)):
      layers = {p: s for p, s in shapes.items() if leaf_of(p) == leaf}
      counts |= uniform(layers, next(ruled[path] for path in layers))
    return {path: counts[path] for path in shapes}

  return distribution


def budgets(
  params: PyTree,
  sparsity: float,
  distribution: Distribution = erdos_renyi_kernel,
  prunable: Prunable = matrices,
) -> dict[str, int]:
  """Counts the weights that each sparse leaf of some params keeps.

  Args:
    params: A pytree of arrays or `jax.ShapeDtypeStruct`.
    sparsity: The share of zeros, in [0, 1).
    distribution: How the weights are shared among the leaves, or the name of a
      distribution; see `named`.
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.

  Returns:
    The number of weights to keep, by key path. For a leaf that stacks layers it
    is the sum over the layers, which keep equally many, up to one weight.
    Leaves whose path is missing stay dense.

  Raises:
    ValueError: If no leaf is prunable, if one is a scalar or not floating, or
      if the distribution cannot be met or does not return an integer from 0 to
      the leaf's size for every path.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((10, 10)), "b": jnp.ones(10)}
    >>> budgets(params, 0.9, uniform)
    {'w': 10}
  """
  check_sparsity(sparsity)
  leaves = {leaf.path: leaf for leaf in leaves_of(params)}
  sparse = roles_lib.sparse(params, prunable, warn=True)
  for path in sparse:
    if not leaves[path].shape or not leaves[path].floating:
      x = leaves[path].array
      raise ValueError(
        f"{path or 'the array'}: {x.dtype}{list(x.shape)} is asked to be "
        "sparse, wanted a floating array of at least one axis. Leave it out "
        "of `prunable`"
      )
  if not sparse:
    names = ", ".join(
      f"{path or '.'}{list(leaf.shape)}"
      for path, leaf in list(leaves.items())[:5]
    )
    raise ValueError(
      f"no leaf is prunable among {len(leaves)} ({names}): pass `prunable`, "
      "for example distributions.matching('kernel')"
    )
  layers = {
    path: roles_lib.layers(path, role, leaves[path].shape)
    for path, role in sparse.items()
  }
  shapes = {
    layer: roles_lib.layer_shape(sparse[path], leaves[path].shape)
    for path, of_leaf in layers.items()
    for layer in of_leaf
  }
  counts = named(distribution)(shapes, sparsity)
  for path, shape in shapes.items():
    n, size = counts.get(path), math.prod(shape)
    if not isinstance(n, int | np.integer) or not 0 <= n <= size:
      raise ValueError(
        f"{path or 'the array'}: the distribution gives {n!r} weights to keep "
        f"of shape {tuple(shape)}, wanted an integer from 0 to {size}"
      )
  for path, of_leaf in layers.items():
    kept = {int(counts[layer]) for layer in of_leaf} or {0}
    if max(kept) - min(kept) > 1:
      raise ValueError(
        f"{path}: the distribution gives its {len(of_leaf)} layers from "
        f"{min(kept)} to {max(kept)} weights to keep, wanted as many for each, "
        "since they are stacked in one array: keep them in arrays of their own"
      )
  return {
    path: sum(int(counts[layer]) for layer in of_leaf)
    for path, of_leaf in layers.items()
  }


def named(distribution: Distribution) -> Callable[..., Mapping[str, int]]:
  """Returns a distribution by its name.

  Args:
    distribution: "uniform", "erdos_renyi" or "er", "erdos_renyi_kernel" or
      "erk"; anything else comes back as it is.

  Returns:
    The function.

  Raises:
    ValueError: If there is none of that name.
    TypeError: If it is neither a name nor a function.

  Example:
    >>> named("uniform")({"a": (5, 5), "b": (3, 5)}, 0.5)
    {'a': 13, 'b': 7}
  """
  if isinstance(distribution, str):
    return look_up("distribution", distribution, _NAMES)
  if not callable(distribution):
    raise TypeError(
      f"distribution: got {distribution!r}, wanted a function of shapes and "
      f"sparsity such as distributions.uniform, or one of {', '.join(_NAMES)}"
    )
  return distribution


def check_sparsity(sparsity: float, where: str = "sparsity") -> Fraction:
  """Reads a sparsity as the exact decimal that it prints as.

  Args:
    sparsity: The share of zeros.
    where: What has this sparsity, for the error message.

  Returns:
    The sparsity as a fraction, 9/10 for 0.9.

  Raises:
    ValueError: If it is not in [0, 1).
  """
  value = float(sparsity)
  if not 0 <= value < 1:
    raise ValueError(
      f"{where}: got {sparsity}, wanted the share of zeros, in [0, 1): 0.9 "
      "for 90 %"
    )
  return Fraction(repr(value))


def _scaled(shapes, features, sparsity, power_scale) -> dict[str, int]:
  """Keeps eps x ratio x size of each leaf, at most all of it.

  The ratio is sum(features) / prod(features), to the power. A leaf of no size
  keeps nothing.
  """
  ratio = {
    p: (sum(f) / math.prod(f)) ** power_scale
    for p, f in features.items()
    if math.prod(shapes[p])
  }
  sizes = {p: math.prod(s) for p, s in shapes.items()}
  budget = sum(sizes.values()) * (1 - check_sparsity(sparsity))
  scaled = set(ratio)
  while scaled:
    whole = sum(n for p, n in sizes.items() if p not in scaled)
    eps = float(budget - whole) / sum(ratio[p] * sizes[p] for p in scaled)
    top = max(ratio[p] for p in scaled)
    if top * eps <= 1:
      break
    scaled -= {p for p in scaled if math.isclose(ratio[p], top)}
  wanted = {
    p: Fraction(eps * ratio[p] * n) if p in scaled else Fraction(n)
    for p, n in sizes.items()
  }
  return _round(wanted, shapes)


def _round(wanted: dict[str, Fraction], shapes: Shapes) -> dict[str, int]:
  """Rounds to integers of the rounded total, each from 1 to its size."""
  sizes = {p: math.prod(s) for p, s in shapes.items()}
  total = math.floor(sum(wanted.values()) + Fraction(1, 2))
  if total < (full := sum(n > 0 for n in sizes.values())):
    names = ", ".join(dict.fromkeys(map(leaf_of, sizes)))
    raise ValueError(
      f"{total} weights in all cannot be shared among {full} leaves, "
      f"which need at least one each ({names}): lower the "
      "sparsity, or leave small leaves out of `prunable`"
    )
  counts = {p: min(sizes[p], max(1, math.floor(w))) for p, w in wanted.items()}
  left = total - sum(counts.values())
  step = 1 if left > 0 else -1

  def turn(path):
    """Who is furthest behind its share comes first; the path settles ties."""
    return step * (counts[path] - wanted[path]), path

  def has_room(path):
    return 1 <= counts[path] + step <= sizes[path]

  room = [turn(path) for path in sizes if has_room(path)]
  heapq.heapify(room)
  for _ in range(abs(left)):
    path = heapq.heappop(room)[1]
    counts[path] += step
    if has_room(path):
      heapq.heappush(room, turn(path))
  return counts
