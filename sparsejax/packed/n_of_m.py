"""N:M: the places of n weights among m neighbours, in two bits each."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.nodes import node
from sparsejax.packed.structure import Format, Structure


@node("codes", static=("sizes", "n", "m", "axis"))
class NOfM(Structure):
  """N:M: for each weight its place among m neighbours, in two bits.

  Attributes:
    codes: uint8[ceil(slots / 4)], the first of each four in the lowest bits.
    sizes: The array's shape.
    n: How many of m are stored; some of them may be beyond the array's end.
    m: The size of a group, at most 4.
    axis: The axis of the groups. Slots are ordered by the other axes, then by
      group along this axis.
  """

  codes: jax.Array
  sizes: tuple[int, ...]
  n: int
  m: int
  axis: int

  def places(self) -> jax.Array:
    """Lists the slots' indices in the flat array, int32[slots]."""
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
    """Makes the structure of another mask, with the same number of slots."""
    form = n_of_m(self.n, self.m, self.axis - len(self.sizes))
    return form.place(mask, self.places().shape[-1])


def n_of_m(n: int, m: int, axis: int = -2) -> Format:
  """Makes the format of N:M with m up to 4: two bits a weight.

  Args:
    n: How many of m neighbours are active.
    m: The size of a group.
    axis: The axis of the groups; by default the axis of inputs in Flax's
      layers.
  """

  def slots(mask: np.ndarray) -> int:
    length = mask.shape[axis]
    return mask.size // length * -(-length // m) * n

  def grouped(mask, xp):
    lines = xp.moveaxis(mask, axis, -1)
    short = -lines.shape[-1] % m
    pad = [(0, 0)] * (mask.ndim - 1) + [(0, short)]
    beyond = xp.pad(xp.zeros(lines.shape[-1], bool), (0, short), **ones)
    return xp.pad(lines, pad).reshape(-1, m), beyond.reshape(-1, m)

  ones = {"constant_values": True}

  def place(mask: jax.Array, slots: int) -> Structure:
    groups, beyond = grouped(mask, jnp)
    groups = groups.reshape(-1, *beyond.shape)
    # What is there, then what is beyond the end, then the rest.
    order = jnp.where(groups, 0, jnp.where(beyond, 1, 2)).reshape(-1, m)
    codes = jnp.argsort(order, axis=1, stable=True)[:, :n].reshape(-1)
    codes = jnp.pad(codes.astype(jnp.uint8), (0, -slots % 4)).reshape(-1, 4)
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8)
    codes = jnp.sum(codes << shifts, axis=1, dtype=jnp.uint8)
    return NOfM(codes, mask.shape, n, m, axis % mask.ndim)

  def fits(mask: np.ndarray) -> bool:
    if not n <= m <= 4 or mask.ndim < -axis:
      return False
    groups, beyond = grouped(mask, np)
    counts = groups.sum(axis=1).reshape(-1, len(beyond))
    # A slot that is too many has to be beyond the end.
    return bool(np.all(counts == np.minimum(n, (~beyond).sum(axis=1))))

  return Format(f"{n}_of_{m}", slots, place, fits)
