"""Selections as equations of a program, gathered and lowered by platform.

A selection is one equation, of a primitive. That serves two ends. What it
becomes is decided when a program is lowered, for the platform that it is for:
CPUs, accelerators, or meshes of several devices. And it can be recognised in
the program of a function that selects in many arrays, one after another, so
that `together` can have those that do not wait for each other done as one.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal, Primitive
from jax.interpreters import batching, mlir

from sparsejax.select import counting, tiles
from sparsejax.select.order import ordered

# What is ranked together on an accelerator: at most so many scores, whose keys
# are kept in memory, and tiles in a table of all arrays.
_MOST_SCORES, _MOST_TILES = 2**25, 2**20

_T = TypeVar("_T", bound=Callable[..., Any])


class Selection(NamedTuple):
  """One selection; its operands are the leaves, k, and the candidates.

  Attributes:
    leaves: How many arrays are ranked as if laid end to end.
    where: For each of them, whether it has candidates.
    rare: Whether k is 0 most of the time, which costs a CPU nothing.
    levels: For each `jax.vmap` around it, from the inside out, the axis of each
      operand; None if it has none.
  """

  leaves: int
  where: tuple[bool, ...]
  rare: bool = False
  levels: tuple[tuple[int | None, ...], ...] = ()

  @property
  def operands(self) -> int:
    """How many operands it has."""
    return self.leaves + 1 + sum(self.where)

  def split(self, operands: Sequence[jax.Array]) -> tuple[list, Any, list]:
    """Splits operands into leaves, k, and candidates (None for all)."""
    leaves, k = operands[: self.leaves], operands[self.leaves]
    given = iter(operands[self.leaves + 1 :])
    return list(leaves), k, [next(given) if w else None for w in self.where]

  def out_axes(self, level: tuple[int | None, ...]) -> list[int]:
    """Returns the axes of the masks: those of the leaves that have one."""
    return [axis or 0 for axis in level[: self.leaves]]

  def batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of the operands of one selection one of all of them."""
    for level in self.levels:
      function = jax.vmap(function, level, self.out_axes(level))
    return function


def select(
  leaves: Sequence[jax.Array],
  k: jax.Array | int,
  where: Sequence[jax.Array | None],
  *,
  rare: bool = False,
) -> list[jax.Array]:
  """Marks the k largest of arrays of one dtype, as if laid end to end.

  Args:
    leaves: Floating arrays.
    k: How many to mark.
    where: The candidates of each; None for all.
    rare: Whether k is 0 most of the time.

  Returns:
    Bool arrays of the leaves' shapes.
  """
  selection = Selection(len(leaves), tuple(w is not None for w in where), rare)
  # Masks depend on the order of scores only, which has no derivative.
  leaves = [lax.stop_gradient(x) for x in leaves]
  given = [jnp.asarray(w) for w in where if w is not None]
  return _bind([*leaves, jnp.asarray(k, jnp.int32), *given], [selection])


def _bind(operands, selections):
  several = jax.device_count() > 1
  return _top_k_p.bind(*operands, selections=tuple(selections), several=several)


_top_k_p = Primitive("top_k_mask")
_top_k_p.multiple_results = True
_as_program = jax.jit(_top_k_p.bind, static_argnames=("selections", "several"))


@_top_k_p.def_impl
def _run(*operands, **params):
  with jax.disable_jit(False):
    return _as_program(*operands, **params)


def _parts(operands, selections) -> Iterator[tuple[Selection, tuple]]:
  """Yields each selection with its operands."""
  for selection in selections:
    n = selection.operands
    yield selection, operands[:n]
    operands = operands[n:]


@_top_k_p.def_abstract_eval
def _masks(*avals, selections, several):
  del several
  masks = []
  for selection, own in _parts(avals, selections):
    leaves = own[: selection.leaves]
    new = [x.update(dtype=jnp.dtype(bool), weak_type=False) for x in leaves]
    if any(None in level[: selection.leaves] for level in selection.levels):
      shapes = jax.eval_shape(
        selection.batched(lambda *x, n=selection.leaves: list(x[:n])), *own
      )
      new = [x.update(shape=s.shape) for x, s in zip(new, shapes, strict=True)]
    masks += new
  return masks


def _batch(operands, axes, *, selections, several):
  """Adds a level to each selection that has an operand with a new axis."""
  new, out_axes = [], []
  for selection, level in _parts(axes, selections):
    if level == (None,) * len(level):
      out_axes += [None] * selection.leaves
    else:
      out_axes += selection.out_axes(level)
      selection = selection._replace(levels=(*selection.levels, tuple(level)))
    new.append(selection)
  params = {"selections": tuple(new), "several": several}
  return _top_k_p.bind(*operands, **params), out_axes


batching.primitive_batchers[_top_k_p] = _batch


# One program for all leaves of a shape.
@functools.partial(jax.jit, static_argnames=("selection", "several"))
def _top_k_mask(*operands, selection, several):
  def one(*operands):
    leaves, k, where = selection.split(operands)
    mark = functools.partial(counting.on_cpu, leaves, k, where, several)
    if not selection.rare:
      return mark()
    nothing = [jnp.zeros(x.shape, bool) for x in leaves]
    return lax.cond(k > 0, mark, lambda: nothing)

  return selection.batched(one)(*operands)


def _on_cpu(*operands, selections, several):
  return [
    mask
    for selection, own in _parts(operands, selections)
    for mask in _top_k_mask(*own, selection=selection, several=several)
  ]


