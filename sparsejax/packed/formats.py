"""How the places of a matrix's non-zeros are stored.

A structure is a pytree node of integer arrays whose shapes do not depend on
where the non-zeros are, so that nothing is compiled anew when they move. It has
a fixed number of slots; `places()` says where in the flat array each one is,
and is out of range for slots that are not used. All else follows from that.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import places, unpack_bits
from sparsejax.nodes import each, node
from sparsejax.packed import matmul

# Inputs are uint16, and the last of them says that a slot is not used.
MOST_INPUTS = 2**16 - 1


class Structure:
  """What all structures can do, by what each of them has.

  That is `sizes`, the array's shape; `places()`, int32[slots] in the flat
  array, its size or more in slots that are not used; and `moved(mask)`, the
  same format and slots for another mask. Structures of matrices stacked alike
  have leading axes on all arrays.
  """

  def expand(self, values: jax.Array) -> jax.Array:
    """The array [..., *sizes] that has these values [..., slots], and zeros."""

    def one(values, structure):
      flat = jnp.zeros(math.prod(self.sizes), values.dtype)
      flat = flat.at[structure.places()].set(values, mode="drop")
      return flat.reshape(self.sizes)

    return each(one, ndim=1)(values, self)

  def gather(self, dense: jax.Array) -> jax.Array:
    """The values [..., slots] of an array; 0 in slots that are not used."""

    def one(dense, structure):
      flat = dense.reshape(-1).at[structure.places()]
      return flat.get(mode="fill", fill_value=0)

    return each(one, ndim=len(self.sizes))(dense, self)

  def mask(self) -> jax.Array:
    """Where the slots are, a bool array [..., *sizes]."""
    return self.expand(self.used())

  def __sparsejax_mask__(self) -> jax.Array:
    """The mask that it stands for, as `sparsejax.get_masks` asks."""
    return self.mask()

  def product(self, x: jax.Array, packed) -> jax.Array:
    """`x [..., in]` times the `Packed` matrix of this structure."""
    return matmul.dense_product(x, packed)

  def used(self) -> jax.Array:
    """Which slots are used, bool [..., slots]."""
    leaf = jax.tree.leaves(self)[0]

    def one(leaf, structure):
      del leaf
      return structure.places() < math.prod(self.sizes)

    return each(one, ndim=1)(leaf, self)


class Format(NamedTuple):
  """A way to store places.

  Attributes:
    name: The word for it, in files and messages.
    slots: `(mask) -> int`: how many slots a NumPy mask takes.
    place: `(mask, slots) -> Structure`, of a bool array, which may be traced.
    fits: `(mask) -> bool`: whether a NumPy mask can be stored so.
    spare: Whether there may be more slots than a mask takes.
  """

  name: str
  slots: Callable[[np.ndarray], int]
  place: Callable[[jax.Array, int], Structure]
  fits: Callable[[np.ndarray], bool]
  spare: bool = False


def _eights(mask):
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

  def places(self) -> jax.Array:
    """The indices."""
    return self.indices

  def moved(self, mask: jax.Array) -> "Flat":
    """The same for another mask."""
    return flat().place(mask, self.indices.shape[-1])


def flat() -> Format:
  """Linear indices: four bytes each, for arrays of any shape."""

  def place(mask, slots):
    return Flat(places(mask, slots), mask.shape)

  return Format("flat", _eights, place, lambda mask: mask.size < 2**31, True)


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
    pointers: int32[out + 1]: output o has the slots from pointers[o] on.
    inputs: uint16[slots].
    back: The same by inputs; None without.
    sizes: (in, out).
    kernel: Whether products are for the kernels.
  """

  pointers: jax.Array
  inputs: jax.Array
  back: Back | None
  sizes: tuple[int, int]
  kernel: bool

  def places(self) -> jax.Array:
    """int32[slots], in the flat matrix."""
    slots = jnp.arange(self.inputs.shape[0], dtype=jnp.int32)
    output = jnp.searchsorted(self.pointers, slots, side="right") - 1
    found = self.inputs.astype(jnp.int32) * self.sizes[1] + output
    return jnp.where(output < self.sizes[1], found, math.prod(self.sizes))

  def moved(self, mask: jax.Array) -> "Rows":
    """The same for another mask."""
    form = rows(kernel=self.kernel, back=self.back is not None)
    return form.place(mask, self.inputs.shape[-1])

  def product(self, x: jax.Array, packed) -> jax.Array:
    """`x [..., in]` times the matrix, by the kernels if it is for them."""
    by = matmul.kernel_product if self.kernel else matmul.dense_product
    return by(x, packed)

  def used(self) -> jax.Array:
    """Which slots are used, bool [..., slots]."""
    slots = jnp.arange(self.inputs.shape[-1], dtype=jnp.int32)
    return slots < self.pointers[..., -1:]


