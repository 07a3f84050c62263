"""Refuses malformed packed arrays, such as from a damaged file."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import PyTree, path_name
from sparsejax.packed.arrays import is_packed, slots_shape
from sparsejax.packed.formats import Rows
from sparsejax.packed.structure import Structure
from sparsejax.quantize import is_quantized


def check(tree: PyTree) -> None:
  """Refuses malformed packed arrays, such as from a damaged file.

  Args:
    tree: A pytree with packed arrays, and matrices of INT8, not traced.

  Raises:
    ValueError: If a position is out of range or occurs twice, row pointers do
      not ascend, there are not as many values as positions, or integers and
      scales do not fit; with the key path.
  """

  def stored(x):
    return is_packed(x) or is_quantized(x)

  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=stored)
  for path, x in leaves:
    if not stored(x):
      continue
    try:
      _check_scales(x)
      if is_packed(x):
        _check_array(x.values, x.structure)
    except ValueError as error:
      name = path_name(path) or "the array"
      raise ValueError(
        f"{name}: {error}. Pack the dense array anew, or restore another copy"
      ) from error


def _check_scales(x):
  integers = jnp.issubdtype(x.values.dtype, jnp.integer)
  if x.scales is None and not integers:
    if x.dynamic:
      raise ValueError(
        f"got activations of int8 for values of {x.values.dtype}, wanted int8"
      )
    return
  if x.scales is None or x.values.dtype != jnp.int8:
    raise ValueError(
      f"got values of {x.values.dtype} "
      + ("without" if x.scales is None else "with")
      + " scales, wanted floats, or int8 with scales"
    )
  *stack, inputs, outputs = x.shape
  got = x.scales.shape
  if got[:-1] != (*stack, outputs) or inputs % got[-1]:
    raise ValueError(
      f"got scales of shape {got} for an array of shape {x.shape}, wanted "
      f"{(*stack, outputs)} and a number of groups that divides {inputs}"
    )
  if not np.all(np.isfinite(x.scales)):
    raise ValueError("got scales that are NaN or infinite, wanted finite ones")


def _check_array(values, structure):
  if jnp.ndim(values) > 1:
    for i in range(values.shape[0]):
      _check_array(values[i], jax.tree.map(lambda a, i=i: a[i], structure))
    return
  _check_structure(structure)
  slots = slots_shape(structure)
  if slots != np.shape(values):
    raise ValueError(f"got {np.shape(values)} values for {slots} slots")


def _check_structure(structure: Structure) -> None:
  """Refuses the structure of one array that is not the one of its mask."""
  if isinstance(structure, Rows):
    _check_rows(structure.pointers, structure.inputs, structure.sizes)
    if structure.back is None:
      return
  size = math.prod(structure.sizes)
  places, wanted = jax.device_get(_places_and_remade(structure))
  if np.any(places < 0):
    raise ValueError(f"got the place {places.min()}, wanted none below 0")
  used = places[places < size]
  if len(np.unique(used)) < len(used):
    raise ValueError("got a place twice, wanted every weight once")
  # What is left: an order that kernels and files do not know.
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(structure),
    jax.tree.leaves(wanted),
    strict=True,
  ):
    if not np.array_equal(got, want):
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      raise ValueError(
        f"got {name} that do not go with the other arrays, or are in another "
        "order than pack makes"
      )


@jax.jit
def _places_and_remade(structure):
  """Lists its places, and makes the structure of its mask anew."""
  return structure.places(), structure.moved(structure.mask())


def _check_rows(pointers, inputs, sizes):
  # By NumPy, since `places` of broken pointers may be anything.
  pointers, inputs = np.asarray(pointers), np.asarray(inputs)
  if pointers.shape != (sizes[1] + 1,):
    raise ValueError(
      f"got {pointers.shape} row pointers, wanted {(sizes[1] + 1,)}: one for "
      "each output, and the end"
    )
  if pointers[0] != 0 or np.any(np.diff(pointers) < 0):
    raise ValueError("got row pointers that do not ascend from 0")
  if pointers[-1] > len(inputs):
    raise ValueError(
      f"got row pointers up to {pointers[-1]}, wanted at most {len(inputs)}, "
      "the number of slots"
    )
  used = inputs[: pointers[-1]]
  if len(used) and used.max() >= sizes[0]:
    raise ValueError(f"got the place {used.max()}, wanted below {sizes[0]}")
  starts = np.zeros(len(used) + 1, bool)
  starts[pointers] = True
  if np.any((np.diff(used.astype(np.int64)) <= 0) & ~starts[1 : len(used)]):
    raise ValueError("got a row whose places do not ascend")
