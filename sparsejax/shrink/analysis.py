"""Which slices of which parameters leave together, found from a graph.

Every axis of every value has one label per index. Operations unify labels, or
freeze them; what comes out are classes of slices that leave together. Beside
its labels an axis has the number that the masked model holds at removed
indices, if it is known: where an axis is summed, that has to be zero.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.shrink.graph import Body, Graph, Op, line_of
from sparsejax.shrink.labels import Labels
from sparsejax.shrink.values import FIXED, Number


class Reason(NamedTuple):
  """Why labels are frozen.

  Attributes:
    primitive: The operation that froze them; empty if none did.
    why: The reason in words.
    sources: Where the operation comes from.
  """

  primitive: str
  why: str
  sources: tuple[Any, ...] = ()

  @property
  def line(self) -> str:
    """The line of code, such as `models/resnet.py:12`; empty if none."""
    return line_of(self.sources) if self.primitive else ""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What an analysis is asked for.

  Attributes:
    frozen: Of each leaf, whether it is left whole.
    strict: Whether sums freeze what is not zero at removed indices.
    split: `(size of each factor, line) -> factor`, where a reshape splits an
      axis; None for the usual choice.
  """

  frozen: tuple[bool, ...]
  strict: bool = True
  split: Callable[[tuple[int, ...], str], int | None] | None = None


