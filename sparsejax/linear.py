"""One product for every kind of matrix that a model may hold.

A model that multiplies by `matmul` does not know whether its kernels are
arrays, or pytree nodes that stand for matrices and hold them otherwise.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import kernels
from sparsejax.nodes import OutputsFirst, node

# Tokens up to which a dense matrix is left to the kernels, which are made for
# what comes from memory.
_FEW = 8


def matmul(x: jax.Array, w: Any) -> jax.Array:
  """Multiplies x by w, an array or a node that stands for a matrix.

  Args:
    x: Of shape [..., in], of floats.
    w: An array of shape [in, out]; or a pytree node, such as packed weights or
      a dense matrix plus a sparse change. A node needs an attribute `shape`,
      which is (in, out), and a method `matmul`, which multiplies x[..., in] by
      it and returns the product in x's dtype.

  Returns:
    The product, of shape [..., out] and of x's dtype, whatever the dtype of w.

  Raises:
    ValueError: If w is no matrix with as many rows as x has columns, or x does
      not hold floats.

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
  _check(x, w)
  if hasattr(w, "matmul"):
    return w.matmul(x)
  return x @ jnp.asarray(w, x.dtype)


def matmul_each(x: jax.Array, matrices: Sequence[Any]) -> list[jax.Array]:
  """Multiplies x by several matrices, with one kernel call where possible.

  Use it for the queries, keys and values of a layer, for example. A node that
  the CPU kernels can multiply has a method `masked`. It returns a
  `kernels.Masked`, or None if the kernels do not serve that many tokens. Arrays
  and all other nodes are multiplied one by one.

  Args:
    x: Of shape [..., in], of floats.
    matrices: Each as in `matmul`.

  Returns:
    The product with each matrix. Products and gradients have the same bits as
    those of `matmul`.

  Raises:
    ValueError: As in `matmul`.

  Example:
    >>> x = jnp.array([[1.0, 2.0]])
    >>> print(*matmul_each(x, [jnp.eye(2), jnp.ones((2, 3))]))
    [[1. 2.]] [[3. 3. 3.]]
  """
  for w in matrices:
    _check(x, w)
  is_masked = [_masked(w, x) is not None for w in matrices]
  if sum(is_masked) < 2:
    return [matmul(x, w) for w in matrices]
  masked = tuple(itertools.compress(matrices, is_masked))
  found = iter(
    lax.platform_dependent(x, masked, cpu=_by_one_call, default=_one_by_one)
  )
  return [
    next(found) if masked else matmul(x, w)
    for w, masked in zip(matrices, is_masked, strict=True)
  ]


def _masked(w, x):
  return w.masked(_tokens(x)) if hasattr(w, "masked") else None


def _tokens(x):
  return math.prod(x.shape[:-1])


def _one_by_one(x, matrices):
  return tuple(w.matmul(x) for w in matrices)


def _with_gradient_of(other, product):
  """Gives a product by a kernel the gradient of a function without one."""

  @jax.custom_vjp
  def differentiable(x, w):
    return product(x, w)

  def backward(saved, cotangent):
    _, pull = jax.vjp(other, *saved)
    return pull(cotangent)

  differentiable.defvjp(lambda x, w: (differentiable(x, w), (x, w)), backward)
  return differentiable


def _call(x, matrices):
  masked = [_masked(w, x) for w in matrices]
  found = kernels.multiply_each(x.astype(jnp.float32), masked)
  return tuple(y.astype(x.dtype) for y in found)


_by_one_call = _with_gradient_of(_one_by_one, _call)


@node("values")
class ByOutputs(OutputsFirst):
  """A dense matrix, or stacked ones, as kernels read it; for inference.

  To multiply one token by a bfloat16 matrix, the kernels need half the time
  that they need for a float32 one. Code that XLA compiles for CPUs takes many
  times as long.

  Attributes:
    values: [..., out, in], float32 or bfloat16.

  Example:
    >>> w = ByOutputs(jnp.array([[1, 2], [3, 4], [5, 6]], jnp.bfloat16))
    >>> print(w.shape, matmul(jnp.ones((1, 2)), w))
    (2, 3) [[ 3.  7. 11.]]
  """

  values: jax.Array

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype.

    Sums are in float32. Differentiable by x and by the values.
    """
    if self.masked(_tokens(x)) is None:
      return _by_floats(x, self)
    return lax.platform_dependent(x, self, cpu=_by_kernel, default=_by_floats)

  def masked(self, tokens: int) -> kernels.Masked | None:
    """Returns the matrix for `matmul_each`; None for many tokens."""
    if tokens > _FEW or not kernels.available():
      return None
    return kernels.Masked(self.values)

  def take(self, outputs: jax.Array) -> jax.Array:
    """Reads the weights [..., in] of some outputs, such as tokens."""
    return self.values[outputs]


def _by_floats(x, w):
  wide = jnp.float32
  y = jnp.einsum("...i,oi->...o", x.astype(wide), w.values.astype(wide))
  return y.astype(x.dtype)


_by_kernel = _with_gradient_of(_by_floats, lambda x, w: _call(x, (w,))[0])


def _check(x, w):
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
