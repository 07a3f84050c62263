"""The baselines of dynamic sparse training: dense nets, masks that stay."""

from typing import Any

import jax
import optax

from sparsejax import schedules, updates
from sparsejax.masks import PyTree
from sparsejax.transform import SparseTransformation, sparsify


def dense(inner: optax.GradientTransformation) -> SparseTransformation:
  """No zeros at all: the baseline, in the same loop as the others.

  Args:
    inner: Any optax optimizer.

  Returns:
    The gradient transformation; all its masks are the scalar True.
  """
  return fixed(inner, True)


def fixed(
  inner: optax.GradientTransformation, masks: PyTree
) -> SparseTransformation:
  """Trains the weights of a given mask, and no others.

  Args:
    inner: Any optax optimizer.
    masks: Bool arrays of the params' shapes, True where active, or the scalar
      True where a leaf is dense; a tree prefix will do.

  Returns:
    The gradient transformation. Its `init` raises a ValueError or a TypeError
    that names the leaf if masks and params do not fit.

  Example:
    >>> import jax.numpy as jnp, sparsejax
    >>> tx = fixed(optax.adam(1e-3), {"w": jnp.eye(3, dtype=bool), "b": True})
    >>> params = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}
    >>> params, state = sparsejax.init(tx, params)
    >>> int(params["w"].sum())
    3
  """
  return sparsify(inner, updates.fixed(masks), when=schedules.never, key=None)


def static(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  key: jax.Array,
  **options: Any,
) -> SparseTransformation:
  """Random masks that stay as they were drawn.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the masks.
    **options: As for `updates.static`.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If the sparsity is out of range.
  """
  update = updates.static(sparsity=sparsity, **options)
  return sparsify(inner, update, when=schedules.never, key=key)
