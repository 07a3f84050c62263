"""Quantization-aware training: the forward pass sees rounded weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax import roles
from sparsejax.linear import matmul
from sparsejax.masks import PyTree, path_name
from sparsejax.nodes import is_matrix, node
from sparsejax.quantize import products, rounding
from sparsejax.quantize.arrays import chosen
from sparsejax.roles import Prunable


def fake_quantize(
  params: PyTree,
  *,
  prunable: Prunable | None = None,
  group: int | None = None,
  nonzero: bool = False,
  dynamic: bool = False,
) -> PyTree:
  """Rounds weights to INT8 in the forward pass; gradients go straight through.

  Call it in the loss, on the params that the model runs with. It works with any
  algorithm, since `sparsejax.value_and_grad` passes `forward_params` to the
  loss. Zeros stay exactly 0. All weights, including zeros, get their gradients
  as if nothing was rounded. Scales follow the weights.

  Args:
    params: A pytree of arrays and of nodes that stand for matrices, such as
      packed and fine-tuned ones.
    prunable: Which of the arrays to round, as in `quantize`.
    group: How many neighbouring inputs share a scale; by default all inputs of
      an output, including the positions in a convolution's kernel.
    nonzero: As in `quantize.matrix`.
    dynamic: Whether products also round their inputs, token by token. Arrays
      then become nodes, for models that use `sparsejax.matmul`.

  Returns:
    The tree: arrays that `quantize` converts to integers without any error, and
    a `FakeQuantized` for each node.

  Raises:
    ValueError: If groups do not divide a leaf's inputs.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, arXiv:1712.05877, 2018, section 3.
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, arXiv:1308.3432, 2013, section 4.

  Example:
    >>> import optax, sparsejax
    >>> tx = sparsejax.static(optax.sgd(0.1), 0.5, key=jax.random.key(0))
    >>> w, state = sparsejax.init(tx, jnp.linspace(-1, 1, 64).reshape(8, 8))
    >>> def loss(w, x):
    ...   return jnp.sum(sparsejax.matmul(x, fake_quantize(w)) ** 2)
    >>> value_and_grad = sparsejax.value_and_grad(loss, tx)
    >>> value, grads = value_and_grad(w, state, jnp.ones((1, 8)))
    >>> updates, state = tx.update(grads, state, w)
    >>> sparsejax.check(optax.apply_updates(w, updates), state, tx)
  """

  def made(matrix: Any) -> Any:
    if matrix is None:
      return None
    return FakeQuantized(matrix, group, nonzero, dynamic)

  def leaf(w: jax.Array, role: roles.Role) -> Any:
    if dynamic:
      return made(w)
    return _rounded(w, role, group=group, nonzero=nonzero)

  leaves, treedef = jax.tree_util.tree_flatten_with_path(
    params, is_leaf=is_matrix
  )
  nodes = {path_name(path): x for path, x in leaves if is_matrix(x)}
  arrays = treedef.unflatten(None if is_matrix(x) else x for _, x in leaves)
  done = chosen(leaf, arrays, prunable)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: made(nodes.get(path_name(path))) if x is None else x,
    done,
    is_leaf=lambda x: x is None,
  )


@node("matrix", static=("group", "nonzero", "dynamic"))
class FakeQuantized:
  """A matrix that is rounded to INT8 in its product.

  Attributes:
    matrix: An array [..., in, out], or a node that stands for one.
    group: As in `fake_quantize`.
    nonzero: As in `fake_quantize`.
    dynamic: As in `fake_quantize`.
  """

  matrix: Any
  group: int | None
  nonzero: bool
  dynamic: bool

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix."""
    return self.matrix.shape

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype."""
    w = _dense(self.matrix)
    role = roles.Role("weight", (), (0,), (1,))
    w = _rounded(w, role, group=self.group, nonzero=self.nonzero)
    if self.dynamic:
      numbers, scale = products.rounded_tokens(x)
      x = _straight(x, (numbers * scale).astype(x.dtype))
    return x @ w.astype(x.dtype)


def _dense(matrix):
  """Makes the array of a node, whose gradient is the dense one."""
  if not is_matrix(matrix):
    return matrix
  if hasattr(matrix, "unpack"):
    return matrix.unpack()
  with jax.default_matmul_precision("highest"):
    return matmul(jnp.eye(matrix.shape[0]), matrix)


def _rounded(w, role, *, group, nonzero):
  """Rounds an array to multiples of its scales, straight through."""
  if group is not None and len(role.inputs) > 1:
    raise ValueError(
      f"got group={group} for inputs of several axes, {role.inputs}, wanted "
      "None: one scale for all inputs of an output"
    )
  axes = (*role.inputs, *role.spatial)
  largest = rounding.largest_along(w, axes, group=group)
  scale = rounding.for_largest(largest)
  if group is not None:
    scale = rounding.spread(scale, w.shape[axes[0]], axes[0])
  rounded = rounding.nearest(w, scale, nonzero=nonzero) * scale
  return _straight(w, rounded.astype(w.dtype))


def _straight(x, value):
  """Returns a value whose gradient goes to x: exactly, since x - x is 0."""
  return lax.stop_gradient(value) + (x - lax.stop_gradient(x))
