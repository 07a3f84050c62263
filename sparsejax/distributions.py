"""How many weights each leaf keeps: exact integers, settled before training.

A distribution maps the shapes of the sparse leaves, by key path, and a
sparsity to the number of weights that each keeps. It sees no arrays.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import PyTree, is_hole, path_name

Shapes = Mapping[str, tuple[int, ...]]
Distribution = Callable[[Shapes, float], Mapping[str, int]]
Prunable = Callable[[str, Any], bool]


def matrices(path: str, leaf: Any) -> bool:
  """Returns whether a leaf is floating with at least two axes: the default.

  Args:
    path: The leaf's key path; not looked at.
    leaf: The leaf.

  Returns:
    True for the kernels of linear and convolutional layers, and for
    embeddings; False for biases, norms and integers.
  """
  del path
  return np.ndim(leaf) > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)


def matching(pattern: str) -> Prunable:
  """Picks the leaves whose key path a regular expression matches.

  Args:
    pattern: What `re.search` looks for in a path such as `Dense_0/kernel`.

  Returns:
    A predicate for the argument `prunable` of the algorithms. It asks for
    whatever matches, vectors included.

  Example:
    >>> matching(r"Dense_[01]/kernel$")("Dense_1/kernel", None)
    True
  """
  return lambda path, leaf: re.search(pattern, path) is not None


def uniform(shapes: Shapes, sparsity: float) -> dict[str, int]:
  """Gives every leaf the same sparsity.

  Args:
    shapes: The leaves' shapes by key path.
    sparsity: The share of zeros, in [0, 1), read as the decimal that it
      prints as.

  Returns:
    The number of weights that each leaf keeps: size x (1 - sparsity),
    rounded so that the total is exact to the nearest integer. At least 1.

  Raises:
    ValueError: If the sparsity is out of range, or leaves less than one
      weight a leaf.

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
  axes: tuple[int, int] = (-2, -1),
) -> dict[str, int]:
  """Density in proportion to (n_in + n_out) / (n_in n_out).

  Args:
    shapes: The leaves' shapes by key path; vectors count as [1, n].
    sparsity: The share of zeros over all leaves together, in [0, 1).
    power_scale: Exponent of that ratio; 0 gives the uniform distribution.
    axes: Where input and output features lie: the last two axes in Flax,
      the first two, (0, 1), in Equinox and PyTorch layouts.

  Returns:
    The number of weights that each leaf keeps, as in `erdos_renyi_kernel`.

  Raises:
    ValueError: As in `erdos_renyi_kernel`.

  References:
    Mocanu et al., Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science,
    arXiv:1707.04780, 2018, equation 1.
  """
  matrices = {p: (1,) * (2 - len(s)) + tuple(s) for p, s in shapes.items()}
  features = {p: [s[a] for a in axes] for p, s in matrices.items()}
  return _scaled(shapes, features, sparsity, power_scale)


def erdos_renyi_kernel(
  shapes: Shapes, sparsity: float, *, power_scale: float = 1.0
) -> dict[str, int]:
  """Density in proportion to sum(shape) / prod(shape): ERK.

  Leaves whose share would exceed their size are kept whole, the largest
  ratio first, and the others make up for it.

  Args:
    shapes: The leaves' shapes by key path, kernel axes included.
    sparsity: The share of zeros over all leaves together, in [0, 1).
    power_scale: Exponent of the ratio; 0 gives the uniform distribution.

  Returns:
    The number of weights that each leaf keeps: together exactly
    size x (1 - sparsity), to the nearest integer. At least 1 each.

  Raises:
    ValueError: If the sparsity is out of range, or leaves less than one
      weight a leaf.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv:1911.11134, 2020, section 3, step 1.

  Example:
    >>> erdos_renyi_kernel({"a": (100, 100), "b": (100, 10)}, 0.9)
    {'a': 710, 'b': 390}
  """
  return _scaled(shapes, shapes, sparsity, power_scale)


def by_path(
  rules: Mapping[str, float], rest: Distribution = erdos_renyi_kernel
) -> Distribution:
  """Gives some leaves a sparsity of their own, by regular expression.

  Args:
    rules: Sparsity by regular expression; the first that `re.search` finds
      in a leaf's key path holds. 0 keeps a leaf whole.
    rest: The distribution of the leaves that no rule names. They have the
      algorithm's sparsity among themselves, as in the code of RigL: leaves
      set by a rule are left out of that budget.

  Returns:
    A distribution. It raises a ValueError for a rule that names no leaf.

  Example:
    >>> d = by_path({"^first": 0.0}, rest=uniform)
    >>> d({"first": (2, 5), "second": (10, 10)}, 0.9)
    {'first': 10, 'second': 10}
  """
  for pattern, sparsity in rules.items():
    check_sparsity(sparsity, f"rule {pattern!r}")

  def distribution(shapes, sparsity):
    ruled = rules_by_path(rules, shapes)
    others = {p: s for p, s in shapes.items() if p not in ruled}
    counts = dict(rest(others, sparsity)) if others else {}
    for path, own in ruled.items():
      counts |= uniform({path: shapes[path]}, own)
    return {path: counts[path] for path in shapes}

  return distribution


