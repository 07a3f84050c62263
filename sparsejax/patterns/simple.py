"""Patterns of single weights: any of them, or as many for every output."""

import jax.numpy as jnp

from sparsejax import select
from sparsejax.patterns import base
from sparsejax.patterns.base import Pattern
from sparsejax.patterns.layouts import FanIn


def unstructured() -> Pattern:
  """Makes the pattern in which any weight may be zero.

  Returns:
    The pattern.

  Example:
    >>> import jax.numpy as jnp
    >>> print(unstructured().top_k(jnp.array([1.0, 3.0, 2.0]), 2))
    [False  True  True]
  """
  return Pattern(
    density=None,
    budget=lambda shape, n: n,
    top_k=select.top_k_mask,
    swap=base.swap,
    holds=lambda mask: jnp.array(True),
  )


def fan_in(axis: int | None = None) -> Pattern:
  """Makes the pattern of constant fan-in: the same for every output.

  Args:
    axis: The axis of outputs, among the axes of one layer; by default the axis
      that `roles` finds. All other axes are inputs.

  Returns:
    The pattern. Its budgets are multiples of the number of outputs.

  References:
    Lasby et al., Dynamic Sparse Training with Structured Sparsity,
    arXiv:2305.02299, 2023, section 3.

  Example:
    >>> print(fan_in().top_k(jnp.array([[1.0, 4.0], [2.0, 3.0]]), 2))
    [[False  True]
     [ True False]]
  """
  if axis is None:
    return base.by_features(fan_in, inputs=False)

  def fill(scores, k, keep, where):
    each = base.in_units(k, scores.shape[axis])
    new = select.top_k_of_each(
      scores, each - select.count_of_each(keep, axis), axis, where & ~keep
    )
    return keep | new

  def budget(shape, n):
    base.check_axis(shape, axis)
    return base.nearest_multiple(shape, n, shape[axis])

  return base.pattern_of(
    budget=budget,
    top_k=base.top_k(fill),
    swap=base.swap_of(fill),
    holds=lambda mask: jnp.ptp(select.count_of_each(mask, axis)) == 0,
    layout=FanIn() if axis == -1 else None,
    axis=axis,
  )
