"""What is removed, and what of it is said to people."""

import dataclasses
from collections.abc import Mapping

import numpy as np

Cut = tuple[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
  """Which indices of which axes of which leaves are kept.

  It belongs to params, not to a plan. So you can use it with another plan of a
  model with the same params, for example of the model in training mode.

  Attributes:
    keep: bool by key path and axis: which indices stay. Axes that stay whole
      are missing.
  """

  keep: Mapping[Cut, np.ndarray]

  def __or__(self, other: "Removal") -> "Removal":
    """Removes what either of two removes."""
    keep = dict(self.keep)
    for cut, mask in other.keep.items():
      keep[cut] = keep[cut] & mask if cut in keep else mask
    return Removal(keep)

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns the masks by names, for `numpy.savez` or any other file.

    Returns:
      bool arrays by key path and axis, such as `Dense_0/kernel:1`.

    Example:
      >>> Removal({("w", 1): np.array([True, False])}).to_arrays()
      {'w:1': array([ True, False])}
    """
    return {f"{path}:{axis}": mask for (path, axis), mask in self.keep.items()}

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Removal":
    """Undoes `to_arrays`.

    Args:
      arrays: What `to_arrays` gave.

    Returns:
      The removal.

    Raises:
      ValueError: If a name or an array is not as `to_arrays` makes them.
    """
    keep = {}
    for name, mask in arrays.items():
      path, _, axis = name.rpartition(":")
      mask = np.asarray(mask)
      if not axis.isdecimal() or mask.dtype != bool or mask.ndim != 1:
        raise ValueError(
          f"{name!r}: got {mask.dtype}{list(mask.shape)}, wanted bool arrays of"
          " one axis by names such as 'Dense_0/kernel:1', as to_arrays makes"
        )
      keep[path, int(axis)] = mask
    return cls(keep)

  def __str__(self):
    return "\n".join(
      f"{path}[{axis}]: {mask.sum()} of {mask.size} stay"
      for (path, axis), mask in self.keep.items()
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Units of the same axes, which can be compared.

  Attributes:
    cuts: The key path and the axis of each leaf that they are slices of.
    units: The number of each unit in its plan.
    widths: How many indices of each of these axes a unit takes; those of the
      first unit if they differ.
    params: How many params are removed with the first unit.
    summed: Whether these axes are summed without weights, as in a norm or a
      mean. The smaller model still divides by the old width; a module rebuilt
      at the smaller width would divide by less.
  """

  cuts: tuple[Cut, ...]
  units: tuple[int, ...]
  widths: tuple[int, ...]
  params: int
  summed: bool

  def __len__(self):
    return len(self.units)

  def __iter__(self):
    return iter(self.units)

  def __str__(self):
    cuts = " ".join(f"{path}[{axis}]" for path, axis in self.cuts)
    norm = ", summed" if self.summed else ""
    return f"{len(self)} units of {self.params:,} params{norm}: {cuts}"


@dataclasses.dataclass(frozen=True)
class Frozen:
  """Indices of a leaf's axis that cannot be removed.

  Attributes:
    path: The leaf's key path.
    axis: The axis.
    count: How many of its indices cannot be removed.
    size: The length of the axis.
    why: The reason in words.
    primitive: The operation that froze them; empty if none did.
    line: The line of code that it comes from; empty if there is none.
  """

  path: str
  axis: int
  count: int
  size: int
  why: str
  primitive: str
  line: str

  def __str__(self):
    part = "" if self.count == self.size else f" ({self.count} of {self.size})"
    return f"{self.path}[{self.axis}]{part}"
