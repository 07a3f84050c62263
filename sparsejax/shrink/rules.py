"""How each primitive passes labels on; unknown ones freeze what they touch."""

from collections.abc import Callable

from sparsejax.shrink import values
from sparsejax.shrink.analysis import Analysis, Settings
from sparsejax.shrink.calls import CALLS
from sparsejax.shrink.graph import Graph, Op
from sparsejax.shrink.layouts import LAYOUTS

Rule = Callable[[Analysis, Op], None]


def analyse(graph: Graph, settings: Settings, **options) -> Analysis:
  """Labels all values of a graph; see `Analysis`, for options too."""
  return Analysis(graph, settings, _step, **options)


def _step(a: Analysis, op: Op) -> None:
  if _is_uniform(a, op):
    return
  if op.name in values.ELEMENTWISE:
    _elementwise(a, op)
  else:
    _RULES.get(op.name, _unknown)(a, op)


_UNIFORM = frozenset({
  "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape",
  "squeeze", "transpose",
})  # fmt: skip


def _is_uniform(a: Analysis, op: Op) -> bool:
  """Labels a result that has one number everywhere, and can be cut anyhow."""
  if op.name not in _UNIFORM:
    return False
  number = a.uniform.get(op.ins[0])
  if op.name in values.ELEMENTWISE:
    number = values.at(op.name, op.params, [number])
  if number is not None:
    a.set_fresh(op.outs[0], number, uniform=True)
  return number is not None


def _unknown(a: Analysis, op: Op) -> None:
  for i in op.ins:
    a.freeze(i, "shrink does not know this operation")
  for i in op.outs:
    a.set_frozen(i, "shrink does not know this operation")


def _elementwise(a: Analysis, op: Op) -> None:
  for k, out in enumerate(op.outs):
    operands = (op.ins[k],) if op.name == "optimization_barrier" else op.ins
    axes, at = [], []
    for axis, n in enumerate(a.shape(out)):
      # Operands may have length 1 here, and are broadcast.
      fit = [i for i in operands if a.shape(i) and a.shape(i)[axis] == n]
      for i in fit[1:]:
        a.unify(fit[0], axis, i, axis)
      axes.append(a.axes[fit[0]][axis])
      numbers = [
        a.at[i][axis] if i in fit and i not in a.uniform else a.uniform.get(i)
        for i in operands
      ]
      at.append(values.at(op.name, op.params, numbers))
    a.set(out, axes, at)


def _bitcast(a: Analysis, op: Op) -> None:
  if a.shape(op.ins[0]) == a.shape(op.outs[0]):
    _elementwise(a, op)
  else:
    _unknown(a, op)


def _dot(a: Analysis, op: Op) -> None:
  x, y = op.ins
  (cx, cy), (bx, by) = op.params["dimension_numbers"]
  for i, j in zip((*cx, *bx), (*cy, *by), strict=True):
    a.unify(x, i, y, j)
  a.sum_over(x, cx, [a.at[y][j] for j in cy])
  free_x = [i for i in range(len(a.shape(x))) if i not in (*cx, *bx)]
  free_y = [j for j in range(len(a.shape(y))) if j not in (*cy, *by)]

  def product(*numbers):
    return 0.0 if 0 in numbers else None

  a.set(
    op.outs[0],
    [a.axes[x][i] for i in (*bx, *free_x)] + [a.axes[y][j] for j in free_y],
    [product(a.at[x][i], a.at[y][j]) for i, j in zip(bx, by, strict=True)]
    + [product(a.at[x][i]) for i in free_x]
    + [product(a.at[y][j]) for j in free_y],
  )


