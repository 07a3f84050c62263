"""Formats of places: linear indices, row pointers, constant fan-in, bits."""

import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import places, unpack_bits
from sparsejax.nodes import node
from sparsejax.packed import matmul
from sparsejax.packed.structure import Format, Structure

Formats = Callable[[str, np.ndarray], Format]

# Inputs are uint16, and the last of them says that a slot is not used.
MOST_INPUTS = 2**16 - 1


def slots_by_eight(mask: np.ndarray) -> int:
  """Counts the slots of a mask, and some more up to a multiple of eight."""
  # XLA's CPU backend takes half as long again for odd lengths.
  return max(8, 8 * -(-int(mask.sum()) // 8))


@node("indices", static=("sizes",))
class Flat(Structure):
  """Linear indices, ascending.

  Attributes:
    indices: int32[slots].
    sizes: The array's shape.
  """

  indices: jax.Array
  sizes: tuple[int, ...]
  ascending: ClassVar[bool] = True

  def places(self) -> jax.Array:
    """Returns the indices, int32[slots]."""
    return self.indices

  def moved(self, mask: jax.Array) -> "Flat":
    """Makes the structure of another mask, with the same number of slots."""
    return flat().place(mask, self.indices.shape[-1])


def flat() -> Format:
  """Makes the format of linear indices: four bytes a weight, for any shape."""

  def place(mask: jax.Array, slots: int) -> Structure:
    return Flat(places(mask, slots), mask.shape)

  return Format(
    "flat", slots_by_eight, place, lambda mask: mask.size < 2**31, True
  )


@node("pointers", "outputs", "slots")
class Back:
  """A matrix's slots by inputs, for the gradient of the activations.

  Attributes:
    pointers: int32[in + 1]: input i has the entries from pointers[i] on.
    outputs: uint16[slots].
    slots: int32[slots]: the slot of each entry.
  """

  pointers: jax.Array
  outputs: jax.Array
  slots: jax.Array


@node("pointers", "inputs", "back", static=("sizes", "kernel"))
class Rows(Structure):
  """Row pointers and short columns: the inputs of one output after another.

  Attributes:
    pointers: int32[out + 1]: the slots of output o begin at pointers[o].
    inputs: uint16[slots]: the input of each slot.
    back: The slots sorted by inputs, or None.
    sizes: (in, out).
    kernel: Whether products use the kernels.
  """

  pointers: jax.Array
  inputs: jax.Array
  back: Back | None
  sizes: tuple[int, int]
  kernel: bool

  def places(self) -> jax.Array:
    """Lists the slots' indices in the flat matrix, int32[slots]."""
    slots = jnp.arange(self.inputs.shape[0], dtype=jnp.int32)
    output = jnp.searchsorted(self.pointers, slots, side="right") - 1
    found = self.inputs.astype(jnp.int32) * self.sizes[1] + output
    return jnp.where(output < self.sizes[1], found, math.prod(self.sizes))

  def moved(self, mask: jax.Array) -> "Rows":
    """Makes the structure of another mask, with the same number of slots."""
    form = rows(kernel=self.kernel, back=self.back is not None)
    return form.place(mask, self.inputs.shape[-1])

  def product(self, x: jax.Array, packed) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix, with the kernels if `kernel`."""
    by = matmul.kernel_product if self.kernel else matmul.dense_product
    return by(x, packed)

  def used(self) -> jax.Array:
    """Marks the slots that are in use, bool[..., slots]."""
    slots = jnp.arange(self.inputs.shape[-1], dtype=jnp.int32)
    return slots < self.pointers[..., -1:]


def rows(*, kernel: bool = False, back: bool = False) -> Format:
  """Makes the format of row pointers and two bytes a weight, for matrices.

  Args:
    kernel: Whether products use the kernels.
    back: Whether to store what the kernel for the gradient of activations
      needs as well: six more bytes a weight.
  """

  def place(mask: jax.Array, slots: int) -> Structure:
    turned = mask.T
    at = places(turned, slots)
    pointers, inputs = by_rows(turned, at)
    backwards = None
    if back:
      entries = places(mask, slots)
      back_pointers, outputs = by_rows(mask, entries)
      backwards = Back(
        back_pointers, outputs.astype(jnp.uint16), slots_of(mask, at, entries)
      )
    inputs = inputs.astype(jnp.uint16)
    return Rows(pointers, inputs, backwards, mask.shape, kernel)

  def fits(mask: np.ndarray) -> bool:
    return mask.ndim == 2 and max(mask.shape) <= MOST_INPUTS

  return Format("rows", slots_by_eight, place, fits, True)


def by_rows(mask: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Finds row pointers, and the columns of flat places in a mask.

  Args:
    mask: bool[rows, columns].
    at: int32[n]: its `places`.

  Returns:
    int32[rows + 1]: row r has the places from there on; and int32[n], 0 in
    slots that are not used.
  """
  # Not by counting the mask, which XLA would make integers of beforehand. A
  # mask may have more than there are slots; whoever moves masks asks.
  rows, width = mask.shape
  starts = width * jnp.arange(rows + 1, dtype=jnp.int32)
  pointers = jnp.searchsorted(at, starts).astype(jnp.int32)
  return pointers, jnp.where(at < mask.size, at % width, 0)


def slots_of(mask: jax.Array, at: jax.Array, entries: jax.Array) -> jax.Array:
  """Finds the slot of each weight of a mask, where slots go by columns.

  Args:
    mask: bool[rows, columns].
    at: int32[n]: the places of the mask turned over, by which slots go.
    entries: int32[n]: the places of the mask.

  Returns:
    int32[n]: the slot of each of the entries; 0 where there is none.
  """
  # The number of each slot, laid out in the matrix turned over.
  numbers = jnp.zeros(mask.size, jnp.int32)
  number = jnp.arange(at.shape[0], dtype=jnp.int32)
  numbers = numbers.at[at].set(number, mode="drop")
  row, column = jnp.divmod(entries, mask.shape[1])
  turned = column * mask.shape[0] + row
  there = jnp.where(entries < mask.size, turned, mask.size)
  return numbers.at[there].get(mode="fill", fill_value=0)


@node("inputs", static=("sizes",))
class FanIn(Structure):
  """The inputs of each output, equally many for every output.

  Attributes:
    inputs: uint16[out * fan]; 65535 in unused slots.
    sizes: (in, out).
  """

  inputs: jax.Array
  sizes: tuple[int, int]

  def places(self) -> jax.Array:
    """Lists the slots' indices in the flat matrix, int32[slots]."""
    inputs = self.inputs.astype(jnp.int32).reshape(self.sizes[1], -1)
    outputs = jnp.arange(self.sizes[1], dtype=jnp.int32)[:, None]
    found = inputs * self.sizes[1] + outputs
    size = math.prod(self.sizes)
    return jnp.where(inputs < self.sizes[0], found, size).reshape(-1)

  def moved(self, mask: jax.Array) -> "FanIn":
    """Makes the structure of another mask, with the same number of slots."""
    return fan_in().place(mask, self.inputs.shape[-1])


def fan_in() -> Format:
  """Makes the format of constant fan-in: two bytes a weight, for matrices."""

  def slots(mask: np.ndarray) -> int:
    return max(1, int(mask.sum(axis=0).max())) * mask.shape[1]

  def place(mask: jax.Array, slots: int) -> Structure:
    inputs, outputs = mask.shape
    found = jax.vmap(lambda m: places(m, slots // outputs))(mask.T)
    found = jnp.where(found < inputs, found, MOST_INPUTS)
    return FanIn(found.reshape(-1).astype(jnp.uint16), mask.shape)

  def fits(mask: np.ndarray) -> bool:
    return (
      mask.ndim == 2
      and max(mask.shape) <= MOST_INPUTS
      and np.ptp(mask.sum(axis=0)) == 0
    )

  return Format("fan_in", slots, place, fits)


@node("bits", static=("sizes", "count"))
class Bits(Structure):
  """One bit for every weight.

  Attributes:
    bits: uint8[ceil(size / 8)], as from `masks.pack_bits`.
    sizes: The array's shape.
    count: How many slots there are.
  """

  bits: jax.Array
  sizes: tuple[int, ...]
  count: int

  def places(self) -> jax.Array:
    """Lists the slots' indices in the flat array, int32[slots]."""
    like = jax.ShapeDtypeStruct((math.prod(self.sizes),), bool)
    return places(unpack_bits(self.bits, like), self.count)

  def moved(self, mask: jax.Array) -> "Bits":
    """Makes the structure of another mask, with the same number of slots."""
    return bits().place(mask, self.count)


def bits() -> Format:
  """Makes the format of a bit for every weight, zero or not; for any shape.

  It is the smallest format above a density of 1/16, but every product first has
  to find the positions of the non-zeros.
  """

  def place(mask: jax.Array, slots: int) -> Structure:
    return Bits(jnp.packbits(mask.reshape(-1)), mask.shape, slots)

  return Format(
    "bits", slots_by_eight, place, lambda mask: mask.size < 2**31, True
  )


def fitting(mask: np.ndarray, *, wanted: tuple[Format, ...] = ()) -> Format:
  """Chooses the first format that fits a mask.

  Args:
    mask: A NumPy mask.
    wanted: Formats to try before `rows` and `flat`, one of which always fits.
  """
  for choice in (*wanted, rows(), flat()):
    if choice.fits(mask):
      return choice
  raise ValueError(
    f"got an array of shape {mask.shape}, wanted less than 2**31 elements: "
    "leave it dense, or split it along its first axis"
  )


def format_of(
  formats: Format | Formats | None, name: str, mask: np.ndarray
) -> Format:
  """Chooses the format of a leaf, and checks that it fits.

  Args:
    formats: A format, or `(path, mask) -> format`; None for `fitting`.
    name: The leaf's key path.
    mask: Its NumPy mask.

  Raises:
    ValueError: If the mask cannot be stored so.
  """
  if formats is None:
    return fitting(mask)
  form = formats if isinstance(formats, Format) else formats(name, mask)
  if not form.fits(mask):
    raise ValueError(
      f"{name}: the mask of shape {mask.shape} cannot be stored as "
      f"{form.name}: leave `formats` out, or give flat(), which fits any"
    )
  return form


def stacked(format: Format) -> Format:
  """Makes a format of matrices that are stacked, for a `lax.scan` over them.

  Args:
    format: The format of one matrix. All get as many slots as the fullest.

  Returns:
    The format of arrays with one more leading axis.
  """

  def slots(mask: np.ndarray) -> int:
    return max(format.slots(m) for m in mask)

  def place(mask: jax.Array, slots: int) -> Structure:
    return jax.vmap(lambda m: format.place(m, slots))(mask)

  def fits(mask: np.ndarray) -> bool:
    return mask.ndim > 2 and all(format.fits(m) for m in mask)

  return Format(f"stacked_{format.name}", slots, place, fits)
