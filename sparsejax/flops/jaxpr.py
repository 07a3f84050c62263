"""Reads products off a jaxpr, and whose parameters they multiply.

The rules are told in flops.py, which is the public side of this.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.extend.core import Literal

# Equations whose outputs are their first operands, laid out anew.
_LAYOUT = frozenset({
  "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "device_put",
  "dynamic_slice", "expand_dims", "layout_constraint", "name",
  "neg", "optimization_barrier", "pad", "pcast", "pvary", "reduce_precision",
  "reshape", "reshard", "rev", "sharding_constraint", "slice", "split",
  "squeeze", "transpose",
})  # fmt: skip
# Equations that leave a weight a weight, whatever the other operand is.
_LINEAR = frozenset({"add", "add_any", "div", "mul", "select_n", "sub"})


class _Origin(NamedTuple):
  """Which parameter leaves a value of the jaxpr is made of.

  A value made of constants alone has no origin (None), and one in which no
  single parameter can be made out any more has the origin `_DATA`.
  """

  shares: tuple[tuple[int, int], ...] = ()  # (index, size) of each leaf
  pure: bool = False  # of parameters and constants, no data mixed in
  spread: bool = False  # repeated by a broadcast, as a bias over a batch


_DATA = _Origin()


def _rank(origin: _Origin) -> tuple[bool, bool, int]:
  size = sum(size for _, size in origin.shares)
  return origin.pure, not origin.spread, size


def _dot(eqn) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  terms = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  return 2 * math.prod(eqn.outvars[0].aval.shape) * terms


def _ragged_dot(eqn) -> int:
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (contracted, _), _ = numbers.dot_dimension_numbers
  terms = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  shape = eqn.outvars[0].aval.shape
  if set(numbers.lhs_ragged_dimensions) & set(contracted):
    shape = shape[1:]  # a term belongs to one group only
  return 2 * math.prod(shape) * terms


def _conv(eqn) -> int:
  out, kernel = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
  numbers = eqn.params["dimension_numbers"]
  terms = 2 * kernel[numbers.rhs_spec[1]]
  terms *= math.prod(out[i] for i in numbers.out_spec[:2])
  for dim, out_dim, kernel_dim in zip(
    range(len(out) - 2),
    numbers.out_spec[2:],
    numbers.rhs_spec[2:],
    strict=True,
  ):
    stride = eqn.params["window_strides"][dim]
    holes = eqn.params["lhs_dilation"][dim]
    dilation = eqn.params["rhs_dilation"][dim]
    first = eqn.params["padding"][dim][0]
    taps = range(kernel[kernel_dim])
    terms *= sum(
      (i * stride + j * dilation - first) % holes == 0
      for i in range(out[out_dim])
      for j in taps
    )
  return terms


_PRODUCTS = {
  "dot_general": _dot,
  "ragged_dot_general": _ragged_dot,
  "conv_general_dilated": _conv,
}


def _share_out(flops: int, origin: _Origin) -> Counter:
  """Divides FLOPs among leaves by their sizes; None is no leaf at all."""
  total = sum(size for _, size in origin.shares)
  if not total:
    return Counter({None: flops})
  parts = Counter()
  for leaf, size in origin.shares:
    parts[leaf] += flops * size // total
  parts[origin.shares[0][0]] += flops - parts.total()
  return parts


def _join(*origins: _Origin | None) -> _Origin | None:
  """Merges the origins of a value that is one of several, as of a cond."""
  known = [o for o in origins if o is not None]
  if not known:
    return None
  if len({o.shares for o in known}) > 1:
    return _DATA
  return _Origin(
    known[0].shares,
    all(o.pure for o in known),
    any(o.spread for o in known),
  )


def _follow(eqn, origins: Sequence[_Origin | None]) -> list[_Origin | None]:
  """Finds the origins of the outputs of an equation without products."""
  name, outs = eqn.primitive.name, eqn.outvars
  known = [o for o in origins if o is not None]
  if not known or not outs:
    return [None] * len(outs)
  if name in _LAYOUT:
    grown = outs[0].aval.size > eqn.invars[0].aval.size
    spread = name == "broadcast_in_dim" and grown
    one_to_one = len(outs) == len(origins)
    return [
      o and o._replace(spread=o.spread or spread)
      for o in (origins if one_to_one else origins[:1] * len(outs))
    ]
  if name == "gather" and origins[0] is not None:
    return [origins[0]._replace(pure=False)]
  # A weight and its mask have one shape; a bias, a scale or a position
  # embedding that meets a batch of activations was spread to it.
  whole = [
    o
    for o, v in zip(origins, eqn.invars, strict=True)
    if o and o.shares and not o.spread and v.aval.shape == outs[0].aval.shape
  ]
  if all(o.pure for o in known):
    if name in ("concatenate", "stack"):
      shares = tuple(share for o in known for share in o.shares)
      return [_Origin(shares, True, all(o.spread for o in known))]
    return [max(whole or known, key=_rank)] * len(outs)
  if name in _LINEAR and whole:
    return [max(whole, key=_rank)._replace(pure=False)]
  return [_DATA] * len(outs)


def _loop(body, consts, carry, xs) -> tuple[Counter, list[_Origin | None]]:
  """One turn of a loop, once the origins of its carry have settled."""
  while True:
    flops, outs = _walk(body, [*consts, *carry, *xs])
    joined = [_join(*pair) for pair in zip(carry, outs, strict=False)]
    if joined == carry:
      return flops, outs
    carry = joined


def _bodies(eqn) -> list:
  """Lists the jaxprs inside an equation."""
  values = (
    v if isinstance(v, (tuple, list)) else (v,) for v in eqn.params.values()
  )
  return [
    getattr(v, "jaxpr", v) for vs in values for v in vs if hasattr(v, "eqns")
  ]


def _equation(eqn, origins) -> tuple[Counter, list[_Origin | None]]:
  name, bodies = eqn.primitive.name, _bodies(eqn)
  if name in _PRODUCTS:
    factors = [o for o in origins if o and o.shares]
    owner = max(factors, key=_rank, default=_DATA)
    return _share_out(_PRODUCTS[name](eqn), owner), [_DATA]
  if name == "scan":
    (body,) = bodies
    # The parameters of scan differ between versions of JAX; ranks do not lie:
    # what is scanned over, or stacked, has one dimension more outside.
    scanned = sum(
      v.aval.ndim > w.aval.ndim
      for v, w in zip(eqn.invars, body.invars, strict=True)
    )
    carried = sum(
      v.aval.ndim == w.aval.ndim
      for v, w in zip(eqn.outvars, body.outvars, strict=True)
    )
    xs = len(origins) - scanned
    carry = xs - carried
    flops, outs = _loop(body, origins[:carry], origins[carry:xs], origins[xs:])
    times = eqn.params["length"]
    return Counter({k: v * times for k, v in flops.items()}), outs
  if name == "while":
    test, body = (
      getattr(eqn.params[k], "jaxpr", eqn.params[k])
      for k in ("cond_jaxpr", "body_jaxpr")
    )
    tested = eqn.params["cond_nconsts"]
    start = tested + eqn.params["body_nconsts"]
    carry = origins[start:]
    flops, outs = _loop(body, origins[tested:start], carry, [])
    if flops or _walk(test, [*origins[:tested], *outs])[0]:
      raise ValueError(
        "cannot count the matrix products inside a while_loop, for its number"
        " of turns is not known; use lax.scan, or lax.fori_loop with Python"
        " integers for bounds"
      )
    return flops, [_join(*pair) for pair in zip(carry, outs, strict=True)]
  if name == "cond":
    counts, outs = zip(
      *(_walk(branch, origins[1:]) for branch in bodies), strict=True
    )
    dearest = max(counts, key=Counter.total)
    return dearest, [_join(*o) for o in zip(*outs, strict=True)]
  if len(bodies) == 1 and len(bodies[0].invars) == len(origins):
    flops, outs = _walk(bodies[0], origins)
    if name == "shard_map":  # its body is what one device does
      axes = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))
      devices = math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
      flops = Counter({k: v * devices for k, v in flops.items()})
    return flops, outs
  if any(_walk(body, [None] * len(body.invars))[0] for body in bodies):
    raise NotImplementedError(
      f"cannot count the matrix products inside `{name}`; count the FLOPs of"
      " an equivalent function of jax.numpy, or set them by hand"
    )
  return Counter(), _follow(eqn, origins)


def _walk(jaxpr, origins) -> tuple[Counter, list[_Origin | None]]:
  """Counts FLOPs by leaf index, and finds where outputs come from."""
  # Arrays that a function closes over are most often its input.
  known = {v: _DATA for v in jaxpr.constvars if v.aval.ndim}
  known.update(zip(jaxpr.invars, origins, strict=True))

  def read(variable):
    return None if isinstance(variable, Literal) else known.get(variable)

  flops = Counter()
  for eqn in jaxpr.eqns:
    more, outs = _equation(eqn, [read(v) for v in eqn.invars])
    flops += more
    known.update(zip(eqn.outvars, outs, strict=True))
  return flops, [read(v) for v in jaxpr.outvars]


def count(fn, sizes: Sequence[int], *args) -> Counter:
  """The FLOPs of every product in a function, by parameter.

  Args:
    fn: A function of pytrees of arrays or `jax.ShapeDtypeStruct`s.
    sizes: Of the first leaves of `args`, which are the parameters.
    *args: Its arguments.

  Returns:
    FLOPs by the parameter's index; None stands for no parameter.
  """
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  params = [
    _Origin(((index, max(size, 1)),), pure=True)
    for index, size in enumerate(sizes)
  ]
  rest = [_DATA] * (len(jaxpr.invars) - len(params))
  return _walk(jaxpr, [*params, *rest])[0]
