"""Ways around what XLA does to programs, each with a test of its need.

`tests/test_xla.py` and `tests/compiled` fail where XLA no longer needs one of
them.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def materialised(function: Callable[..., Any], *operands: Any) -> Any:
  """Computes a function's results in one place.

  XLA computes what is cheap anew in every place that uses it, and may round it
  otherwise in one than in another, by fusing a product with a sum; it also
  begins what is large before it is needed. After this, results have one value,
  and on a CPU what the function needs for a moment is not there beside what
  others need.

  Args:
    function: Of arrays.
    *operands: Its arguments, pytrees. A single one of the result's shapes and
      dtypes is overwritten in place.

  Returns:
    What the function returns.
  """
  function = jax.jit(function)  # traced once for all that follows

  def barred(*operands):
    return lax.optimization_barrier(function(*operands))

  return lax.platform_dependent(
    *operands, cpu=functools.partial(_in_a_loop, function), default=barred
  )


def _in_a_loop(function, *operands):
  """Computes a function's results by a loop of one turn.

  XLA's compiler for CPUs looks through an optimization barrier, but it neither
  takes a loop apart, nor begins what depends on it before its end. That for
  GPUs keeps the barrier, whereas a loop there waits for its host.
  """
  shapes = jax.eval_shape(function, *operands)
  turns = lax.optimization_barrier(jnp.int32(1))

  if len(operands) == 1 and _avals(operands[0]) == _avals(shapes):

    def turn(carry):
      return carry[0] + 1, function(carry[1])

    first = operands[0]
  else:

    def turn(carry):
      # Together with the turn's number, or XLA would take it out of the loop.
      i, xs = lax.optimization_barrier((carry[0], operands))
      return i + 1, function(*xs)

    first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  begin = jnp.int32(0), first
  return lax.while_loop(lambda carry: carry[0] < turns, turn, begin)[1]


def begun_after(first: jax.Array, values: jax.Array) -> jax.Array:
  """Has an accelerator make what is made of values after another array only.

  Its compiler moves work across optimization barriers, and begins what depends
  on params alone before all else. It does not see that a bit of `first`, on
  which a choice between values and zeros hangs here, is always 0. On a CPU what
  is `materialised` waits by itself.

  Args:
    first: Floating or integer array.
    values: Array, of which much is to be made.

  Returns:
    The values.

  Example:
    >>> print(begun_after(jnp.ones(3), jnp.arange(3)))
    [0 1 2]
  """

  def waiting(first, values):
    return jnp.where(_zero_of(first) == 0, values, jnp.zeros_like(values))

  return _on_one_accelerator(waiting, lambda first, values: values)(
    first, values
  )


def zeros_after(first: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Makes zeros of an array's dtype, on an accelerator after that array only.

  Its compiler makes all large arrays of zeros of a program at once, as its
  first kernel, and so keeps room for all dense matrices from then on.

  Args:
    first: Floating or integer array.
    shape: That of the zeros.

  Returns:
    The zeros.

  Example:
    >>> print(zeros_after(jnp.ones(3), (2,)))
    [0. 0.]
  """

  def waiting(first):
    zero = (_zero_of(first) != 0).astype(first.dtype)
    return jnp.broadcast_to(zero, shape)

  return _on_one_accelerator(waiting, lambda x: jnp.zeros(shape, x.dtype))(
    first
  )


def _zero_of(x):
  """Computes 0 of an array's first bit, as XLA's simplifier cannot see."""
  one = lax.slice_in_dim(lax.stop_gradient(x).reshape(-1), 0, 1).reshape(())
  if one.dtype == bool:
    one = one.astype(jnp.uint8)
  bits = 8 * one.dtype.itemsize
  return (lax.bitcast_convert_type(one, f"uint{bits}") >> (bits - 1)) >> 1


def _on_one_accelerator(there, elsewhere):
  """Makes a function of arrays that does the one or the other."""

  def function(*operands):
    # Of several devices, another one may have the first element.
    if jax.device_count() > 1 or not operands[0].size:
      return elsewhere(*operands)
    return lax.platform_dependent(*operands, cpu=elsewhere, default=there)

  return function


def _avals(tree: Any) -> tuple:
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, [(x.shape, x.dtype) for x in leaves]


def in_memory(x: jax.Array) -> jax.Array:
  """Has an accelerator compute an array once, and read it from memory.

  XLA for GPUs may otherwise compute what is cheap in each kernel that reads it.
  An array of one axis also lies there in its order; others XLA lays out as
  suits what is made of them, and reductions then run along the wrong axis.
  """
  return lax.optimization_barrier(x)


def switch(
  index: jax.Array, branches: Sequence[Callable[[], jax.Array]]
) -> jax.Array:
  """Calls one of several functions; an accelerator calls all of them.

  It would wait for its host to learn which.

  Args:
    index: Integer scalar, of the function whose array to return.
    branches: The functions, of no arguments.

  Returns:
    An array.

  Example:
    >>> print(switch(jnp.int32(1), [lambda: jnp.zeros(2), lambda: jnp.ones(2)]))
    [1. 1.]
  """

  def one(index):
    return lax.switch(index, branches)

  def every(index):
    return lax.select_n(index, *(branch() for branch in branches))

  return lax.platform_dependent(index, cpu=one, default=every)