def rows(*, kernel: bool = False, back: bool = False) -> Format:
  """Row pointers and two bytes a weight, for matrices.

  Args:
    kernel: Whether products are for the kernels.
    back: Whether to store what the kernel for the gradient of activations
      needs besides: six bytes a weight.
  """

  def place(mask, slots):
    turned = mask.T
    at = places(turned, slots)
    pointers, inputs = _by_rows(turned, at)
    backwards = None
    if back:
      entries = places(mask, slots)
      # The number of each slot, laid out in the matrix turned over.
      numbers = jnp.zeros(mask.size, jnp.int32)
      number = jnp.arange(slots, dtype=jnp.int32)
      numbers = numbers.at[at].set(number, mode="drop")
      i, o = jnp.divmod(entries, mask.shape[1])
      there = jnp.where(entries < mask.size, o * mask.shape[0] + i, mask.size)
      slot = numbers.at[there].get(mode="fill", fill_value=0)
      backwards = Back(*_by_rows(mask, entries), slot)
    return Rows(pointers, inputs, backwards, mask.shape, kernel)

  def fits(mask):
    return mask.ndim == 2 and max(mask.shape) <= MOST_INPUTS

  return Format("rows", _eights, place, fits, True)


def _by_rows(mask, at):
  """Row pointers, and the columns of flat places in a mask."""
  # Not by counting the mask, which XLA would make integers of beforehand. A
  # mask may have more than there are slots; whoever moves masks asks.
  rows, width = mask.shape
  starts = width * jnp.arange(rows + 1, dtype=jnp.int32)
  pointers = jnp.searchsorted(at, starts).astype(jnp.int32)
  columns = jnp.where(at < mask.size, at % width, 0)
  return pointers, columns.astype(jnp.uint16)


@node("inputs", static=("sizes",))
class FanIn(Structure):
  """The inputs of each output, as many for every one.

  Attributes:
    inputs: uint16[out * fan]; 65535 in slots that are not used.
    sizes: (in, out).
  """

  inputs: jax.Array
  sizes: tuple[int, int]

  def places(self) -> jax.Array:
    """int32[slots], in the flat matrix."""
    inputs = self.inputs.astype(jnp.int32).reshape(self.sizes[1], -1)
    outputs = jnp.arange(self.sizes[1], dtype=jnp.int32)[:, None]
    found = inputs * self.sizes[1] + outputs
    size = math.prod(self.sizes)
    return jnp.where(inputs < self.sizes[0], found, size).reshape(-1)

  def moved(self, mask: jax.Array) -> "FanIn":
    """The same for another mask."""
    return fan_in().place(mask, self.inputs.shape[-1])


