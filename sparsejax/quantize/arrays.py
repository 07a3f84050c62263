"""Matrices of INT8, a pytree node that models take for their kernels."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import kernels, roles
from sparsejax.masks import PyTree, path_name
from sparsejax.nodes import OutputsFirst, node
from sparsejax.quantize import products, rounding
from sparsejax.roles import Prunable


@node("values", "scales", static=("dynamic",))
class Quantized(OutputsFirst):
  """A matrix, or stacked ones, of INT8; for inference.

  Zeros are exactly 0. The integers are stored transposed, as kernels read them
  and like the rows of an embedding. `shape` is the shape of the matrix,
  (..., in, out); `dtype` and `ndim` are those of the integers.

  Attributes:
    values: int8[..., out, in].
    scales: float32[..., out, groups]: the factor of the integers, for each
      output and group of neighbouring inputs.
    dynamic: Whether products also round their inputs to INT8, each token by its
      largest number, and add up integers.
  """

  values: jax.Array
  scales: jax.Array
  dynamic: bool = False

  @property
  def size(self) -> int:
    """The number of weights, zeros included."""
    return math.prod(self.shape)

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype.

    It is differentiable with respect to x and the scales; if `dynamic`, the
    gradient goes straight through the rounding of x.
    """
    return products.product(x, self.values, self.scales, dynamic=self.dynamic)

  def masked(self, tokens: int) -> kernels.Masked | None:
    """Returns the matrix for `sparsejax.matmul_each`; None if unsupported."""
    del tokens
    return products.masked(self.values, self.scales, dynamic=self.dynamic)

  def take(self, outputs: jax.Array) -> jax.Array:
    """Reads the weights of some outputs, such as an embedding's tokens.

    Args:
      outputs: int[...], in range.

    Returns:
      float32[..., in].
    """
    values, scales = self.values[outputs], self.scales[outputs]
    return rounding.multiples(values[..., None], scales[..., None, :])[..., 0]

  def dequantize(self) -> jax.Array:
    """Makes float32[..., in, out]."""
    return rounding.multiples(jnp.swapaxes(self.values, -1, -2), self.scales)


def is_quantized(x: Any) -> bool:
  """Tells whether `x` is a matrix of INT8."""
  return isinstance(x, Quantized)


def matrix(
  w: jax.Array,
  *,
  scales: jax.Array | None = None,
  group: int | None = None,
  nonzero: bool = False,
  dynamic: bool = False,
) -> Quantized:
  """Rounds one matrix, or stacked ones, to INT8.

  Args:
    w: [..., in, out].
    scales: float32[..., out, groups], such as those that `oneshot.sparsegpt`
      rounded with; `scales(w, group=group)` by default.
    group: How many neighbouring inputs share a scale; all by default.
    nonzero: Whether weights that are not 0 become at least 1 or -1, so that
      the non-zeros still show the mask. If not, a small weight may be rounded
      to 0. `packed.quantize` stores masks separately from values.
    dynamic: Whether products also round their inputs.

  Returns:
    The node.

  Raises:
    ValueError: If w is no matrix, or not finite, or groups do not divide its
      inputs.

  Example:
    >>> w = matrix(jnp.array([[127.0, 0.0], [-63.6, 8.0]]))
    >>> print(w.values)
    [[127 -64]
     [  0 127]]
    >>> import sparsejax
    >>> print(sparsejax.matmul(jnp.array([[1.0, 1.0]]), w))
    [[63.  8.]]
  """
  w = jnp.asarray(w)
  if scales is None:
    scales = rounding.scales(w, group=group)
  values = rounding.integers(w, scales, nonzero=nonzero)
  return Quantized(jnp.swapaxes(values, -1, -2), scales, dynamic)


def quantize(
  params: PyTree,
  *,
  prunable: Prunable | None = None,
  group: int | None = None,
  nonzero: bool = False,
  dynamic: bool = False,
) -> PyTree:
  """Rounds a model's matrices to INT8, for models that use `sparsejax.matmul`.

  Args:
    params: A pytree of dense arrays, which hold their zeros.
    prunable: `(path, leaf) -> bool`, or a regular expression: which leaves to
      round, as in the algorithms; by default the kernels of linear layers.
      They have to be [..., in, out].
    group: As in `matrix`.
    nonzero: As in `matrix`.
    dynamic: As in `matrix`.

  Returns:
    The params, with a `Quantized` for each of these leaves.

  Raises:
    ValueError: If a leaf is no matrix [..., in, out], or as in `matrix`; with
      the key path.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, arXiv:1712.05877, 2018; symmetric, as in
    Wu et al., Integer Quantization for Deep Learning Inference,
    arXiv:2004.09602, 2020, section 3.1.

  Example:
    >>> params = {"kernel": jnp.eye(3), "bias": jnp.ones(3)}
    >>> small = quantize(params)
    >>> print(small["kernel"].values.dtype, small["bias"].dtype)
    int8 float32
    >>> print(dequantize(small)["kernel"][0])
    [1. 0. 0.]
  """
  options = {"group": group, "nonzero": nonzero, "dynamic": dynamic}

  def leaf(w: jax.Array, role: roles.Role) -> Quantized:
    if (role.inputs, role.outputs, role.spatial) != (
      (w.ndim - 2,),
      (w.ndim - 1,),
      (),
    ):
      raise ValueError(
        f"got {roles.reading(role, w.shape)} in an array of shape {w.shape}, "
        "wanted a matrix [..., in, out]: leave it out by `prunable`, or say by "
        "roles.by_path what it is"
      )
    return matrix(w, **options)

  return chosen(leaf, params, prunable)


def dequantize(tree: PyTree) -> PyTree:
  """Turns all INT8 matrices in a tree into float32 arrays."""
  return jax.tree.map(
    lambda x: x.dequantize() if is_quantized(x) else x,
    tree,
    is_leaf=is_quantized,
  )


def chosen(function: Any, params: PyTree, prunable: Prunable | None) -> PyTree:
  """Maps a function of a leaf and its role over the leaves that are chosen."""
  found = roles.sparse(params, prunable)

  def leaf(path, w):
    name = path_name(path)
    if name not in found:
      return w
    try:
      return function(w, found[name])
    except ValueError as error:
      raise ValueError(f"{name or 'the array'}: {error}") from error

  return jax.tree_util.tree_map_with_path(leaf, params)
