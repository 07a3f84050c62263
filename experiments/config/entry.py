"""What the runs of a table's row have in common."""

import re
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


class Cell(NamedTuple):
  """What models that differ in their seed have in common.

  Attributes:
    base: The model before: "50 %", "2:4" or "wanda 60 %"; "" for dense ones.
    method: What was done to it.
  """

  base: str
  method: str

  def __str__(self) -> str:
    return f"{self.method}, {self.base}" if self.base else self.method

  @property
  def folder(self) -> str:
    """A name for files."""
    name = f"{self.base}-{self.method}" if self.base else self.method
    return re.sub(r"[^\w.-]+", "_", name.replace(" %", "").replace(":", "of"))


def percent(share: float) -> str:
  """A share for people, as in `90 %`."""
  return f"{round(100 * share, 6):g} %"
