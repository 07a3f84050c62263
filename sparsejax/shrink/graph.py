"""A jaxpr as a flat list of operations on numbered values."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

# Calls that do nothing but call.
_CALLS = frozenset({"closed_call", "core_call", "jit", "pjit", "xla_call"})
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Body(NamedTuple):
  """A function inside an operation, such as the body of a scan."""

  ins: tuple[int, ...]
  ops: tuple["Op", ...]
  outs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """One operation.

  Attributes:
    primitive: What it does.
    params: The primitive's parameters.
    ins: The numbers of its operands.
    outs: The numbers of its results.
    bodies: The functions inside it that are analysed too.
    sources: JAX's records of where it and the calls around it come from, from
      the inside out.
  """

  primitive: Primitive
  params: dict[str, Any]
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  bodies: tuple[Body, ...]
  sources: tuple[Any, ...]

  @property
  def name(self) -> str:
    """The primitive's name."""
    return self.primitive.name


class Graph:
  """A function's operations, with plain calls inlined.

  Attributes:
    shapes: The shape of each value.
    dtypes: The dtype of each value.
    constants: The arrays among the values, by number.
    ins: The numbers of the arguments.
    ops: The operations in order.
    outs: The numbers of the results.
  """

  def __init__(self, closed: ClosedJaxpr):
    self.shapes: list[tuple[int, ...]] = []
    self.dtypes: list[Any] = []
    self.constants: dict[int, Any] = {}
    body = self.body(closed.jaxpr, closed.consts)
    self.ins, self.ops, self.outs = body

  def body(
    self, jaxpr: Jaxpr, consts: Sequence[Any], sources: tuple[Any, ...] = ()
  ) -> Body:
    """Adds a jaxpr's values, and returns its operations.

    Args:
      jaxpr: The jaxpr.
      consts: Its constants.
      sources: Where the calls around it come from.

    Returns:
      Its operations.
    """
    ins = tuple(self._value(v.aval) for v in jaxpr.invars)
    ops: list[Op] = []
    outs = self._flatten(jaxpr, consts, ins, ops, sources)
    return Body(ins, tuple(ops), outs)

  @property
  def is_of_arrays(self) -> bool:
    """Whether no constant belongs to a trace, so that the graph may be kept."""
    return not any(
      isinstance(c, jax.core.Tracer) for c in self.constants.values()
    )

  def _value(self, aval) -> int:
    self.shapes.append(tuple(getattr(aval, "shape", ())))
    self.dtypes.append(getattr(aval, "dtype", None))
    return len(self.shapes) - 1

  def _flatten(self, jaxpr, consts, ins, ops, outer) -> tuple[int, ...]:
    known = dict(zip(jaxpr.invars, ins, strict=True))
    for v, constant in zip(jaxpr.constvars, consts, strict=True):
      known[v] = self._value(v.aval)
      self.constants[known[v]] = constant

    def read(v) -> int:
      if not isinstance(v, Literal):
        return known[v]
      number = self._value(v.aval)
      self.constants[number] = np.asarray(v.val, v.aval.dtype)
      return number

    for eqn in jaxpr.eqns:
      args = tuple(map(read, eqn.invars))
      name, sources = eqn.primitive.name, (eqn.source_info, *outer)
      inner = next((eqn.params[k] for k in _INNER if k in eqn.params), None)
      if name in _CALLS:
        outs = self._flatten(*_opened(inner), args, ops, sources)
      else:
        bodies = ()
        if name in _WITH_BODIES:
          inners = eqn.params["branches"] if name == "cond" else (inner,)
          bodies = tuple(self.body(*_opened(x), sources) for x in inners)
        outs = tuple(self._value(v.aval) for v in eqn.outvars)
        ops.append(Op(eqn.primitive, eqn.params, args, outs, bodies, sources))
      known.update(zip(eqn.outvars, outs, strict=True))
    return tuple(map(read, jaxpr.outvars))


_WITH_BODIES = frozenset({
  "checkpoint", "cond", "custom_jvp_call", "custom_vjp_call", "remat",
  "remat2", "scan",
})  # fmt: skip


def _opened(inner) -> tuple[Jaxpr, Sequence[Any]]:
  """Returns a jaxpr and its constants; JAX 0.12 has one type for both."""
  return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def scanned(graph: Graph, op: Op) -> tuple[int, int]:
  """Counts the constants and the carried values of a scan.

  The parameters of scan differ between versions of JAX; ranks do not lie: what
  is scanned over, or stacked, has one dimension more outside.
  """
  (body,) = op.bodies
  rank = [len(shape) for shape in graph.shapes]

  def same(outer, inner):
    return sum(rank[i] == rank[j] for i, j in zip(outer, inner, strict=True))

  carried = same(op.outs, body.outs)
  return same(op.ins, body.ins) - carried, carried


def line_of(sources: Sequence[Any]) -> str:
  """Says which line of a user's code an operation comes from.

  What JAX has compiled before may only know its own lines; then it is the line
  of the call around it.
  """
  for source in sources:
    traceback = getattr(source, "traceback", None)
    for frame in traceback.frames if traceback else ():
      if _is_of_user(frame.file_name):
        file = "/".join(frame.file_name.split("/")[-2:])
        return f"{file}:{frame.line_num}"
  return "unknown line"


def _is_of_user(file: str) -> bool:
  return not any(part in file for part in _LIBRARIES)


# This package, other packages, and Python's own.
_LIBRARIES = (
  __file__.rsplit("/", 1)[0],
  "/site-packages/",
  "/lib/python",
)