def rules_by_path(
  rules: Mapping[str, Any], paths: Collection[str]
) -> dict[str, Any]:
  """Finds what the first rule says that `re.search` finds in each key path.

  Args:
    rules: Anything by regular expression.
    paths: Key paths of the sparse leaves.

  Returns:
    What is said of a leaf, by key path; leaves that no rule names are missing.

  Raises:
    ValueError: If a rule names no leaf.
  """
  for rule in rules:
    if not any(re.search(rule, path) for path in paths):
      near = difflib.get_close_matches(rule, paths, n=3, cutoff=0.1)
      raise ValueError(
        f"rule {rule!r} names no sparse leaf. Near it: {', '.join(near)}"
      )
  hits = {p: [r for r in rules if re.search(r, p)] for p in paths}
  return {path: rules[found[0]] for path, found in hits.items() if found}


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
    distribution: How it is shared out.
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.

  Returns:
    The number of weights to keep, by key path. Paths that are missing stay
    dense.

  Raises:
    ValueError: If no leaf is prunable, if one is a scalar or not floating, or
      if the distribution cannot be met or does not answer with integers from
      0 to a leaf's size for every path.

  Example:
    >>> params = {"w": jnp.ones((10, 10)), "b": jnp.ones(10)}
    >>> budgets(params, 0.9, uniform)
    {'w': 10}
  """
  check_sparsity(sparsity)
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hole)
  leaves = [(path_name(p), x) for p, x in leaves if not is_hole(x)]
  shapes = {}
  for path, x in leaves:
    if not prunable(path, x):
      continue
    if np.ndim(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
        f"{path or 'the array'}: {x.dtype}{list(x.shape)} is asked to be "
        "sparse, wanted a floating array of at least one axis. Leave it out "
        "of `prunable`"
      )
    if path in shapes:
      raise ValueError(
        f"two leaves have the key path {path!r}: rename one, since budgets "
        "and random draws go by path"
      )
    shapes[path] = tuple(x.shape)
  if not shapes:
    names = ", ".join(f"{p or '.'}{list(x.shape)}" for p, x in leaves[:5])
    raise ValueError(
      f"no leaf is prunable among {len(leaves)} ({names}): pass `prunable`, "
      "for example distributions.matching('kernel')"
    )
  counts = distribution(shapes, sparsity)
  for path, shape in shapes.items():
    n, size = counts.get(path), math.prod(shape)
    if not isinstance(n, int | np.integer) or not 0 <= n <= size:
      raise ValueError(
        f"{path or 'the array'}: the distribution gives {n!r} weights to keep "
        f"of shape {shape}, wanted an integer from 0 to {size}"
      )
  return {path: int(counts[path]) for path in shapes}


def check_sparsity(sparsity: float, where: str = "sparsity") -> Fraction:
  """Reads a sparsity as the exact decimal that it prints as.

  Args:
    sparsity: The share of zeros.
    where: What it is the sparsity of, for the message.

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

  The ratio is sum(features) / prod(features), to the power.
  """
  ratio = {
    p: (sum(f) / math.prod(f)) ** power_scale for p, f in features.items()
  }
  sizes = {p: math.prod(s) for p, s in shapes.items()}
  budget = sum(sizes.values()) * (1 - check_sparsity(sparsity))
  scaled = set(shapes)
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
  if total < len(sizes):
    raise ValueError(
      f"{total} weights in all cannot be shared among {len(sizes)} leaves, "
      f"which need at least one each ({', '.join(sizes)}): lower the "
      "sparsity, or leave small leaves out of `prunable`"
    )
  counts = {p: min(sizes[p], max(1, math.floor(w))) for p, w in wanted.items()}
  while (left := total - sum(counts.values())) != 0:
    step = 1 if left > 0 else -1
    room = [p for p in sizes if 1 <= counts[p] + step <= sizes[p]]
    # Who is furthest behind its share; the path settles ties.
    best = min(room, key=lambda p: (step * (counts[p] - wanted[p]), p))
    counts[best] += step
  return counts
