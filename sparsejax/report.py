"""Where the zeros are: one row per parameter leaf, and a table for people.

Rows are computed on the host from concrete masks; nothing here is traced.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax import flops as flops_lib
from sparsejax import roles
from sparsejax.masks import path_name
from sparsejax.nodes import is_matrix

__all__ = ["Layer", "layers", "table", "total"]


class Layer(NamedTuple):
  """A row of the report: one leaf, or the total of several.

  Attributes:
    path: The leaf's key path, such as 'encoder/dense/kernel'.
    shape: Its shape, in numbers of elements; () for a total.
    dtype: The name of its dtype; for a total, the dtype of all leaves, or '' if
      they differ.
    size: How many weights it has.
    nnz: How many of them are active.
    masked: Whether it has a mask, rather than the scalar True of a leaf that
      stays dense.
    flops: Dense forward FLOPs, or None if not given.
    sparse_flops: Forward FLOPs with the mask, or None if not given.
    role: Its kind, and for a weight what its axes are; '' for a total.
    nbytes: Its memory in bytes, including indices and scales; None if all
      leaves are arrays.
  """

  path: str
  shape: tuple[int, ...]
  dtype: str
  size: int
  nnz: int
  masked: bool
  flops: int | None = None
  sparse_flops: int | float | None = None
  role: str = ""
  nbytes: int | None = None

  @property
  def sparsity(self) -> float:
    """The share of zeros, in [0, 1]."""
    return (self.size - self.nnz) / max(self.size, 1)


def layers(
  params: Any,
  masks: Any,
  flops: Any = None,
  *,
  prunable: roles.Prunable | None = None,
) -> list[Layer]:
  """Makes one row per leaf of the params, in the order of the pytree.

  Args:
    params: A pytree of arrays or `jax.ShapeDtypeStruct`s, of any shape, and of
      nodes that stand for matrices, such as packed or INT8 ones.
    masks: A pytree of the same structure: concrete bool arrays of the shapes of
      `params`, or the scalar True for a leaf that stays dense.
    flops: A pytree of the same structure: integers, from
      `sparsejax.flops.param_flops`.
    prunable: The algorithm's `prunable`, if it comes from `roles.by_path`,
      which says what leaves are.

  Returns:
    The rows. The path of a bare array is 'params'.

  Raises:
    ValueError: If the structures differ, or a mask has neither the shape of
      its parameter nor shape ().

  Example:
    >>> import numpy as np
    >>> from sparsejax import report
    >>> params = {"kernel": np.eye(4), "bias": np.zeros(4)}
    >>> masks = {"kernel": np.eye(4, dtype=bool), "bias": True}
    >>> for row in report.layers(params, masks):
    ...   print(row.path, row.size, row.nnz, row.sparsity)
    bias 4 4 0.0
    kernel 16 4 0.75
  """
  paths, structure = jax.tree_util.tree_flatten_with_path(
    params, is_leaf=is_matrix
  )
  nodes = any(is_matrix(x) for _, x in paths)
  shapes = structure.unflatten(
    jax.ShapeDtypeStruct(x.shape, x.dtype) if is_matrix(x) else x
    for _, x in paths
  )
  for name, tree in (("masks", masks), ("flops", flops)):
    if tree is not None and jax.tree.structure(tree) != structure:
      raise ValueError(
        f"{name} must have the structure of params; wanted {structure}, got"
        f" {jax.tree.structure(tree)}"
      )
  costs = [None] * structure.num_leaves
  if flops is not None:
    costs = jax.tree.leaves(flops)
  by_path = roles.of(shapes, prunable)
  return [
    _layer(path_name(path), param, np.asarray(mask), cost, by_path, nodes)
    for (path, param), mask, cost in zip(
      paths,
      jax.tree.leaves(masks),
      costs,
      strict=True,
    )
  ]


def total(rows: Iterable[Layer], path: str = "total") -> Layer:
  """Adds up rows into one, which is masked if any of them is.

  Args:
    rows: Rows from `layers`, all of them or a selection.
    path: The name of the total.

  Returns:
    A row with the sums.

  Example:
    >>> import numpy as np
    >>> from sparsejax import report
    >>> params = {"kernel": np.eye(4), "bias": np.zeros(4)}
    >>> masks = {"kernel": np.eye(4, dtype=bool), "bias": True}
    >>> rows = report.layers(params, masks)
    >>> report.total(rows).sparsity
    0.6
    >>> report.total(row for row in rows if row.masked).sparsity
    0.75
  """
  rows = list(rows)
  dtypes = {row.dtype for row in rows}
  priced = bool(rows) and all(row.flops is not None for row in rows)
  weighed = bool(rows) and all(row.nbytes is not None for row in rows)
  return Layer(
    path=path,
    shape=(),
    dtype=dtypes.pop() if len(dtypes) == 1 else "",
    size=sum(row.size for row in rows),
    nnz=sum(row.nnz for row in rows),
    masked=any(row.masked for row in rows),
    flops=sum(row.flops for row in rows) if priced else None,
    sparse_flops=sum(row.sparse_flops for row in rows) if priced else None,
    nbytes=sum(row.nbytes for row in rows) if weighed else None,
  )


def table(rows: Iterable[Layer]) -> str:
  """Formats rows as a table, with totals of the sparse and of all leaves.

  The text is Markdown, aligned so that it is easy to read as plain text.

  Args:
    rows: Rows from `layers`.

  Returns:
    The table, without a newline at its end. Numbers of weights and FLOPs have
    thousands separators; the sparsity of a leaf without a mask reads "dense".

  Example:
    >>> import numpy as np
    >>> from sparsejax import report
    >>> params = {"kernel": np.ones((8, 4)), "bias": np.zeros(4)}
    >>> masks = {"kernel": np.tri(8, 4, -4, dtype=bool), "bias": True}
    >>> print(report.table(report.layers(params, masks)))
    | leaf          | shape | dtype   | taken for      | size | nnz | sparsity |
    | :------------ | :---- | :------ | :------------- | ---: | --: | -------: |
    | bias          | 4     | float64 | bias           |    4 |   4 |    dense |
    | kernel        | 8 x 4 | float64 | weight, 8 -> 4 |   32 |  10 |  68.75 % |
    | sparse leaves |       | float64 |                |   32 |  10 |  68.75 % |
    | all leaves    |       | float64 |                |   36 |  14 |  61.11 % |
  """
  rows = list(rows)
  sparse = total((row for row in rows if row.masked), "sparse leaves")
  whole = total(rows, "all leaves")
  columns = ["leaf", "shape", "dtype", "taken for", "size", "nnz", "sparsity"]
  if whole.flops is not None:
    columns += ["FLOPs", "sparse FLOPs"]
  if whole.nbytes is not None:
    columns.append("bytes")
  lines = [
    [cells[column] for column in columns]
    for cells in map(_cells, (*rows, sparse, whole))
  ]
  widths = [
    max(map(len, column)) for column in zip(columns, *lines, strict=True)
  ]

  def line(cells):
    aligned = (
      cell.ljust(width) if i < _TEXT_COLUMNS else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(aligned)} |"

  rule = [
    ":" + "-" * (w - 1) if i < _TEXT_COLUMNS else "-" * (w - 1) + ":"
    for i, w in enumerate(widths)
  ]
  return "\n".join(map(line, (columns, rule, *lines)))


_TEXT_COLUMNS = 4  # these go to the left, numbers to the right


def _layer(
  path: str,
  param: Any,
  mask: np.ndarray,
  cost: int | None,
  by_path: dict[str, roles.Role],
  weighed: bool,
) -> Layer:
  shape, size = tuple(param.shape), math.prod(param.shape)
  role, path = by_path[path], path or "params"
  words = role.kind
  if role.kind == "weight":
    words += ", " + roles.reading(role, shape)
  if mask.shape not in ((), shape):
    raise ValueError(
      f"the mask of '{path}' must have the shape of its parameter, {shape},"
      f" or be the scalar True; got shape {mask.shape}"
    )
  nnz = int(np.count_nonzero(mask))
  return Layer(
    path=path,
    shape=shape,
    dtype=str(param.dtype),
    size=size,
    nnz=nnz if mask.shape == shape else nnz * size,
    masked=bool(mask.shape),
    flops=cost,
    sparse_flops=None if cost is None else flops_lib.sparse_flops(cost, mask),
    role=words,
    nbytes=sum(_nbytes(x) for x in jax.tree.leaves(param)) if weighed else None,
  )


def _nbytes(x: Any) -> int:
  return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def _cells(row: Layer) -> dict[str, str]:
  def number(x: float | None) -> str:
    return "" if x is None else f"{x:,.0f}"

  return {
    "leaf": row.path.replace("|", r"\|"),
    "shape": " x ".join(map(str, row.shape)),
    "dtype": row.dtype,
    "taken for": row.role,
    "size": number(row.size),
    "nnz": number(row.nnz),
    "sparsity": (
      f"{row.sparsity:.2%}".replace("%", " %") if row.masked else "dense"
    ),
    "FLOPs": number(row.flops),
    "sparse FLOPs": number(row.sparse_flops),
    "bytes": number(row.nbytes),
  }
