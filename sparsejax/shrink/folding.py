"""Constants behind removed units, folded into what is added right after."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparsejax.shrink.graph import Graph, Op

_WHY_ALONE = "its constant is summed where no product does"
_WHY_PADDED = "its constant meets padding, so that it differs at the edges"
_WHY_KERNEL = "its constant is multiplied by what is not a kernel of the params"
_WHY_SINK = "no bias or running mean of its own follows to take its constant"


class Sink(NamedTuple):
  """What takes a constant.

  Attributes:
    leaf: The index of a leaf that is added to, or subtracted from, a product.
    sign: 1 or -1.
  """

  leaf: int
  sign: int


class Folds:
  """The products of a graph into which constants can be folded."""

  def __init__(self, graph: Graph, leaves: int):
    self.graph, self._leaves = graph, leaves
    self._makers = {out: op for op in graph.ops for out in op.outs}
    self._users: dict[int, list[Op | None]] = defaultdict(list)
    for op in graph.ops:
      for i in op.ins:
        self._users[i].append(op)
    for i in graph.outs:
      self._users[i].append(None)

  def why_not(self, op: Op, operand: int) -> str:
    """Says why constants of an operand cannot be folded; empty if they can."""
    if op.name not in ("conv_general_dilated", "dot_general"):
      return _WHY_ALONE
    if op not in self.graph.ops:
      return "its constant is summed inside a loop or a branch"
    kernel = self._kernel(op, operand)
    if kernel is None:
      return _WHY_KERNEL
    if op.name == "conv_general_dilated" and _pads(op):
      return _WHY_PADDED
    return "" if self._sink(op, operand) else _WHY_SINK

  def sites(self) -> list[tuple[Op, int, int]]:
    """Lists products with kernels: operation, operand, and its summed axis."""
    found = []
    for op in self.graph.ops:
      if op.name == "dot_general":
        (cx, cy), _ = op.params["dimension_numbers"]
        operands = [(op.ins[0], cx), (op.ins[1], cy)]
      elif op.name == "conv_general_dilated":
        axis = op.params["dimension_numbers"].lhs_spec[1]
        operands = [(op.ins[0], (axis,))]
      else:
        continue
      found += [
        (op, i, axes[0])
        for i, axes in operands
        if len(axes) == 1 and not self.why_not(op, i)
      ]
    return found

  def fold(
    self, op: Op, operand: int, constants: np.ndarray, kernel: np.ndarray
  ) -> tuple[int, np.ndarray]:
    """Computes what to add to which leaf.

    Args:
      op: The product.
      operand: Its operand that has constants.
      constants: Those, by index of the summed axis; 0 where it has none.
      kernel: Its other operand.

    Returns:
      The leaf, and what to add.
    """
    if op.name == "dot_general":
      (cx, cy), _ = op.params["dimension_numbers"]
      axis = (cy if operand == op.ins[0] else cx)[0]
      total = np.tensordot(constants, kernel, (0, axis))
    else:
      out, into, *_ = op.params["dimension_numbers"].rhs_spec
      taps = tuple(a for a in range(kernel.ndim) if a not in (out, into))
      summed = kernel.sum(taps)
      total = constants @ (summed if into < out else summed.T)
    sink = self._sink(op, operand)
    return sink.leaf, sink.sign * total

  def kernel(self, op: Op, operand: int) -> int:
    """Returns the other operand of a product."""
    return op.ins[1] if operand == op.ins[0] else op.ins[0]

  def _kernel(self, op: Op, operand: int) -> int | None:
    """The other operand, if it is a leaf, of another dtype at most."""
    if op.ins[0] == op.ins[1]:
      return None
    i = self.kernel(op, operand)
    while i in self._makers and self._makers[i].name == "convert_element_type":
      (i,) = self._makers[i].ins
    return i if i in self.graph.ins[: self._leaves] else None

  def _sink(self, op: Op, operand: int) -> Sink | None:
    feature = self._feature(op, operand)
    if feature is None:
      return None
    i = op.outs[0]
    while True:
      users = self._users[i]
      if len(users) != 1 or users[0] is None:
        return None
      (user,) = users
      if user.name != "convert_element_type":
        break
      (i,) = user.outs
    if user.name not in ("add", "add_any", "sub"):
      return None
    other = user.ins[1] if user.ins[0] == i else user.ins[0]
    turned = user.name == "sub" and other == user.ins[0]
    found = None if turned else self._vector(other)
    if found is None or found[1] != feature:
      return None
    return Sink(found[0], -1 if user.name == "sub" else 1)

  def _feature(self, op: Op, operand: int) -> int | None:
    """The axis of a product's result that the kernel brings, if one."""
    if op.name == "conv_general_dilated":
      whole = op.params["feature_group_count"] == 1
      return op.params["dimension_numbers"].out_spec[1] if whole else None
    (cx, _), (bx, _) = op.params["dimension_numbers"]
    rank = len(self.graph.shapes[op.outs[0]])
    kernel = self.graph.shapes[self.kernel(op, operand)]
    if bx or len(cx) != 1 or len(kernel) != 2:
      return None
    return rank - 1 if operand == op.ins[0] else 0

  def _vector(self, i: int) -> tuple[int, int] | None:
    """The leaf of one axis that a value repeats, and along which axis."""
    if len(self._users[i]) != 1:  # others would see what is folded
      return None
    if i in self.graph.ins[: self._leaves]:
      leaf = self.graph.ins.index(i)
      return (leaf, 0) if len(self.graph.shapes[i]) == 1 else None
    op = self._makers.get(i)
    found = op and len(op.ins) == 1 and self._vector(op.ins[0])
    if not found:
      return None
    leaf, axis = found
    if op.name == "broadcast_in_dim":
      return leaf, op.params["broadcast_dimensions"][axis]
    if op.name == "reshape":
      (n,), new = self.graph.shapes[self.graph.ins[leaf]], self.graph.shapes[i]
      return (leaf, new.index(n)) if math.prod(new) == n in new else None
    return found if op.name == "convert_element_type" else None


def _pads(op: Op) -> bool:
  """Whether some windows of a convolution hold zeros around the input."""
  padded = any(low or high for low, high in op.params["padding"])
  return padded or any(n != 1 for n in op.params["lhs_dilation"])


def constants_of(x: Any, axis: int, removed: np.ndarray) -> np.ndarray:
  """Reads constants off an operand: one place of all other axes will do."""
  place: Sequence[Any] = [0] * np.ndim(x)
  place[axis] = slice(None)
  return np.where(removed, np.asarray(x, np.float64)[tuple(place)], 0)
