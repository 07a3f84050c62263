"""What stands for a weight matrix in the forward pass while it is fine-tuned.

Each is a pytree node with `shape` and `matmul`, so that `sparsejax.matmul` and
the models built on it take it for a kernel. Leaves may have leading axes, of
layers that a `lax.scan` runs over. Where only some weights are trained, the
dense gradient of a matrix lives inside the backward pass of that one matrix.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.nodes import Probe, cotangent, each, node, without_zeros


class _OnBase:
  """What has the shape of its `base`."""

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix, or of matrices stacked alike."""
    return self.base.shape


@node("base", "deltas", "indices", "probe")
class Delta(_OnBase):
  """A matrix of which a few weights are trained.

  Attributes:
    base: The matrix, [..., in, out], the deltas already added.
    deltas: float32[..., k], whose gradient is that of these weights.
    indices: int32[..., k], their places in the flat matrix; those of unused
      slots are out of range.
    probe: What else to read off the dense gradient; None for nothing.
  """

  base: jax.Array
  deltas: jax.Array
  indices: jax.Array
  probe: Probe | None

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype."""
    return _product(x, self)

  def read(self, gradient: jax.Array) -> Any:
    """Lets the probe read off the dense gradients, [..., in, out]."""
    read = each(self.probe.read)
    return read(gradient, self.base, self.probe.operands)


@node("base", "down", "up", static=("scale",))
class LowRank(_OnBase):
  """A frozen matrix and a low-rank one beside it: base + scale x down @ up.

  Attributes:
    base: [..., in, out].
    down: [..., in, rank].
    up: [..., rank, out].
    scale: A factor.
  """

  base: jax.Array
  down: jax.Array
  up: jax.Array
  scale: float

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype."""
    down, up = (w.astype(x.dtype) for w in (self.down, self.up))
    return x @ self.base.astype(x.dtype) + (x @ down) @ up * self.scale


@node("base", "factors", static=("merge",))
class Merged(_OnBase):
  """A frozen matrix and trained factors, multiplied out in the forward pass.

  The product is not kept for the backward pass but made again.

  Attributes:
    base: [..., in, out].
    factors: A pytree of arrays.
    merge: `(base, factors) -> matrix`.
  """

  base: jax.Array
  factors: Any
  merge: Callable[[jax.Array, Any], jax.Array]

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype."""

    @jax.checkpoint
    def times(x, base, factors):
      return x @ self.merge(base, factors).astype(x.dtype)

    return times(x, jax.lax.stop_gradient(self.base), self.factors)


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a function of one matrix, which it changes, over stacked ones.

  As `nodes.each`, of a function that returns the changed matrix first. The
  changed matrices take the place of the old, where these are donated.
  """

  def stacked(matrix, *others):
    if matrix.ndim == 2:
      return function(matrix, *others)

    def one(matrices, x):
      i, others = x
      changed, *results = stacked(matrices[i], *others)
      return matrices.at[i].set(changed), results

    xs = (jnp.arange(matrix.shape[0]), others)
    matrix, results = jax.lax.scan(one, matrix, xs)
    return matrix, *results

  return stacked


def gather(matrix: jax.Array, indices: jax.Array) -> jax.Array:
  """Gathers the weights [k] at flat indices; 0 where out of range."""
  return matrix.reshape(-1).at[indices].get(mode="fill", fill_value=0)


def scatter(
  matrix: jax.Array, indices: jax.Array, values: jax.Array
) -> jax.Array:
  """Writes `values` [..., k] to flat indices of matrices [..., in, out].

  Places that are out of range are left out. Donated matrices are changed where
  they are: one after the other, since XLA would make one index of layer and
  place, and keep it beside all that a step holds.
  """
  flat = matrix.reshape(-1, math.prod(matrix.shape[-2:]))

  def one(flat, x):
    i, indices, values = x
    return flat.at[i, indices].set(values, mode="drop"), None

  indices, values = (
    a.reshape(len(flat), -1) for a in (indices, values.astype(matrix.dtype))
  )
  flat, _ = jax.lax.scan(one, flat, (jnp.arange(len(flat)), indices, values))
  return flat.reshape(matrix.shape)


def dense_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
  """Computes x^T g, the gradient [in, out] of a matrix, in float32.

  Args:
    x: [..., in], what it was multiplied by.
    g: [..., out], the gradient of the product.
  """
  x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
  return jax.lax.dot_general(
    x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
  )


def _read_gradient(x, g, indices):
  """Gathers the dense gradient at flat indices; 0 where out of range."""
  rows, columns = x.shape[-1], g.shape[-1]
  if rows <= columns:
    return gather(dense_gradient(x, g), indices)
  # A tall product takes XLA's CPU backend longer than its transpose.
  row, column = jnp.divmod(indices, columns)
  return dense_gradient(g, x).at[column, row].get(mode="fill", fill_value=0)


def gradient_of_input(g: jax.Array, matrix: jax.Array) -> jax.Array:
  """Computes g W^T, [..., in], of g's dtype."""
  return g @ matrix.astype(g.dtype).T


@jax.custom_vjp
def _product(x, delta):
  return x @ delta.base.astype(x.dtype)


def _product_forward(x, delta):
  kept = dataclasses.replace(without_zeros(delta), deltas=None)
  return _product(x, delta), (x, kept)


def _product_backward(saved, g):
  x, delta = saved
  found = None
  if delta.probe is None:
    deltas = _read_gradient(x, g, delta.indices)
  else:
    dense = dense_gradient(x, g)
    deltas = gather(dense, delta.indices)
    found = delta.read(dense)
  of_delta = cotangent(delta, found, base=None, deltas=deltas, indices=None)
  return gradient_of_input(g, delta.base), of_delta


_product.defvjp(_product_forward, _product_backward)
