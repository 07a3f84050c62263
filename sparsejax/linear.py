"""One product for every kind of matrix that a model may hold.

A model that multiplies by `matmul` does not know whether its kernels are
arrays, or pytree nodes that stand for matrices and hold them otherwise.
"""

from typing import Any

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: Any) -> jax.Array:
  """Multiplies x by w, an array or a node that stands for a matrix.

  Args:
    x: Of shape [..., in], of floats.
    w: An array of shape [in, out]; or a pytree node that has `shape`, which is
      (in, out), and a method `matmul`, which returns the product of x[..., in]
      with it, of x's dtype: packed weights, say, or a dense matrix plus a
      sparse change.

  Returns:
    The product, of shape [..., out] and of x's dtype, whatever the dtype in
    which w is kept.

  Raises:
    ValueError: If w is no matrix of as many rows as x has columns, or x is not
      of floats.

  Example:
    >>> from typing import NamedTuple
    >>> class Diagonal(NamedTuple):
    ...   entries: jax.Array
    ...   @property
    ...   def shape(self):
    ...     return self.entries.shape * 2
    ...   def matmul(self, x):
    ...     return x * self.entries.astype(x.dtype)
    >>> x = jnp.array([[1.0, 2.0]])
    >>> print(matmul(x, jnp.array([[1, 3, 0], [0, 1, 2]])))
    [[1. 5. 4.]]
    >>> print(matmul(x, Diagonal(jnp.array([3, 4]))))
    [[3. 8.]]
  """
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    raise ValueError(
      f"got x of {x.dtype}, to which the weights would be rounded; wanted "
      "floats"
    )
  if len(w.shape) != 2 or x.shape[-1:] != w.shape[:1]:
    raise ValueError(
      f"got x of shape {x.shape} and w of shape {w.shape}, wanted "
      "[..., in] and [in, out]. Packed layers that one array stacks are made "
      "dense before a loop over them: w.unpack()"
    )
  if hasattr(w, "matmul"):
    return w.matmul(x)
  return x @ jnp.asarray(w, x.dtype)