class Analysis:
  """Labels of all axes of a graph's values.

  Attributes:
    graph: The graph.
    carried: Which leaf each output is the next value of.
    labels: The classes.
    axes: The labels of each axis, by value.
    at: The number at removed indices of each axis, or None, by value.
    uniform: The number that a value has everywhere, where it is known.
    reasons: Why labels are frozen, by the integer that `labels` holds.
    of_leaves: How many labels are of leaves; these are the first ones, so that
      a free class has a leaf's label if what stands for it is below that.
    summed: Labels of axes that were summed, such as by a norm.
    rules: Custom derivatives that fit the smaller shapes too, by a value that
      is differentiated.
    order: Of which derivative operations are labelled; 0 is the function.
  """

  def __init__(
    self,
    graph: Graph,
    settings: Settings,
    step: Callable[["Analysis", Op], None],
    carried: Mapping[int, int],
    zero: Callable[[int, int], bool] = lambda leaf, axis: True,
    foldable: Callable[[Op, int], str] | None = None,
  ):
    """Analyses a graph.

    Args:
      graph: The graph, whose first arguments are the leaves.
      settings: What is asked for.
      step: Labels the results of one operation.
      carried: Which leaf each output is the next value of, by their indices.
      zero: `(leaf, axis) -> bool`: whether a leaf is zero at removed indices.
      foldable: `(op, operand) -> why not`: whether constants of an operand can
        be summed once and for all; empty if they can. None if that is not
        asked.
    """
    self._foldable, self.carried = foldable, carried
    self.graph, self.settings, self._step = graph, settings, step
    self.labels = Labels()
    self.reasons: list[Reason | None] = [None]
    self._reason_of: dict[tuple[Op | None, str], int] = {}
    self.axes: dict[int, list[np.ndarray]] = {}
    self.at: dict[int, list[Number]] = {}
    self.uniform: dict[int, Number] = {}
    self.summed: list[np.ndarray] = []
    self.rules: dict[int, Any] = {}
    self.order = 0
    self.op: Op | None = None
    leaves = len(settings.frozen)
    for leaf, i in enumerate(graph.ins[:leaves]):
      inexact = jnp.issubdtype(graph.dtypes[i], jnp.inexact)
      rank = len(graph.shapes[i])
      unmasked = FIXED if rank == 1 else None
      self.axes[i] = [self.labels.new(n) for n in graph.shapes[i]]
      self.at[i] = [
        0.0 if zero(leaf, axis) else unmasked for axis in range(rank)
      ]
      if settings.frozen[leaf]:
        self.freeze(i, "it was asked to stay")
      elif not inexact:
        self.freeze(i, "it holds no floats")
    self.of_leaves = self.labels.count
    for i in graph.ins[:leaves]:
      # A slice of length 1 would leave nothing.
      short = [a for a, n in enumerate(graph.shapes[i]) if n == 1]
      self.freeze(i, "it has one index only", short)
    for i in graph.ins[leaves:]:
      self.set_frozen(i, "it meets an input")
    self.run(graph.ops)
    for k, i in enumerate(graph.outs):
      self._finish(k, i)

  def _finish(self, output: int, i: int) -> None:
    self.know(i)
    leaf = self.carried.get(output)
    if leaf is None:
      self.freeze(i, "it is an output")
      return
    old = self.graph.ins[leaf]
    for a, b in zip(self.axes[old], self.axes[i], strict=True):
      self.labels.union(a, b)

  def run(self, ops: Sequence[Op]) -> None:
    """Propagates labels through operations, in order."""
    for op in ops:
      for i in op.ins:
        self.know(i)
      outer, self.op = self.op, op
      try:
        self._step(self, op)
      finally:
        self.op = outer

  def know(self, i: int) -> None:
    """Labels a value that has no labels yet: a constant.

    It can be cut along any axis.
    """
    if i in self.axes:
      return
    self.set_fresh(i, _uniform(self.graph.constants[i]), uniform=True)

  # What rules call.

  def shape(self, i: int) -> tuple[int, ...]:
    """Returns a value's shape."""
    return self.graph.shapes[i]

  def set(
    self, i: int, axes: Sequence[np.ndarray], at: Sequence[Number]
  ) -> None:
    """Sets the labels of a value, and its numbers at removed indices."""
    self.axes[i], self.at[i] = list(axes), list(at)
    self.uniform.pop(i, None)  # of an earlier run of the same body
    got = tuple(map(len, self.axes[i]))
    if got != self.shape(i):
      raise AssertionError(f"{self.op}: {got} labels of {self.shape(i)}")

  def set_fresh(
    self, i: int, at: Number = None, *, uniform: bool = False
  ) -> None:
    """Gives each axis of a value labels of its own, so that any can be cut.

    Args:
      i: The value.
      at: Its number at removed indices, if known.
      uniform: Whether it is that number everywhere.
    """
    shape = self.shape(i)
    self.set(i, [self.labels.new(n) for n in shape], [at] * len(shape))
    if uniform and at is not None:
      self.uniform[i] = at

  def set_frozen(self, i: int, why: str) -> None:
    """Freezes all axes of a value that has no labels yet."""
    shape = self.shape(i)
    self.set(i, [self.stuck(n, why) for n in shape], [None] * len(shape))

  def stuck(self, n: int, why: str) -> np.ndarray:
    """Returns frozen labels for an axis of n indices."""
    return self.labels.frozen(n, self._reason(why))

  def freeze(self, i: int, why: str, axes: Sequence[int] | None = None) -> None:
    """Freezes axes of a value; by default all of them."""
    for axis in range(len(self.axes[i])) if axes is None else axes:
      self.freeze_labels(self.axes[i][axis], why)

  def freeze_labels(self, labels: np.ndarray, why: str) -> None:
    """Freezes labels."""
    self.labels.freeze(labels, self._reason(why))

  def free(self, labels: np.ndarray) -> bool:
    """Returns whether any of an axis' labels is free."""
    return bool((self.labels.reason(labels) == 0).any())

  def tied(self, labels: np.ndarray) -> bool:
    """Returns whether a free label is of a class with a slice of a leaf."""
    free = self.labels.reason(labels) == 0
    return bool((free & (self.labels.find(labels) < self.of_leaves)).any())

  def unify(self, i: int, axis: int, j: int, other: int) -> None:
    """Makes the indices of two axes leave together."""
    self.labels.union(self.axes[i][axis], self.axes[j][other])

  def sum_over(
    self, i: int, axes: Sequence[int], other: Sequence[Number] = ()
  ) -> None:
    """Freezes axes that are summed, unless a term is zero when removed.

    Args:
      i: A value.
      axes: The axes that are summed.
      other: What the value is multiplied with has at removed indices.
    """
    other = other or [None] * len(axes)
    for axis, number in zip(axes, other, strict=True):
      if self.at[i][axis] == 0 or number == 0 or not self.settings.strict:
        continue
      why = "it sums what is not zero behind a mask"
      if self._foldable and self.at[i][axis] is not None:
        why = self._foldable(self.op, i)
      if why:
        self.freeze(i, why, [axis])

  def bind(self, body: Body, operands: Sequence[int]) -> None:
    """Gives a body's arguments the labels of operands, and runs it."""
    for inner, outer in zip(body.ins, operands, strict=True):
      self.copy(outer, inner)
    self.run_body(body)

  def run_body(self, body: Body) -> None:
    """Runs a body whose arguments have labels."""
    self.run(body.ops)
    for i in body.outs:
      self.know(i)

  def copy(self, i: int, j: int) -> None:
    """Gives a value the labels and numbers of another."""
    self.set(j, self.axes[i], self.at[i])
    if i in self.uniform:
      self.uniform[j] = self.uniform[i]

  def _reason(self, why: str) -> int:
    key = (self.op, why)
    if key not in self._reason_of:
      op = self.op
      self._reason_of[key] = len(self.reasons)
      self.reasons.append(
        Reason(op.name if op else "", why, op.sources if op else ())
      )
    return self._reason_of[key]


_LARGEST = 1_000_000


def _uniform(constant: Any) -> Number:
  """The number that an array has everywhere, or None."""
  if isinstance(constant, jax.core.Tracer):
    return None
  dtype = jnp.result_type(constant)
  real = jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_
  if not real or jnp.iscomplexobj(constant):
    return None
  if not 0 < np.size(constant) <= _LARGEST:
    return None
  array = np.asarray(constant)
  first = array.flat[0]
  exact = int(first) == int(float(first)) if array.dtype.kind in "iu" else True
  return float(first) if exact and (array == first).all() else None
