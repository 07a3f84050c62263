"""Labels through operations that lay values out anew."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from sparsejax.shrink.analysis import Analysis
from sparsejax.shrink.graph import Op, line_of
from sparsejax.shrink.values import FIXED, Number, beside, same


def _copy_axes(a: Analysis, op: Op, axes: Sequence[int]) -> None:
  x, (out,) = op.ins[0], op.outs
  a.set(out, [a.axes[x][i] for i in axes], [a.at[x][i] for i in axes])


def _transpose(a: Analysis, op: Op) -> None:
  _copy_axes(a, op, op.params["permutation"])


def _squeeze(a: Analysis, op: Op) -> None:
  x, gone = op.ins[0], op.params["dimensions"]
  # Without its only index it could not be squeezed.
  a.freeze(x, "it has one index only", gone)
  kept = [axis for axis in range(len(a.shape(x))) if axis not in gone]
  _copy_axes(a, op, kept)


def _broadcast(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  shape, source = a.shape(out), dict.fromkeys(range(len(a.shape(out))))
  for axis, to in enumerate(op.params["broadcast_dimensions"]):
    if a.shape(x)[axis] == shape[to]:
      source[to] = axis
    else:
      a.freeze(x, "it has one index only", [axis])
  a.set(
    out,
    [
      a.labels.new(n) if source[to] is None else a.axes[x][source[to]]
      for to, n in enumerate(shape)
    ],
    [
      None if source[to] is None else a.at[x][source[to]]
      for to in range(len(shape))
    ],
  )


def _expand(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  new, old = op.params["dimensions"], iter(range(len(a.shape(x))))
  source = [None if i in new else next(old) for i in range(len(a.shape(out)))]
  a.set(
    out,
    [a.labels.new(1) if i is None else a.axes[x][i] for i in source],
    [None if i is None else a.at[x][i] for i in source],
  )


def _reshape(a: Analysis, op: Op) -> None:
  """Matches the smallest blocks of axes that hold equally many indices."""
  x, (out,) = op.ins[0], op.outs
  old, new = a.shape(x), a.shape(out)
  if 0 in old:
    a.freeze(x, "it is empty")
    a.set_frozen(out, "it is empty")
    return
  axes, at = [], []
  for block, to in aligned(old, new):
    flat, number = _merged(a, x, block)
    sizes = [new[i] for i in to]
    axes += _split(a, op, flat, sizes)
    if number == FIXED and sum(n > 1 for n in sizes) > 1:
      number = None  # it differs along the other factors
    at += [number] * len(to)
  a.set(out, axes, at)


def aligned(
  old: Sequence[int], new: Sequence[int]
) -> list[tuple[range, range]]:
  """Pairs the smallest runs of axes of two shapes that have equal products.

  Example:
    >>> aligned((2, 3, 4), (6, 2, 2))
    [(range(0, 2), range(0, 1)), (range(2, 3), range(1, 3))]
  """
  pairs, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    end_i, end_j = min(i + 1, len(old)), min(j + 1, len(new))
    while True:
      a, b = math.prod(old[i:end_i]), math.prod(new[j:end_j])
      if a == b:
        break
      if a < b:
        end_i += 1
      else:
        end_j += 1
    pairs.append((range(i, end_i), range(j, end_j)))
    i, j = end_i, end_j
  return pairs


def _merged(a: Analysis, x: int, block: range) -> tuple[np.ndarray, Number]:
  """Labels of axes that become one, of which only one stays free."""
  labels = [a.axes[x][i] for i in block]
  numbers = [a.at[x][i] for i in block]
  sizes = [len(each) for each in labels]
  # Lengths of 1 vanish in a reshape, and so does what they are labelled.
  free = [k for k, each in enumerate(labels) if a.free(each)]
  long = [k for k in free if sizes[k] > 1]
  tied = [k for k in long if a.tied(labels[k])]
  keep = next(iter(tied or long), None)
  for k in free:
    if k != keep and (sizes[k] > 1 or len(sizes) > 1 or keep is not None):
      a.freeze_labels(labels[k], "a reshape merges it with another axis")
  if keep is None:
    size = math.prod(sizes)
    if len(block) == 1:
      return labels[0], numbers[0]
    return a.stuck(size, "it meets a frozen axis"), None
  shape = [n if k == keep else 1 for k, n in enumerate(sizes)]
  flat = np.broadcast_to(labels[keep].reshape(shape), sizes).reshape(-1)
  return flat, numbers[keep]


def _split(
  a: Analysis, op: Op, flat: np.ndarray, sizes: list[int]
) -> list[np.ndarray]:
  """Labels of the axes that one becomes, of which only one is free."""
  if len(sizes) == 1:
    return [flat]
  why = "a reshape splits it"
  long = [k for k, n in enumerate(sizes) if n > 1]
  if not sizes or not long or not a.free(flat):
    a.freeze_labels(flat, why)
    return [a.stuck(n, why) for n in sizes]
  roots = a.labels.find(flat).reshape(sizes)
  chosen = next((k for k in long if _constant_beside(roots, k)), None)
  if chosen is None and a.settings.split:
    chosen = a.settings.split(tuple(sizes), line_of(op.sources))
  if chosen is None:
    # The last one holds what a head or a group consists of; of the others the
    # largest one most likely counts heads or groups.
    chosen = max(long[:-1] or long, key=lambda k: (sizes[k], -k))
  rows = np.moveaxis(roots, chosen, 0).reshape(sizes[chosen], -1)
  a.labels.union(rows, rows[:, :1])
  return [
    rows[:, 0] if k == chosen else a.stuck(n, why) for k, n in enumerate(sizes)
  ]


def _constant_beside(roots: np.ndarray, axis: int) -> bool:
  """Returns whether labels depend on the place along one axis alone."""
  rows = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
  return bool((rows == rows[:, :1]).all())


def _concatenate(a: Analysis, op: Op) -> None:
  along, (out,) = op.params["dimension"], op.outs
  first = op.ins[0]
  axes, at = list(a.axes[first]), []
  for axis in range(len(axes)):
    parts = op.ins
    if axis == along:
      axes[axis] = np.concatenate([a.axes[i][axis] for i in op.ins])
      # Where a part keeps all its indices, its number does not matter.
      parts = [i for i in op.ins if a.free(a.axes[i][axis])]
    else:
      for i in op.ins[1:]:
        a.unify(first, axis, i, axis)
    numbers = [a.at[i][axis] for i in parts]
    if axis == along:
      at.append(beside(numbers) if numbers else None)
    else:
      at.append(same(numbers))
  a.set(out, axes, at)


def _slice(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  steps = op.params["strides"] or (1,) * len(a.shape(x))
  begins, ends = op.params["start_indices"], op.params["limit_indices"]
  cuts = map(slice, begins, ends, steps)
  axes = [labels[cut] for labels, cut in zip(a.axes[x], cuts, strict=True)]
  a.set(out, axes, a.at[x])


def _rev(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  turned = op.params["dimensions"]
  axes = [
    each[::-1] if axis in turned else each
    for axis, each in enumerate(a.axes[x])
  ]
  a.set(out, axes, a.at[x])


def _tile(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  axes = map(np.tile, a.axes[x], op.params["reps"])
  a.set(out, list(axes), a.at[x])


def _divide(a: Analysis, op: Op) -> None:
  x, along = op.ins[0], op.params["axis"]
  ends = np.cumsum(op.params["sizes"])[:-1]
  parts = np.split(a.axes[x][along], ends)
  for out, part in zip(op.outs, parts, strict=True):
    axes = list(a.axes[x])
    axes[along] = part
    a.set(out, axes, a.at[x])


def _unstack(a: Analysis, op: Op) -> None:
  x, along = op.ins[0], op.params["axis"]
  # Each index becomes a value of its own, which cannot be missing.
  a.freeze(x, "it is unstacked", [along])
  for out in op.outs:
    axes, at = list(a.axes[x]), list(a.at[x])
    del axes[along], at[along]
    a.set(out, axes, at)


def _stack(a: Analysis, op: Op) -> None:
  along, (out,) = op.params["axis"], op.outs
  first, at = op.ins[0], []
  for axis in range(len(a.shape(first))):
    for i in op.ins[1:]:
      a.unify(first, axis, i, axis)
    at.append(same([a.at[i][axis] for i in op.ins]))
  axes = list(a.axes[first])
  axes.insert(along, a.stuck(len(op.ins), "values are stacked along it"))
  at.insert(along, None)
  a.set(out, axes, at)


def _pad(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  filling, axes = a.uniform.get(op.ins[1]), []
  for axis, (low, high, inner) in enumerate(op.params["padding_config"]):
    labels = a.axes[x][axis]
    if inner or low < 0 or high < 0:
      why = "padding within it, or of less than nothing"
      a.freeze(x, why, [axis])
      labels = a.stuck(a.shape(out)[axis], why)
    elif low or high:
      ends = a.labels.new(low), a.labels.new(high)
      labels = np.concatenate([ends[0], labels, ends[1]])
    axes.append(labels)
  # Padding along one axis is at removed indices of all the others, too.
  at = [n if n is not None and n == filling else None for n in a.at[x]]
  a.set(out, axes, at)


def _gather(a: Analysis, op: Op) -> None:
  (x, indices), (out,) = op.ins, op.outs
  numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
  why = "a gather looks up its indices"
  a.freeze(indices, why)
  axes = [a.stuck(n, why) for n in a.shape(out)]
  at: list[Number] = [None] * len(axes)
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  offsets = iter(numbers.offset_dims)
  for axis, n in enumerate(a.shape(x)):
    to = None if axis in gone else next(offsets)
    if to is None or axis in numbers.start_index_map or sizes[axis] != n:
      a.freeze(x, why, [axis])
    else:
      axes[to], at[to] = a.axes[x][axis], a.at[x][axis]
  a.set(out, axes, at)


def _dynamic_slice(a: Analysis, op: Op) -> None:
  x, (out,) = op.ins[0], op.outs
  why = "a dynamic slice cuts it"
  cut = [
    n != m for n, m in zip(a.shape(x), op.params["slice_sizes"], strict=True)
  ]
  a.freeze(x, why, np.flatnonzero(cut))
  axes = [
    a.stuck(n, why) if is_cut else labels
    for labels, is_cut, n in zip(a.axes[x], cut, a.shape(out), strict=True)
  ]
  a.set(out, axes, a.at[x])


def _dynamic_update_slice(a: Analysis, op: Op) -> None:
  (x, update), (out,) = op.ins[:2], op.outs
  at: list[Number] = []
  for axis, (n, m) in enumerate(zip(a.shape(x), a.shape(update), strict=True)):
    if n != m:
      why = "a dynamic update writes to a part of it"
      a.freeze(x, why, [axis])
      a.freeze(update, why, [axis])
    else:
      a.unify(x, axis, update, axis)
    at.append(same([a.at[x][axis], a.at[update][axis]]))
  a.set(out, a.axes[x], at)


LAYOUTS: dict[str, Callable[[Analysis, Op], None]] = {
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "dynamic_slice": _dynamic_slice,
  "dynamic_update_slice": _dynamic_update_slice,
  "expand_dims": _expand,
  "gather": _gather,
  "pad": _pad,
  "reshape": _reshape,
  "rev": _rev,
  "slice": _slice,
  "split": _divide,
  "squeeze": _squeeze,
  "stack": _stack,
  "tile": _tile,
  "transpose": _transpose,
  "unstack": _unstack,
}
