"""The definition of a pattern, and the parts of all of them."""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import roles, select, xla
from sparsejax.patterns.layouts import Layout


class Pattern(NamedTuple):
  """Which masks a leaf may have: a set of pure functions.

  Attributes:
    density: The share of weights that it keeps, if the pattern itself fixes
      that share, as 2:4 does; None if a distribution decides.
    budget: `(shape, n) -> n`: the number of weights nearest to n that a leaf of
      that shape can keep. Raises a ValueError if the shape does not fit.
    top_k: `(scores, k, where=None) -> mask`: the best mask of k weights among
      the candidates, which the mask `where` marks; all candidates if there are
      fewer than k. A k between two possible budgets counts as the nearest one.
      It may be traced.
    swap: `(mask, k, n, drop, grow, regrow) -> mask`: changes a mask into one of
      k weights. It drops the n (or a few less) weights that `drop` scores
      lowest, and grows those that `grow` scores highest. A dropped weight may
      grow back at once if `regrow`; otherwise it does so only if nothing else
      is left to grow.
    holds: `(mask) -> bool scalar`: whether a mask is allowed.
    layout: What all its masks have in common, which lets packed arrays store
      indices in less memory; None for nothing.
    axis: The axis of one layer that the pattern runs along; None for none.
    placed: `(inputs, outputs) -> Pattern`: the pattern for a layer whose input
      and output features are in these axes; None if it does not depend on them.
    merged: Whether it treats features that span several axes as one axis, as in
      the matrix [in, heads x head size].
  """

  density: Fraction | None
  budget: Callable[[tuple[int, ...], int], int]
  top_k: Callable[..., jax.Array]
  swap: Callable[..., jax.Array]
  holds: Callable[[jax.Array], jax.Array]
  layout: Layout | None = None
  axis: int | None = None
  placed: Callable[[int, int], "Pattern"] | None = None
  merged: bool = False


Patterns = Pattern | str | Callable[[Collection[str]], Mapping[str, Pattern]]


def pattern_of(
  *,
  budget: Callable,
  top_k: Callable,
  swap: Callable,
  holds: Callable,
  density: Fraction | None = None,
  layout: Layout | None = None,
  axis: int | None = None,
  merged: bool = False,
) -> Pattern:
  """Makes a pattern whose functions take leaves of any sharding."""

  def swapped(mask, k, n, drop, grow, regrow=True):
    one = functools.partial(swap, regrow=regrow)
    return xla.sharded_as_first(one)(mask, k, n, drop, grow)

  def best(scores, k, where=None):
    return xla.sharded_as_first(top_k)(scores, k, where)

  return Pattern(
    density, budget, best, swapped, holds, layout, axis, merged=merged
  )


def by_features(make: Callable[[int], Pattern], *, inputs: bool) -> Pattern:
  """Makes a pattern along inputs or outputs, wherever these are.

  Args:
    make: `(axis) -> Pattern`.
    inputs: Whether the axis is that of inputs.

  Returns:
    The pattern; for leaves of which nothing is known, as in Flax's layers:
    outputs in the last axis, inputs in the one before.
  """
  return make(-2 if inputs else -1)._replace(
    placed=lambda i, o: make(i if inputs else o)._replace(merged=True)
  )


def for_layer(pattern: Pattern, features: tuple[int, int] | None) -> Pattern:
  """Places a pattern in a layer, by the axes of its inputs and outputs."""
  if pattern.placed is None or features is None:
    return pattern
  return pattern.placed(*features)


def for_leaf(pattern: Pattern, role: roles.Role) -> Pattern:
  """Makes a pattern one of a whole leaf, whose layers all have it.

  Args:
    pattern: The pattern.
    role: The leaf's role.

  Returns:
    The pattern. Its `top_k` and `swap` take the k and n of each layer, of
    `roles.budget_shape`; its `budget` and `density` are those of one layer.
  """
  pattern = for_layer(pattern, roles.features(role))

  def whole(function):
    return roles.by_layer(function, role, merged=pattern.merged)

  def swap(mask, k, n, drop, grow, regrow=True):
    one = functools.partial(pattern.swap, regrow=regrow)
    return whole(one)(mask, k, n, drop, grow)

  return pattern._replace(
    top_k=lambda scores, k, where=None: whole(pattern.top_k)(scores, k, where),
    swap=swap,
    holds=lambda mask: jnp.all(whole(pattern.holds)(mask)),
  )


# `fill(scores, k, keep, where)` gives the mask of k that holds `keep`, and the
# best of `where` besides.


def top_k(fill: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Makes a pattern's `top_k` of its `fill`."""

  def top_k(scores, k, where=None):
    return fill(scores, k, empty_mask(scores), or_everywhere(where, scores))

  return top_k


def swap_of(fill: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Makes a `swap` that drops the leaf's worst, then fills part by part."""

  def swap(mask, k, n, drop, grow, regrow=True):
    keep = select.top_k_mask(drop, k - n, mask)
    if regrow:
      return fill(grow, k, keep, ~keep)
    return fill(drop, k, fill(grow, k, keep, ~mask), mask)

  return swap


def swap(mask, k, n, drop, grow, regrow=True):
  """Swaps the worst of a leaf for its best: `Pattern.swap` without balance."""
  if not regrow:
    n = jnp.minimum(n, mask.size - k)
  keep = select.top_k_mask(drop, k - n, mask)
  return keep | select.top_k_mask(grow, n, ~(keep if regrow else mask))


def nearest_count(counts: Sequence[int], k: jax.Array | int) -> jax.Array:
  """Finds the j whose count is nearest k, of rising counts; ties go up."""
  pairs = itertools.pairwise(counts)
  return sum(jnp.asarray(k >= (a + b + 1) // 2, jnp.int32) for a, b in pairs)


def in_units(k: jax.Array | int, unit: int) -> jax.Array | int:
  """Rounds k weights to a number of units, half up."""
  return (k + unit // 2) // unit


def nearest_multiple(shape: tuple[int, ...], n: int, unit: int) -> int:
  """Rounds n to a multiple of a unit: at least one, at most the shape."""
  units = max(1, in_units(n, unit))
  return min(units * unit, math.prod(shape))


def empty_mask(x: jax.Array) -> jax.Array:
  """Makes a mask of nothing."""
  return jnp.zeros(x.shape, bool)


def or_everywhere(where: jax.Array | None, x: jax.Array) -> jax.Array:
  """Makes candidates of everything if there are none."""
  return jnp.ones(x.shape, bool) if where is None else where


def misfit(shape: tuple[int, ...], wanted: str) -> ValueError:
  """Makes the error of a leaf whose shape does not fit a pattern."""
  return ValueError(
    f"got the shape {shape}, wanted {wanted}: give this leaf another pattern "
    "with patterns.by_path, or leave it out of `prunable`"
  )


def check_axis(shape: tuple[int, ...], axis: int) -> None:
  """Checks that a shape has an axis."""
  if not -len(shape) <= axis < len(shape):
    raise misfit(shape, f"one with an axis {axis}")


def check_n_of_m(n: int, m: int) -> None:
  """Checks that 0 < n <= m."""
  if not 0 < n <= m:
    raise ValueError(f"got {n}:{m}, wanted n of m active, 0 < n <= m")
