"""The shapes that zeros may take.

A pattern says which masks are allowed, by how it picks the best of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from sparsejax import select


class Pattern(NamedTuple):
  """How active weights are picked.

  Attributes:
    top_k: `(scores, k, where) -> mask`: the k best-scored positions among the
      candidates `where`, all of one leaf's shape; see `select.top_k_mask`.
  """

  top_k: Callable[[jax.Array, jax.Array | int, jax.Array | None], jax.Array]


def unstructured() -> Pattern:
  """Any weight may be zero.

  Returns:
    The pattern.

  Example:
    >>> import jax.numpy as jnp
    >>> print(unstructured().top_k(jnp.array([1.0, 3.0, 2.0]), 2, None))
    [False  True  True]
  """
  return Pattern(top_k=select.top_k_mask)
