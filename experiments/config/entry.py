"""What the runs of a table's row have in common."""

from typing import NamedTuple


class Entry(NamedTuple):
  """What runs that differ in their seed have in common.

  Attributes:
    method: The method's name.
    sparsity: The share of zeros, where a method is run at several.
  """

  method: str
  sparsity: float | None = None

  def __str__(self):
    if self.sparsity is None:
      return self.method
    return f"{self.method}, {percent(self.sparsity)}"

  @property
  def folder(self) -> str:
    """A name for directories."""
    at = "" if self.sparsity is None else f"-{self.sparsity:g}"
    return self.method.replace(" ", "_") + at


def percent(share: float) -> str:
  """A share for people, as in `90 %`."""
  return f"{round(100 * share, 6):g} %"
