"""OWL: layers with more outliers keep more weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.distributions import check_sparsity
from sparsejax.masks import PyTree
from sparsejax.oneshot import calibration

_HALVINGS = 100  # of an interval no longer than 2, down to rounding


def outliers(scores: PyTree, *, threshold: float = 5.0) -> jax.Array:
  """Computes the share of a layer's scores that lie far above their mean.

  Args:
    scores: Array or pytree of arrays, such as the `wanda` scores of all kernels
      of a transformer block, which the authors treat as one layer.
    threshold: M: an outlier is a score larger than M times the mean of all
      scores.

  Returns:
    A float32 scalar from 0 to 1. Inside `jax.jit` and `jax.vmap` it is NaN if
    a score is not finite.

  Raises:
    ValueError: If there is no score, one is not finite, or the threshold is not
      a number.

  References:
    Yin et al., Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce
    for Pruning LLMs to High Sparsity, arXiv:2310.05175, 2024; its released
    code.

  Example:
    >>> print(outliers({"a": jnp.ones((3, 3)), "b": jnp.array([[99.0]])}))
    0.1
  """
  leaves = [jnp.asarray(x) for x in jax.tree.leaves(scores)]
  size = sum(x.size for x in leaves)
  if np.isnan(threshold):
    raise ValueError(f"got threshold={threshold}, wanted a number")
  if size == 0:
    raise ValueError("got no scores, wanted those of a layer's kernels")
  hint = "see the weights, and the statistics of their inputs"
  finite = [calibration.check_finite(x, "the scores", hint) for x in leaves]
  # By rows first: one sum of millions of float32 numbers would round too often.
  sums = [jnp.sum(jnp.sum(x, -1, dtype=jnp.float32)) for x in leaves]
  limit = threshold * sum(sums) / size
  above = [jnp.sum(x > limit, dtype=jnp.int32) for x in leaves]
  share = sum(n / size for n in above)
  return jnp.where(jnp.all(jnp.stack(finite)), share, jnp.nan)


def owl_densities(
  shares: Sequence[float],
  sparsity: float,
  *,
  sizes: Sequence[int] | None = None,
  deviation: float = 0.08,
) -> np.ndarray:
  """Computes the density of each layer; more outliers give a higher density.

  The densities are the shares of outliers, stretched to a range of twice the
  deviation, and shifted to the wanted mean. A density below 0 or above 1 is
  clipped, and the others are shifted further to make up for it.

  Args:
    shares: The share of outliers of each layer, from `outliers`. In the paper a
      layer is a transformer block. Not traced, since budgets are computed on
      the host.
    sparsity: The share of zeros over all layers together, in [0, 1).
    sizes: Number of weights of each layer, all the same by default.
    deviation: lambda, half the difference between the highest and the lowest
      density.

  Returns:
    A float64 array [layers] from 0 to 1. Its mean, weighted by the sizes, is
    1 - sparsity. All are the same if all shares are.

  Raises:
    ValueError: If the shares are not one finite number per layer, the sizes are
      not one positive number per layer, the sparsity is out of range or the
      deviation is negative.

  References:
    Yin et al., Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce
    for Pruning LLMs to High Sparsity, arXiv:2310.05175, 2024; its released
    code.

  Example:
    >>> print(owl_densities([0.01, 0.03, 0.02], 0.7).round(6))
    [0.22 0.38 0.3 ]
  """
  shares = np.asarray(shares, np.float64)
  if shares.ndim != 1 or not shares.size or not np.isfinite(shares).all():
    raise ValueError(
      f"got the shares {shares.tolist()}, wanted one finite number for each "
      "layer"
    )
  weights = np.ones(shares.shape) if sizes is None else np.asarray(sizes)
  positive = np.all((weights > 0) & (weights < np.inf))
  if weights.shape != shares.shape or not positive:
    raise ValueError(
      f"got the sizes {weights.tolist()}, wanted a positive number for each of "
      f"{shares.size} layers"
    )
  if not 0 <= deviation < np.inf:
    raise ValueError(f"got deviation={deviation}, wanted a number, at least 0")
  wanted = float(1 - check_sparsity(sparsity))
  span = np.ptp(shares)
  rated = (shares - shares.min()) * (2 * deviation / span if span else 0)
  # The mean rises with the shift, from 0 at the lower end to 1 at the upper.
  low, high = -rated.max(), 1.0
  for _ in range(_HALVINGS):
    shift = (low + high) / 2
    mean = np.average(np.clip(rated + shift, 0, 1), weights=weights)
    low, high = (shift, high) if mean < wanted else (low, shift)
  return np.clip(rated + shift, 0, 1)