def in_every_pass(i: jax.Array, *operands: jax.Array) -> Sequence[jax.Array]:
  """Has what is made of operands computed anew in each pass of a loop.

  XLA would take it out of the loop, and keep it: for what is as large as the
  scores that takes twice the memory, and more time.

  Args:
    i: The number of the pass.
    *operands: Arrays that do not change from pass to pass.

  Returns:
    The operands.
  """
  return lax.optimization_barrier((*operands, i))[:-1]


def count(*flags: jax.Array, several: bool) -> Sequence[jax.Array]:
  """Counts, in one pass, what is True in each of several arrays of one shape.

  On one device by one reduction of several operands: XLA vectorizes it on a
  CPU, which it does not do with a reduction of one. Where arrays may be
  sharded, by a reduction each: XLA makes scalar all-reduces of these, but would
  gather the several operands' partial counts.

  Args:
    *flags: Bool arrays of one shape.
    several: Whether there are several devices.

  Returns:
    An int32 scalar for each.

  Example:
    >>> import jax.numpy as jnp
    >>> x = jnp.arange(5)
    >>> [int(n) for n in count(x > 1, x > 3, several=False)]
    [3, 1]
  """
  if several:
    return [jnp.sum(f, dtype=jnp.int32) for f in flags]
  return lax.reduce(
    tuple(f.astype(jnp.int32) for f in flags),
    tuple(jnp.int32(0) for _ in flags),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    tuple(range(flags[0].ndim)),
  )


def uniform_flat(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws the bits of `jax.random.uniform(key, shape)`, as one axis.

  XLA takes ten times longer to compile that for the four axes of a convolution
  than for one. But an array that is to be sharded is better drawn as it is.
  """
  return jax.random.uniform(key, (math.prod(shape),)).reshape(shape)


def sharded_like(x: jax.Array, other: jax.Array) -> jax.Array:
  """Reshards an array as another, where that is part of the other's type."""
  sharding = jax.typeof(other).sharding
  if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
    x = jax.sharding.reshard(x, sharding)
  return x


def sharded_as_first(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function that moves axes about take arrays of explicit sharding.

  Args:
    function: What maps an array, and further ones, to one of its shape.

  Returns:
    The same function. Where sharding is part of the arrays' types, XLA chooses
    it inside, and the result has that of the first one.
  """

  def wrapped(x: jax.Array, *args: Any) -> jax.Array:
    sharding = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
      return function(x, *args)
    return jax.sharding.auto_axes(function, out_sharding=sharding)(x, *args)

  return wrapped


def cond_of_changes(
  now: jax.Array,
  then: Callable[[], Any],
  otherwise: Callable[[], Any],
  old: Any,
) -> Any:
  """Chooses as `lax.cond` does between trees that are mostly as they were.

  XLA writes every array that comes out of a conditional, one after the other,
  even those that a branch only passes on. So, on an accelerator, what comes out
  for bool arrays and int32 scalars is one array of the bits in which they
  differ from the old ones, all zero where nothing changes. They are made of it
  where they are used, by kernels that are there anyway. On CPUs, and where
  arrays may be sharded over several devices, this is `lax.cond`.

  Args:
    now: Which of the two, a bool scalar.
    then: `() -> tree`.
    otherwise: `() -> tree`; what it passes on are the arrays of `old`.
    old: The tree before, of the same shapes and dtypes.

  Returns:
    The tree.
  """
  if jax.device_count() > 1 or not isinstance(now, jax.core.Tracer):
    return lax.cond(now, then, otherwise)
  then = jax.jit(then)  # so that it is traced once
  return lax.platform_dependent(
    cpu=lambda: lax.cond(now, then, otherwise),
    default=lambda: _by_changes(now, then, otherwise, old),
  )


def _by_changes(now, then, otherwise, old):
  before, treedef = jax.tree.flatten(old)
  small = [_is_of_bytes(x) for x in before]

  def changes(function: Callable[[], Any]) -> tuple[jax.Array, list]:
    after = treedef.flatten_up_to(function())
    pairs = itertools.compress(zip(after, before, strict=True), small)
    found = [jnp.zeros(0, jnp.uint8), *itertools.starmap(_differing, pairs)]
    others = itertools.compress(after, map(operator.not_, small))
    return jnp.concatenate(found), [*others]

  found, others = lax.cond(
    now, lambda: changes(then), lambda: changes(otherwise)
  )
  others, start, after = iter(others), 0, []
  for x, is_small in zip(before, small, strict=True):
    if is_small:
      end = start + x.size * x.dtype.itemsize
      after.append(_changed(x, found[start:end]))
      start = end
    else:
      after.append(next(others))
  return treedef.unflatten(after)


def _is_of_bytes(x: jax.Array) -> bool:
  return x.dtype == bool if x.ndim else x.dtype == jnp.int32


def _differing(new: jax.Array, old: jax.Array) -> jax.Array:
  """Lists the bytes in which two arrays differ, by their bits."""
  if new is old:
    return jnp.zeros(old.size * old.dtype.itemsize, jnp.uint8)
  bits = new ^ old
  if not old.ndim:
    bits = jnp.stack([bits >> shift for shift in _SHIFTS])
  return jnp.ravel(bits).astype(jnp.uint8)


def _changed(old: jax.Array, found: jax.Array) -> jax.Array:
  """Undoes `_differing`."""
  if old.ndim:
    return old ^ found.astype(bool).reshape(old.shape)
  for byte, shift in zip(jnp.split(found, 4), _SHIFTS, strict=True):
    old ^= byte.astype(jnp.int32).reshape(()) << shift
  return old


_SHIFTS = (0, 8, 16, 24)  # of the bytes of an int32
