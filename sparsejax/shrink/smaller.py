"""Runs a graph at the smaller shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.shrink.analysis import Analysis
from sparsejax.shrink.graph import Body, Op, line_of, scanned


def taken(x: Any, places: np.ndarray, axis: int) -> Any:
  """Takes some indices of an axis, each at most once."""
  if isinstance(x, np.ndarray):
    return np.take(x, places, axis)
  return jnp.take(x, places, axis, unique_indices=True, mode="clip")


class Smaller:
  """An analysed graph without the slices that are removed."""

  def __init__(
    self,
    analysis: Analysis,
    removed: np.ndarray,
    watched: dict[int, Any] | None = None,
  ):
    """Takes an analysis.

    Args:
      analysis: The graph's labels.
      removed: bool, by label that stands for a class: whether it is removed.
      watched: Filled with the values that are computed, by their numbers: of
        those that are its keys.
    """
    self.analysis, self.graph = analysis, analysis.graph
    self._watched = {} if watched is None else watched
    self._removed = removed
    self._kept: dict[tuple[int, int], np.ndarray] = {}

  def __call__(self, args: Sequence[Any]) -> list[Any]:
    """Computes the results of arguments that are cut already."""
    graph = self.graph
    return self._body(Body(graph.ins, graph.ops, graph.outs), args)

  def kept(self, i: int, axis: int) -> np.ndarray:
    """Returns which indices of an axis of a value are kept: bool."""
    if (i, axis) not in self._kept:
      labels = self.analysis.axes[i][axis]
      self._kept[i, axis] = ~self._removed[self.analysis.labels.find(labels)]
    return self._kept[i, axis]

  def shape(self, i: int) -> tuple[int, ...]:
    """Returns a value's smaller shape."""
    axes = range(len(self.graph.shapes[i]))
    return tuple(int(self.kept(i, axis).sum()) for axis in axes)

  def take(self, x: Any, i: int) -> Any:
    """Cuts a whole array that stands for a value."""
    for axis in range(len(self.graph.shapes[i])):
      kept = self.kept(i, axis)
      if not kept.all():
        x = taken(x, np.flatnonzero(kept), axis)
    return x

  def _body(self, body: Body, args: Sequence[Any]) -> list[Any]:
    known = dict(zip(body.ins, args, strict=True))

    def read(i):
      return known[i] if i in known else self.take(self.graph.constants[i], i)

    for op in body.ops:
      known.update(zip(op.outs, self._op(op, read), strict=True))
    for i in self._watched.keys() & known.keys():
      self._watched[i] = known[i]
    return [read(i) for i in body.outs]

  def _op(self, op: Op, read: Callable[[int], Any]) -> Sequence[Any]:
    if op.outs and op.outs[0] in self.analysis.uniform and not op.bodies:
      (out,) = op.outs
      number = self.analysis.uniform[out]
      return [jnp.full(self.shape(out), number, self.graph.dtypes[out])]
    operands = [read(i) for i in op.ins]
    if op.name in _WHOLE:
      return _WHOLE[op.name](self, op, operands)
    params = _PARAMS.get(op.name, _same)(self, op)
    results = op.primitive.bind(*operands, **params)
    return results if op.primitive.multiple_results else [results]

  # Operations that hold functions.

  def _scan(self, op: Op, operands):
    (body,) = op.bodies
    consts, carried = scanned(self.graph, op)
    first = consts + carried

    def step(carry, xs):
      outs = self._body(body, [*operands[:consts], *carry, *xs])
      return outs[:carried], outs[carried:]

    keys = ("length", "reverse", "unroll")
    options = {k: op.params[k] for k in keys if k in op.params}
    carry, ys = lax.scan(
      step, operands[consts:first], operands[first:], **options
    )
    return [*carry, *ys]

  def _cond(self, op: Op, operands):
    def branch(body):
      return lambda *args: self._body(body, args)

    return lax.switch(operands[0], list(map(branch, op.bodies)), *operands[1:])

  def _checkpoint(self, op: Op, operands):
    (body,) = op.bodies
    options = {k: op.params[k] for k in ("prevent_cse", "policy")}
    run = jax.checkpoint(lambda *args: self._body(body, args), **options)
    return run(*operands)

  def _custom(self, op: Op, operands):
    """Calls a function with the derivative that it was given, if that fits."""
    (body,) = op.bodies
    rule = self.analysis.rules.get(op.outs[0])
    if rule is body:  # a higher derivative than are kept
      return self._body(body, operands)

    @jax.custom_jvp
    def call(*args):
      return self._body(body, args)

    @call.defjvp
    def derivative(primals, tangents):
      if rule is None:
        raise NotImplementedError(_no_derivative(op, self.analysis))
      outs = self._body(rule, [*primals, *tangents])
      half = len(outs) // 2
      return outs[:half], outs[half:]

    return call(*operands)


