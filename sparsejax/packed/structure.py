"""Structures, which say where non-zeros are, and formats that make them."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from sparsejax import kernels
from sparsejax.nodes import each
from sparsejax.packed import matmul
from sparsejax.xla import zeros_after


class Structure(Protocol):
  """Where the non-zeros of an array, or of stacked arrays, are.

  A pytree node of integer arrays with a fixed number of slots. The shapes of
  these arrays do not depend on where the non-zeros are, so nothing is compiled
  again when masks change. A subclass implements `places` and `moved` for one
  array; everything else follows, also for leading axes on all arrays.

  Attributes:
    sizes: The array's shape; (in, out) for a matrix.
    ascending: Whether `places` ascend, in all structures of a class.
  """

  sizes: tuple[int, ...]
  ascending: ClassVar[bool] = False

  @abc.abstractmethod
  def places(self) -> jax.Array:
    """Lists the slots' indices in the flat array, row-major.

    Returns:
      int32[slots]; the array's size or more in unused slots.
    """

  @abc.abstractmethod
  def moved(self, mask: jax.Array) -> "Structure":
    """Makes the structure of another mask, with the same number of slots.

    Args:
      mask: bool[*sizes], with at most as many weights as there are slots. May
        be traced.
    """

  def expand(self, values: jax.Array) -> jax.Array:
    """Scatters values [..., slots] into zeros [..., *sizes]."""

    def one(values: jax.Array, structure: "Structure") -> jax.Array:
      flat = zeros_after(values, (math.prod(self.sizes),))
      flat = flat.at[structure.places()].set(
        values, mode="drop", indices_are_sorted=self.ascending
      )
      return flat.reshape(self.sizes)

    return each(one, ndim=1)(values, self)

  def gather(self, dense: jax.Array) -> jax.Array:
    """Gathers the values [..., slots] of an array [..., *sizes].

    They are 0 in unused slots.
    """

    def one(dense: jax.Array, structure: "Structure") -> jax.Array:
      flat = dense.reshape(-1).at[structure.places()]
      return flat.get(mode="fill", fill_value=0)

    return each(one, ndim=len(self.sizes))(dense, self)

  def mask(self) -> jax.Array:
    """Makes the mask, bool[..., *sizes]."""
    return self.expand(self.used())

  def __sparsejax_mask__(self) -> jax.Array:
    """Makes the mask for `sparsejax.get_masks`."""
    return self.mask()

  def product(self, x: jax.Array, packed: Any) -> jax.Array:
    """Multiplies `x [..., in]` by the `Packed` matrix of this structure."""
    return matmul.dense_product(x, packed)

  def masked(self, packed: Any) -> kernels.Masked | None:
    """Returns the matrix for `sparsejax.matmul_each`; None if unsupported."""
    del packed
    return None

  def used(self) -> jax.Array:
    """Marks the slots that are in use, bool[..., slots]."""
    leaf = jax.tree.leaves(self)[0]

    def one(leaf: jax.Array, structure: "Structure") -> jax.Array:
      del leaf
      return structure.places() < math.prod(self.sizes)

    return each(one, ndim=1)(leaf, self)


class Format(NamedTuple):
  """A way to store the positions of non-zeros.

  Attributes:
    name: Its name in files and messages.
    slots: `(mask) -> int`: how many slots a NumPy mask takes.
    place: `(mask, slots) -> Structure`, for a bool array, which may be traced.
    fits: `(mask) -> bool`: whether the format can store a NumPy mask.
    spare: Whether there may be more slots than a mask takes.
  """

  name: str
  slots: Callable[[np.ndarray], int]
  place: Callable[[jax.Array, int], Structure]
  fits: Callable[[np.ndarray], bool]
  spare: bool = False

  def structure(self, mask: np.ndarray, room: int = 0) -> Structure:
    """Makes the structure of a NumPy mask.

    Args:
      mask: bool, of the array's shape.
      room: How many slots to have at least, if the format can have spare ones.
    """
    slots = self.slots(mask)
    if self.spare:
      slots = max(slots, room)
    return jax.jit(self.place, static_argnums=1)(mask, slots)
