"""The parts of pytree nodes that stand for weight matrices.

Such a node has `shape` and `matmul`, so `sparsejax.matmul` and models built on
it can use it as a kernel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp


def node(*data: str, static: tuple[str, ...] = ()):
  """Makes a class a dataclass and a pytree node of these fields."""

  def register(cls):
    cls = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(
      cls, data_fields=list(data), meta_fields=list(static)
    )

  return register


class Matrix(Protocol):
  """A pytree node that stands for a weight matrix: what `matmul` takes.

  If layers are stacked for a `lax.scan`, all of its arrays have a leading axis,
  and the body of the scan sees the node of one layer.

  Attributes:
    shape: (..., in, out).
  """

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix, (in, out), or of matrices stacked alike."""

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype."""


class OutputsFirst:
  """What nodes have in common that hold a dense matrix by its outputs.

  A base class: a node adds `values` [..., out, in], and `matmul`.
  """

  values: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix, (..., in, out)."""
    *stack, outputs, inputs = self.values.shape
    return (*stack, inputs, outputs)

  @property
  def dtype(self) -> jnp.dtype:
    """The dtype of the values."""
    return self.values.dtype

  @property
  def ndim(self) -> int:
    """The number of axes."""
    return self.values.ndim


def is_matrix(x: Any) -> bool:
  """Tells whether `x` is a node that stands for a matrix, as `Matrix` says."""
  # Asks the type and not `x`, as `masks.stands_for_mask` does.
  return hasattr(type(x), "matmul") and hasattr(type(x), "shape")


class Read(Protocol):
  """What a `Probe` does in the backward pass of one matrix."""

  def __call__(self, gradient: jax.Array, weights: Any, operands: Any) -> Any:
    """Reads something from a dense gradient.

    Args:
      gradient: The dense gradient, [in, out].
      weights: What the matrix's node holds: its base [in, out], or, in packed
        matrices, (values [slots], structure).
      operands: The arrays of the probe.

    Returns:
      A pytree of float arrays, of the shapes of the probe's zeros.
    """


@node("zeros", "operands", static=("read", "dense"))
class Probe:
  """What to read from a matrix's dense gradient while that gradient exists.

  Cotangents add up: if a loss multiplies by the matrix several times, the
  result is the sum of what is read in each product.

  Attributes:
    zeros: A pytree of float zeros; what is read becomes their cotangent.
    operands: A pytree of arrays that `read` needs.
    read: A `Read`.
    dense: The shape and dtype of the dense gradient, if `read` has to see the
      sum over all products at once because what it reads does not add up. None
      if `read` is linear in the gradient.
  """

  zeros: Any
  operands: Any
  read: Read
  dense: jax.ShapeDtypeStruct | None = None


def without_zeros(matrix: Any) -> Any:
  """Drops the zeros of a node's probe: the backward pass does not need them."""
  if matrix.probe is None:
    return matrix
  probe = dataclasses.replace(matrix.probe, zeros=None)
  return dataclasses.replace(matrix, probe=probe)


def cotangent(matrix: Any, found: Any, **fields: Any) -> Any:
  """Makes a node's cotangent.

  Args:
    matrix: The node.
    found: What its probe has read.
    **fields: The cotangents of its other fields.
  """
  probe = matrix.probe
  if probe is not None:
    probe = dataclasses.replace(probe, zeros=found, operands=None)
  return dataclasses.replace(matrix, probe=probe, **fields)


def each(function: Callable[..., Any], *, ndim: int = 2) -> Callable[..., Any]:
  """Maps a function of one matrix over matrices [..., in, out].

  One after the other, so that what is as large as a matrix is there once. The
  first argument may be another array of each matrix, which has `ndim` axes.
  """

  def stacked(first, *others):
    if first.ndim == ndim:
      return function(first, *others)
    return jax.lax.map(lambda xs: stacked(*xs), (first, *others))

  return stacked


def aligned(
  tree: Any, *others: Any, is_leaf: Callable[[Any], bool]
) -> tuple[list[tuple], Any]:
  """Lines trees up with one whose leaves are nodes.

  Args:
    tree: The tree.
    *others: Trees of its structure, or deeper ones.
    is_leaf: What is a leaf of `tree`.

  Returns:
    A row for each leaf: its path, the leaf, what each other tree has there; and
    the tree's definition.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  columns = [treedef.flatten_up_to(other) for other in others]
  rows = zip(flat, *columns, strict=True)
  return [(path, leaf, *more) for (path, leaf), *more in rows], treedef