def _no_derivative(op: Op, analysis: Analysis) -> str:
  return (
    f"{op.name} at {line_of(op.sources)}: its own derivative cannot be made"
    " smaller, and another one would be silently wrong. Write that function"
    " without custom_jvp or custom_vjp, or differentiate the whole model"
  )


def _same(s: Smaller, op: Op) -> dict[str, Any]:
  return op.params


def _with_shape(name: str) -> Callable[[Smaller, Op], dict[str, Any]]:
  return lambda s, op: {**op.params, name: s.shape(op.outs[0])}


def _split(s: Smaller, op: Op) -> dict[str, Any]:
  axis = op.params["axis"]
  sizes = tuple(s.shape(out)[axis] for out in op.outs)
  return {**op.params, "sizes": sizes}


def _gather(s: Smaller, op: Op) -> dict[str, Any]:
  whole, small = s.graph.shapes[op.ins[0]], s.shape(op.ins[0])
  sizes = tuple(
    new if n == old else n
    for n, old, new in zip(op.params["slice_sizes"], whole, small, strict=True)
  )
  return {**op.params, "slice_sizes": sizes}


def _conv(s: Smaller, op: Op) -> dict[str, Any]:
  groups = op.params["feature_group_count"]
  if groups == 1:
    return op.params
  x = op.ins[0]
  channel = op.params["dimension_numbers"].lhs_spec[1]
  a_group = s.graph.shapes[x][channel] // groups
  return {**op.params, "feature_group_count": s.shape(x)[channel] // a_group}


def _pad(s: Smaller, op: Op) -> dict[str, Any]:
  (out,), config = op.outs, []
  for axis, (low, high, inner) in enumerate(op.params["padding_config"]):
    if low >= 0 and high >= 0 and not inner:
      kept = s.kept(out, axis)
      low, high = kept[:low].sum(), kept[len(kept) - high :].sum()
    config.append((int(low), int(high), inner))
  return {**op.params, "padding_config": tuple(config)}


def _slice(s: Smaller, op: Op, operands: Sequence[Any]) -> Sequence[Any]:
  (x,), (i,) = operands, op.ins
  begins, ends = op.params["start_indices"], op.params["limit_indices"]
  steps = op.params["strides"] or (1,) * len(begins)
  for axis, cut in enumerate(zip(begins, ends, steps, strict=True)):
    kept = s.kept(i, axis)
    if kept.all():
      x = lax.slice_in_dim(x, *cut, axis)
      continue
    wanted = np.arange(*cut)
    places = (np.cumsum(kept) - 1)[wanted[kept[wanted]]]
    run = len(places) > 0 and (np.diff(places) == 1).all()
    if run:
      x = lax.slice_in_dim(x, places[0], places[-1] + 1, axis=axis)
    else:
      x = taken(x, places, axis)
  return [x]


def _drawn(s: Smaller, op: Op, operands: Sequence[Any]) -> Sequence[Any]:
  whole = op.primitive.bind(*operands, **op.params)
  return [s.take(whole, op.outs[0])]


_PARAMS: dict[str, Callable[[Smaller, Op], dict[str, Any]]] = {
  "broadcast_in_dim": _with_shape("shape"),
  "conv_general_dilated": _conv,
  "dynamic_slice": _with_shape("slice_sizes"),
  "gather": _gather,
  "pad": _pad,
  "reshape": _with_shape("new_sizes"),
  "split": _split,
}
_WHOLE: dict[str, Callable[..., Sequence[Any]]] = {
  "checkpoint": Smaller._checkpoint,
  "cond": Smaller._cond,
  "custom_jvp_call": Smaller._custom,
  "custom_vjp_call": Smaller._custom,
  "iota": _drawn,
  "random_bits": _drawn,
  "remat": Smaller._checkpoint,
  "remat2": Smaller._checkpoint,
  "scan": Smaller._scan,
  "slice": _slice,
}