def _conv(a: Analysis, op: Op) -> None:
  if op.params["batch_group_count"] != 1:
    return _unknown(a, op)
  x, w = op.ins
  numbers = op.params["dimension_numbers"]
  groups = op.params["feature_group_count"]
  batch, channel, *places = numbers.lhs_spec
  out, into, *taps = numbers.rhs_spec
  a.freeze(x, "a window slides along it", places)
  a.freeze(w, "a window slides along it", taps)
  if groups == 1:
    a.unify(x, channel, w, into)
    a.sum_over(x, [channel], [a.at[w][into]])
  else:  # whole groups leave together
    a.freeze(w, "it is summed within a group of channels", [into])
    ins = a.axes[x][channel].reshape(groups, -1)
    outs = a.axes[w][out].reshape(groups, -1)
    a.labels.union(ins, ins[:, :1])
    a.labels.union(outs, ins[:, :1])
  shape, (result,) = a.shape(op.outs[0]), op.outs
  axes = [a.stuck(n, "a window slides along it") for n in shape]
  at = [None] * len(shape)
  to_batch, to_channel = numbers.out_spec[:2]
  axes[to_batch], axes[to_channel] = a.axes[x][batch], a.axes[w][out]
  at[to_batch] = 0.0 if a.at[x][batch] == 0 else None
  at[to_channel] = 0.0 if a.at[w][out] == 0 else None
  a.set(result, axes, at)


def _reduce(a: Analysis, op: Op) -> None:
  """A reduction that removed indices take part in, unless they are zero."""
  x, reduced = op.ins[0], op.params["axes"]
  if op.name == "reduce_sum":
    a.sum_over(x, reduced)
    a.summed += [a.axes[x][axis] for axis in reduced]
  else:
    a.freeze(x, f"{op.name} compares all of it", reduced)
  kept = [axis for axis in range(len(a.shape(x))) if axis not in reduced]
  keeps = op.name in ("reduce_max", "reduce_min")

  def number(axis):
    known = a.at[x][axis]
    sums = op.name == "reduce_sum" and known in (0, values.FIXED)
    return known if keeps or sums else None

  for out in op.outs:
    a.set(out, [a.axes[x][axis] for axis in kept], list(map(number, kept)))


def _along_axis(a: Analysis, op: Op) -> None:
  """A sort, or a cumulative operation: operands of one shape, one axis."""
  axis = op.params.get("axis", op.params.get("dimension"))
  first = op.ins[0]
  for i in op.ins:
    a.freeze(i, "its indices depend on each other", [axis])
    for other in range(len(a.shape(i))):
      a.unify(first, other, i, other)
  for i, out in zip(op.ins, op.outs, strict=True):
    a.set(out, a.axes[i], [None] * len(a.shape(i)))


def _window(a: Analysis, op: Op) -> None:
  """Pooling: windows of length 1 leave an axis as it is."""
  x, (out,) = op.ins[0], op.outs
  why, lengths = "a window slides along it", op.params["window_dimensions"]
  a.freeze(x, why, [axis for axis, n in enumerate(lengths) if n != 1])
  axes = [
    labels if length == 1 and n == len(labels) else a.stuck(n, why)
    for labels, length, n in zip(a.axes[x], lengths, a.shape(out), strict=True)
  ]
  for labels, new in zip(a.axes[x], axes, strict=True):
    if new is not labels:
      a.freeze_labels(labels, why)
  keeps = op.name in ("reduce_window_max", "reduce_window_min")
  at = [
    number
    if keeps or (op.name == "reduce_window_sum" and number == 0)
    else None
    for number in a.at[x]
  ]
  a.set(out, axes, at)


def _drawn(a: Analysis, op: Op) -> None:
  """What is made at full size and then cut: the same dropout mask."""
  if op.ins and a.shape(op.ins[0]):
    return _unknown(a, op)
  a.set_fresh(op.outs[0])


_RULES: dict[str, Rule] = {
  **LAYOUTS,
  **CALLS,
  "argmax": _reduce,
  "argmin": _reduce,
  "argsort": _along_axis,
  "bitcast_convert_type": _bitcast,
  "conv_general_dilated": _conv,
  "cumlogsumexp": _along_axis,
  "cummax": _along_axis,
  "cummin": _along_axis,
  "cumprod": _along_axis,
  "cumsum": _along_axis,
  "dot_general": _dot,
  "iota": _drawn,
  "random_bits": _drawn,
  "reduce_and": _reduce,
  "reduce_max": _reduce,
  "reduce_min": _reduce,
  "reduce_or": _reduce,
  "reduce_prod": _reduce,
  "reduce_sum": _reduce,
  "reduce_window_max": _window,
  "reduce_window_min": _window,
  "reduce_window_sum": _window,
  "sort": _along_axis,
}
