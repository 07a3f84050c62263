"""Baselines of dynamic sparse training: dense nets and fixed masks."""

import jax
import optax

from sparsejax import distributions, schedules, updates
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree
from sparsejax.patterns import Patterns
from sparsejax.transform import SparseTransformation, sparsify


def dense(inner: optax.GradientTransformation) -> SparseTransformation:
  """Trains all weights: the dense baseline, for the same training loop.

  Args:
    inner: Any optax optimizer.

  Returns:
    The gradient transformation; all its masks are the scalar True.
  """
  return fixed(inner, True)


def fixed(
  inner: optax.GradientTransformation, masks: PyTree
) -> SparseTransformation:
  """Trains the active weights of a mask, and no others.

  Args:
    inner: Any optax optimizer.
    masks: A tree of masks. Each is a bool array of its param's shape, True
      where a weight is active, or the scalar True for a leaf that stays dense.
      A tree prefix is enough.

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
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Patterns | None = None,
  masks: PyTree | None = None,
) -> SparseTransformation:
  """Trains under random masks that never change.

  Args:
    inner: Any optax optimizer.
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    key: PRNG key of the masks.
    distribution: How many weights each sparse leaf keeps.
    prunable: `(path, leaf) -> bool`: which leaves are sparse.
    pattern: The shape that zeros may take; any by default.
    masks: The initial masks, as in `updates.static`.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: If the sparsity is out of range.
  """
  update = updates.static(
    sparsity=sparsity,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
    masks=masks,
  )
  return sparsify(inner, update, when=schedules.never, key=key)
