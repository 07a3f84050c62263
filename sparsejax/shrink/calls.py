"""Labels through operations that hold functions: loops, branches, rules."""

from collections.abc import Callable

from sparsejax.shrink.analysis import Analysis
from sparsejax.shrink.graph import Body, Op, scanned
from sparsejax.shrink.labels import TouchedError
from sparsejax.shrink.values import FIXED, same


def _scan(a: Analysis, op: Op) -> None:
  """All iterations share their labels, as stacked layers share a width."""
  (body,) = op.bodies
  consts, carried = scanned(a.graph, op)
  first = consts + carried
  for inner, outer in zip(body.ins[:consts], op.ins[:consts], strict=True):
    a.copy(outer, inner)
  why = "a scan goes along it"
  for inner, outer in zip(body.ins[first:], op.ins[first:], strict=True):
    a.freeze(outer, why, [0])
    a.set(inner, a.axes[outer][1:], a.at[outer][1:])
  carry = [a.at[i] for i in op.ins[consts:first]]
  while True:
    for inner, outer, at in zip(
      body.ins[consts:first], op.ins[consts:first], carry, strict=True
    ):
      a.set(inner, a.axes[outer], at)
    a.run_body(body)
    for inner, out in zip(
      body.ins[consts:first], body.outs[:carried], strict=True
    ):
      for axis in range(len(a.shape(out))):
        a.unify(inner, axis, out, axis)
    # A number holds behind the loop if each iteration leaves it as it is.
    settled = [
      [same(pair) for pair in zip(at, a.at[out], strict=True)]
      for at, out in zip(carry, body.outs[:carried], strict=True)
    ]
    if settled == carry:
      break
    carry = settled
  for inner, out, at in zip(
    body.outs[:carried], op.outs[:carried], carry, strict=True
  ):
    a.set(out, a.axes[inner], at)
  for inner, out in zip(body.outs[carried:], op.outs[carried:], strict=True):
    length = a.shape(out)[0]
    a.set(out, [a.stuck(length, why), *a.axes[inner]], [None, *a.at[inner]])


def _cond(a: Analysis, op: Op) -> None:
  branches = op.bodies
  for body in branches:
    a.bind(body, op.ins[1:])
  for k, out in enumerate(op.outs):
    results = [body.outs[k] for body in branches]
    at = []
    for axis in range(len(a.shape(out))):
      for i in results[1:]:
        a.unify(results[0], axis, i, axis)
      at.append(same([a.at[i][axis] for i in results]))
    a.set(out, a.axes[results[0]], at)


def _call(a: Analysis, op: Op) -> None:
  (body,) = op.bodies
  a.bind(body, op.ins)
  for inner, out in zip(body.outs, op.outs, strict=True):
    a.copy(inner, out)


# Custom derivatives often call their own function. How many of them are kept
# inside each other: first and second derivatives.
_ORDERS = 2


def _custom_jvp(a: Analysis, op: Op) -> None:
  """A call whose derivative is labelled too, so that it can be kept."""
  _call(a, op)
  if a.order == _ORDERS:
    a.rules[op.outs[0]] = op.bodies[0]
    return
  rule = _jvp_body(a, op)
  if rule is None:
    return
  a.order += 1
  try:
    # A derivative must not keep what the function itself lets go.
    with a.labels.untouched():
      half = len(op.ins)
      for inner, outer in zip(rule.ins[:half], op.ins, strict=True):
        a.copy(outer, inner)
      for inner, outer in zip(rule.ins[half:], op.ins, strict=True):
        # What is one number whatever the params are does not move with them.
        moves = [n is None or n == FIXED for n in a.at[outer]]
        a.set(inner, a.axes[outer], [None if m else 0.0 for m in moves])
      a.run_body(rule)
      for i, j in zip(rule.outs, (*op.outs, *op.outs), strict=True):
        for axis in range(len(a.shape(i))):
          a.unify(i, axis, j, axis)
    a.rules[op.outs[0]] = rule
  except TouchedError:
    pass
  finally:
    a.order -= 1


def _jvp_body(a: Analysis, op: Op) -> Body | None:
  """The derivative of a function with a custom rule, as a body."""
  try:
    jaxpr, consts, _ = op.params["jvp_jaxpr_fun"].call_wrapped(
      *[False] * len(op.ins)
    )
    return a.graph.body(getattr(jaxpr, "jaxpr", jaxpr), consts, op.sources)
  except Exception:  # of any kind: it belongs to JAX's inside
    return None


CALLS: dict[str, Callable[[Analysis, Op], None]] = {
  "checkpoint": _call,
  "cond": _cond,
  "custom_jvp_call": _custom_jvp,
  "custom_vjp_call": _call,
  "remat": _call,
  "remat2": _call,
  "scan": _scan,
}