def _on_accelerators(*operands, selections, several):
  parts = list(_parts(operands, selections))
  if several:
    return [mask for part in parts for mask in _on_mesh(*part)]
  keys, ks, put_back = zip(*(_laid_flat(*part) for part in parts), strict=True)
  marked = [jnp.zeros(x.shape, bool) for x in keys]
  for group in _groups(keys):
    found = _k_largest([keys[i] for i in group], [ks[i] for i in group])
    for i, mask in zip(group, found, strict=True):
      marked[i] = mask
  return [
    mask
    for flat, back in zip(marked, put_back, strict=True)
    for mask in back(flat)
  ]


def _on_mesh(selection, operands):
  """Selects by scalars, each of which XLA adds up over devices."""

  def one(*operands):
    leaves, k, where = selection.split(operands)
    return counting.by_counting(leaves, k, where, True, loops=False)

  return selection.batched(one)(*operands)


def _laid_flat(selection, operands):
  """Lays leaves end to end, one selection of a batch along the last axis.

  Returns:
    Their keys [..., scores], k [...], and what puts masks [..., scores] back.
  """
  shapes = []

  def lay(*operands):
    leaves, k, where = selection.split(operands)
    shapes[:] = [x.shape for x in leaves]
    keys = [
      ordered(x) if w is None else jnp.where(w, ordered(x), 0)
      for x, w in zip(leaves, where, strict=True)
    ]
    return jnp.concatenate([x.reshape(-1) for x in keys]), k

  def put_back(mask):
    ends = list(itertools.accumulate(math.prod(s) for s in shapes))
    parts = jnp.split(mask, ends[:-1])
    return [part.reshape(s) for part, s in zip(parts, shapes, strict=True)]

  for level in selection.levels:
    lay = jax.vmap(lay, level)
    put_back = jax.vmap(put_back, 0, selection.out_axes(level))
  return *lay(*operands), put_back


def _groups(keys) -> list[list[int]]:
  """Lists which arrays of keys to rank together: of one dtype, up to a size."""
  groups = {}
  for i, x in enumerate(keys):
    if x.size == 0:
      continue
    rows, longest = x.size // x.shape[-1], tiles.count(x.shape[-1])
    of_dtype = groups.setdefault(x.dtype, [])
    if of_dtype:
      group, all_scores, all_rows, most = of_dtype[-1]
      all_scores, all_rows = all_scores + x.size, all_rows + rows
      most = max(most, longest)
      if all_scores <= _MOST_SCORES and all_rows * most <= _MOST_TILES:
        of_dtype[-1] = [*group, i], all_scores, all_rows, most
        continue
    of_dtype.append(([i], x.size, rows, longest))
  return [group for of_dtype in groups.values() for group, *_ in of_dtype]


def _k_largest(keys, ks):
  """Marks the k largest along the last axis of arrays of any batch axes."""
  masks = tiles.k_largest(
    [x.reshape(-1, x.shape[-1]) for x in keys], [k.reshape(-1) for k in ks]
  )
  return [m.reshape(x.shape) for m, x in zip(masks, keys, strict=True)]


mlir.register_lowering(_top_k_p, mlir.lower_fun(_on_accelerators))
mlir.register_lowering(_top_k_p, mlir.lower_fun(_on_cpu), platform="cpu")


def together(function: _T) -> _T:
  """Merges the selections within a function into few, where that is faster.

  For rules that select in one array after another, where an accelerator starts
  kernels for longer than it runs them. The function's program is taken, and
  evaluated in rounds: all that can be computed by now, then all selections that
  can be done by now, as one equation.

  Args:
    function: Of pytrees of arrays, to such.

  Returns:
    The function, which gives the same. Outside of a trace, and where there are
    several devices, whose arrays may be sharded, it is as it was.

  Example:
    >>> from sparsejax import select
    >>> best = together(lambda xs: [select.top_k_mask(x, 1) for x in xs])
    >>> a, b = jax.jit(best)([jnp.array([1.0, 2.0]), jnp.array([4.0, 3.0])])
    >>> print(a, b)
    [False  True] [ True False]
  """

  @functools.wraps(function)
  def wrapped(*args):
    leaves = jax.tree.leaves(args)
    traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    if jax.device_count() > 1 or not traced:
      return function(*args)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    results = _in_rounds(closed, leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return wrapped


def _in_rounds(closed, args):
  """Evaluates a program, of whose selections many are done at once."""
  program = closed.jaxpr
  values = dict(zip(program.constvars, closed.consts, strict=True))
  values |= dict(zip(program.invars, args, strict=True))

  def is_known(atom):
    return isinstance(atom, Literal) or atom in values

  def read(atom):
    return atom.val if isinstance(atom, Literal) else values[atom]

  def write(variables, results):
    values.update(zip(variables, results, strict=True))

  equations = program.eqns
  while equations:
    ready, waiting = [], []
    for equation in equations:
      if not all(map(is_known, equation.invars)):
        waiting.append(equation)
      elif equation.primitive is _top_k_p:
        ready.append(equation)
      else:
        write(equation.outvars, _evaluated(equation, read))
    if ready:
      masks = _bind(
        [read(x) for e in ready for x in e.invars],
        [s for e in ready for s in e.params["selections"]],
      )
      write([v for e in ready for v in e.outvars], masks)
    equations = waiting
  return [read(x) for x in program.outvars]


def _evaluated(equation: JaxprEqn, read: Callable) -> Sequence[jax.Array]:
  """Evaluates one equation."""
  primitive = equation.primitive
  params = primitive.get_bind_params(equation.params)
  functions = ()
  if isinstance(params, tuple):  # until JAX 0.9
    functions, params = params
  with equation.ctx.manager:
    results = primitive.bind(*functions, *map(read, equation.invars), **params)
  return results if primitive.multiple_results else [results]
