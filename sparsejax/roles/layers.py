"""Layers that are stacked in one leaf, each for itself."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.names import layer_path
from sparsejax.roles.base import Role


class LayerShape(tuple):
  """The shape of one layer, in which features of several axes count as one.

  Attributes:
    own: The layer's shape as it is.
    features: Where inputs and outputs are; None if that is not known.
  """

  own: tuple[int, ...]
  features: tuple[int, int] | None


def layer_shape(role: Role, shape: tuple[int, ...]) -> LayerShape:
  """Returns the shape of one layer of a leaf."""
  groups = _groups(role, merged=True)
  seen = LayerShape(math.prod(shape[a] for a in group) for group in groups)
  seen.own = tuple(shape[axis] for axis in role.layer_axes)
  seen.features = features(role)
  return seen


def features(role: Role) -> tuple[int, int] | None:
  """Returns where the inputs and outputs of one layer are.

  Args:
    role: The role.

  Returns:
    Their axes among those of a layer, in which features of several axes count
    as one, from the last one, which is -1; None if they are not known.
  """
  if not role.inputs or not role.outputs:
    return None
  groups = _groups(role, merged=True)
  count = len(groups)
  return groups.index(role.inputs) - count, groups.index(role.outputs) - count


def _groups(role, merged) -> list[tuple[int, ...]]:
  """Lists a layer's axes in their order, those of features together or not."""
  if not merged:
    return [(axis,) for axis in role.layer_axes]
  groups = [role.inputs, role.outputs, *((axis,) for axis in role.spatial)]
  return sorted(group for group in groups if group)


def layers(path: str, role: Role, shape: tuple[int, ...]) -> list[str]:
  """Lists the key paths of a leaf's layers; of a single one, the leaf's."""
  lengths = tuple(shape[axis] for axis in role.stacked)
  return [layer_path(path, index) for index in np.ndindex(*lengths)]


def budget_shape(role: Role, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape of the numbers of weights that a leaf's layers keep.

  Args:
    role: The leaf's role.
    shape: The leaf's shape.

  Returns:
    The lengths of stacked axes, and 1 for all others, so that such numbers
    broadcast to the leaf; () for a leaf that is a single layer.
  """
  if not role.stacked:
    return ()
  return tuple(n if a in role.stacked else 1 for a, n in enumerate(shape))


def shared_out(n: int, shape: tuple[int, ...]) -> np.ndarray:
  """Shares an integer out evenly; the first layers take what is left.

  Args:
    n: How many weights a leaf keeps.
    shape: That of `budget_shape`.

  Returns:
    int32 of that shape, which adds up to n.

  Example:
    >>> print(shared_out(7, (3, 1))[:, 0], shared_out(7, ()))
    [3 2 2] 7
  """
  count = math.prod(shape)
  order = np.arange(count).reshape(shape)
  return np.asarray(n // count + (order < n % count), np.int32)


def layers_first(
  x: jax.Array, role: Role, *, merged: bool = False
) -> jax.Array:
  """Puts the stacked axes of an array of a leaf's shape first.

  Args:
    x: The array.
    role: The leaf's role.
    merged: Whether features of several axes become one.

  Returns:
    The array, whose last axes are those of one layer.
  """
  groups = _groups(role, merged)
  order = (*role.stacked, *(axis for group in groups for axis in group))
  shape = jnp.shape(x)
  stack = (shape[axis] for axis in role.stacked)
  seen = (math.prod(shape[axis] for axis in group) for group in groups)
  return jnp.transpose(x, order).reshape(*stack, *seen)


def by_layer(
  function: Callable[..., Any], role: Role, *, merged: bool = False
) -> Callable[..., Any]:
  """Makes a function of one layer run on every layer that a leaf stacks.

  Args:
    function: Of arrays of one layer, to arrays of that shape and to scalars.
    role: The leaf's role.
    merged: Whether it sees features of several axes as one.

  Returns:
    The function of arrays of the leaf's shape, the first one among them; of
    arrays of `budget_shape`, of which a layer gets its number; and of others,
    which all layers get. Scalars come back in `budget_shape`. For a leaf that
    is one layer, and is seen as it is, that is the function itself.
  """
  several = max(len(role.inputs), len(role.outputs)) > 1
  if not role.stacked and not (merged and several):
    return function

  def each(first, *rest):
    shape = jnp.shape(first)
    numbers = budget_shape(role, shape)
    stack = tuple(shape[axis] for axis in role.stacked)
    axes = [axis for group in _groups(role, merged) for axis in group]
    order = (*role.stacked, *axes)

    def cut(x):
      """Puts layers first; returns whether there are any."""
      if x is None:
        return x, False
      counts = jnp.issubdtype(jnp.result_type(x), jnp.integer)
      if stack and counts and jnp.shape(x) == numbers:
        return jnp.transpose(x, order).reshape(stack), True
      if jnp.shape(x) == shape:
        return layers_first(x, role, merged=merged), True
      return x, False

    def put_back(x):
      if x.ndim > len(stack):
        x = x.reshape([shape[axis] for axis in order])
      elif stack:
        x = x.reshape([numbers[axis] for axis in order])
      else:
        return x
      return jnp.transpose(x, np.argsort(order))

    args, cuts = zip(*map(cut, (first, *rest)), strict=True)
    one = function
    for _ in stack:
      one = jax.vmap(one, [0 if is_cut else None for is_cut in cuts])
    return jax.tree.map(put_back, one(*args))

  return _of_any_sharding(each)


def _of_any_sharding(function):
  """Makes a function take arrays whose sharding is part of their type.

  XLA then chooses it inside. Arrays of the first one's shape come out with its
  sharding, others replicated.
  """

  def wrapped(first, *rest):
    sharding = jax.typeof(first).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
      return function(first, *rest)
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)),
      (first, *rest),
    )
    whole = jax.sharding.NamedSharding(
      sharding.mesh, jax.sharding.PartitionSpec()
    )
    out = jax.tree.map(
      lambda x: sharding if x.shape == first.shape else whole,
      jax.eval_shape(function, *shapes),
    )
    return jax.sharding.auto_axes(function, out_sharding=out)(first, *rest)

  return wrapped