def fan_in() -> Format:
  """Constant fan-in: two bytes a weight, for matrices."""

  def slots(mask):
    return max(1, int(mask.sum(axis=0).max())) * mask.shape[1]

  def place(mask, slots):
    inputs, outputs = mask.shape
    found = jax.vmap(lambda m: places(m, slots // outputs))(mask.T)
    found = jnp.where(found < inputs, found, MOST_INPUTS)
    return FanIn(found.reshape(-1).astype(jnp.uint16), mask.shape)

  def fits(mask):
    return (
      mask.ndim == 2
      and max(mask.shape) <= MOST_INPUTS
      and np.ptp(mask.sum(axis=0)) == 0
    )

  return Format("fan_in", slots, place, fits)


@node("codes", static=("sizes", "n", "m", "axis"))
class NOfM(Structure):
  """N:M: for each weight its place among m neighbours, in two bits.

  Attributes:
    codes: uint8[ceil(slots / 4)], the first of each four in the lowest bits.
    sizes: The array's shape.
    n: How many of m are stored; some of them may be beyond the array's end.
    m: Of how many, at most 4.
    axis: The axis of neighbours; slots lie group by group, with the groups of
      a line after each other, and lines in the order of the other axes.
  """

  codes: jax.Array
  sizes: tuple[int, ...]
  n: int
  m: int
  axis: int

  def places(self) -> jax.Array:
    """int32[slots], in the flat array."""
    length = self.sizes[self.axis]
    groups = -(-length // self.m)
    lines = math.prod(self.sizes) // length
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8)
    codes = (self.codes[:, None] >> shifts & 3).reshape(-1)
    codes = codes[: lines * groups * self.n].astype(jnp.int32)
    codes = codes.reshape(lines, groups, self.n)
    along = codes + self.m * jnp.arange(groups, dtype=jnp.int32)[:, None]
    stride = math.prod(self.sizes[self.axis + 1 :])
    line = jnp.arange(lines, dtype=jnp.int32)[:, None, None]
    first = line // stride * (stride * length) + line % stride
    found = jnp.where(
      along < length, first + along * stride, math.prod(self.sizes)
    )
    return found.reshape(-1)

  def moved(self, mask: jax.Array) -> "NOfM":
    """The same for another mask."""
    form = n_of_m(self.n, self.m, self.axis - len(self.sizes))
    return form.place(mask, self.places().shape[-1])


def n_of_m(n: int, m: int, axis: int = -2) -> Format:
  """N:M with m up to 4: two bits a weight.

  Args:
    n: How many of m neighbours are there.
    m: Of how many.
    axis: The axis of neighbours: that of inputs, in Flax's layers.
  """

  def slots(mask):
    length = mask.shape[axis]
    return mask.size // length * -(-length // m) * n

  def grouped(mask, xp):
    lines = xp.moveaxis(mask, axis, -1)
    short = -lines.shape[-1] % m
    pad = [(0, 0)] * (mask.ndim - 1) + [(0, short)]
    beyond = xp.pad(xp.zeros(lines.shape[-1], bool), (0, short), **ones)
    return xp.pad(lines, pad).reshape(-1, m), beyond.reshape(-1, m)

  ones = {"constant_values": True}

  def place(mask, slots):
    groups, beyond = grouped(mask, jnp)
    beyond = jnp.tile(beyond, (len(groups) // len(beyond), 1))
    # What is there, then what is beyond the end, then the rest.
    order = jnp.where(groups, 0, jnp.where(beyond, 1, 2))
    codes = jnp.argsort(order, axis=1, stable=True)[:, :n].reshape(-1)
    codes = jnp.pad(codes.astype(jnp.uint8), (0, -slots % 4)).reshape(-1, 4)
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8)
    codes = jnp.sum(codes << shifts, axis=1, dtype=jnp.uint8)
    return NOfM(codes, mask.shape, n, m, axis % mask.ndim)

  def fits(mask):
    if m > 4 or mask.ndim < -axis:
      return False
    groups, beyond = grouped(mask, np)
    room = np.tile((~beyond).sum(axis=1), len(groups) // len(beyond))
    # A slot that is too many has to be beyond the end.
    return bool(np.all(groups.sum(axis=1) == np.minimum(n, room))) and bool(
      np.all(room + np.tile(beyond.sum(axis=1), len(room) // len(beyond)) >= n)
    )

  return Format(f"{n}_of_{m}", slots, place, fits)


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
    """int32[slots], in the flat array."""
    like = jax.ShapeDtypeStruct((math.prod(self.sizes),), bool)
    return places(unpack_bits(self.bits, like), self.count)

  def moved(self, mask: jax.Array) -> "Bits":
    """The same for another mask."""
    return bits().place(mask, self.count)


def bits() -> Format:
  """A bit mask: one bit for every weight, zero or not; for any shape.

  The smallest above 1/16 of density, but every product has to look for places.
  """

  def place(mask, slots):
    return Bits(jnp.packbits(mask.reshape(-1)), mask.shape, slots)

  return Format("bits", _eights, place, lambda mask: mask.size < 2**31, True)


def fitting(mask: np.ndarray, *, wanted: tuple[Format, ...] = ()) -> Format:
  """The first format that fits a mask.

  Args:
    mask: A NumPy mask.
    wanted: Formats to try before `rows` and `flat`, which fit whatever comes.
  """
  for choice in (*wanted, rows(), flat()):
    if choice.fits(mask):
      return choice
  raise ValueError(
    f"got an array of shape {mask.shape}, wanted less than 2**31 elements: "
    "leave it dense, or split it along its first axis"
  )


def check(structure: Structure) -> None:
  """Refuses a structure that is none, such as one read from a damaged file.

  Args:
    structure: Of one array, of NumPy or JAX arrays that are not traced.

  Raises:
    ValueError: If a place is out of range or there twice, row pointers do not
      ascend, or arrays do not belong together.
  """
  if isinstance(structure, Rows):
    _check_rows(structure.pointers, structure.inputs, structure.sizes)
    if structure.back is None:
      return
  size = math.prod(structure.sizes)
  found, wanted = jax.device_get(_made_again(structure))
  if np.any(found < 0):
    raise ValueError(f"got the place {found.min()}, wanted none below 0")
  used = found[found < size]
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
def _made_again(structure):
  """Its places, and the structure that its mask would have."""
  return structure.places(), structure.moved(structure.mask())


def _check_rows(pointers, columns, sizes):
  pointers, columns = np.asarray(pointers), np.asarray(columns)
  if pointers.shape != (sizes[1] + 1,):
    raise ValueError(
      f"got {pointers.shape} row pointers, wanted {(sizes[1] + 1,)}: one for "
      "each output, and the end"
    )
  if pointers[0] != 0 or np.any(np.diff(pointers) < 0):
    raise ValueError("got row pointers that do not ascend from 0")
  if pointers[-1] > len(columns):
    raise ValueError(
      f"got row pointers up to {pointers[-1]}, wanted at most {len(columns)}, "
      "the number of slots"
    )
  used = columns[: pointers[-1]]
  if len(used) and used.max() >= sizes[0]:
    raise ValueError(f"got the place {used.max()}, wanted below {sizes[0]}")
  starts = np.zeros(len(used) + 1, bool)
  starts[pointers] = True
  if np.any((np.diff(used.astype(np.int64)) <= 0) & ~starts[1 : len(used)]):
    raise ValueError("got a row whose places do not ascend")


def stacked(format: Format) -> Format:
  """A format of matrices that are stacked alike, for a `lax.scan` over them.

  Args:
    format: That of one matrix. All have as many slots as the fullest.

  Returns:
    The format of arrays with one axis more.
  """

  def slots(mask):
    return max(format.slots(m) for m in mask)

  def place(mask, slots):
    return jax.vmap(lambda m: format.place(m, slots))(mask)

  def fits(mask):
    return mask.ndim > 2 and all(format.fits(m) for m in mask)

  return Format(f"stacked_{format.name}", slots, place, fits)
