"""What a forward pass and a training step cost, in floating-point operations.

The count is read off the jaxpr, so any model on any params pytree will do.
Measured times are no business of this module.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
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
  """The origin of a value that is one of several, as a cond's output is."""
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
  """The origins of the outputs of an equation that multiplies no matrices."""
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
  """The jaxprs inside an equation."""
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
  """FLOPs by leaf index, and where the outputs come from."""
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


def param_flops(fn: Callable[..., Any], params: Any, *args: Any) -> Any:
  """The forward FLOPs of every parameter leaf, at 2 per multiply-add.

  A leaf is followed from `params` to the products (`dot_general`, ragged dot,
  convolution) that use it: through casts, layout, slices of a stack, masks,
  arithmetic on parameters, scan, vmap, jit, remat and custom derivatives. The
  rules are those by which papers count:

  * a parameter used twice counts twice; one used in no product counts 0, as
    biases, normalization scales and embeddings that are looked up do;
  * a convolution counts every tap of its kernel at every output position,
    those on the padding too (as for the 8.2 GFLOPs of ResNet-50; XLA's
    `cost_analysis` leaves these out), but not on the zeros that `lhs_dilation`
    inserts;
  * products of two activations, as in attention, belong to no leaf; see
    `product_flops` for all of them;
  * of a product of two parameters the larger one is the owner; a product with
    concatenated parameters is divided among them by size;
  * a `lax.cond` costs as much as its dearest branch.

  Nothing is computed: `jax.ShapeDtypeStruct`s serve as well as arrays.

  Args:
    fn: A function of `params` and `args`, of any outputs. What is no array
      (say, a `train` flag) is bound beforehand.
    params: A pytree of arrays of any shape and type.
    *args: Pytrees of arrays. FLOPs are those of this batch; give a batch of
      one for FLOPs per example.

  Returns:
    A pytree of the structure of `params`, of Python integers.

  Raises:
    TypeError: If a leaf of `params` is no array.
    ValueError: If a product lies inside a `lax.while_loop`.
    NotImplementedError: If a product lies inside an equation that cannot be
      looked into, as a Pallas kernel.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from sparsejax import flops
    >>> def mlp(params, x):
    ...   for w, b in params:
    ...     x = jax.nn.relu(x @ w + b)
    ...   return x
    >>> params = [
    ...   (jnp.zeros((784, 300)), jnp.zeros(300)),
    ...   (jnp.zeros((300, 10)), jnp.zeros(10)),
    ... ]
    >>> x = jax.ShapeDtypeStruct((1, 784), jnp.float32)
    >>> flops.param_flops(mlp, params, x)
    [(470400, 0), (6000, 0)]

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  origins = []
  for index, (path, leaf) in enumerate(
    jax.tree_util.tree_leaves_with_path(params)
  ):
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise TypeError(
        f"params must hold arrays, but '{name}' is a {type(leaf).__name__};"
        " take the arrays out first, e.g. with equinox.partition"
      )
    size = max(math.prod(leaf.shape), 1)
    origins.append(_Origin(((index, size),), pure=True))
  counts = _count(fn, origins, params, *args)
  return jax.tree.unflatten(
    jax.tree.structure(params), [counts[i] for i in range(len(origins))]
  )


def product_flops(fn: Callable[..., Any], *args: Any) -> int:
  """The FLOPs of every product in a function, with or without parameters.

  What it gives beyond the sum of `param_flops` is spent on products of
  activations, such as attention scores, that masks do not make cheaper.

  Args:
    fn: A function of `args`.
    *args: Pytrees of arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The FLOPs, at 2 per multiply-add, counted as by `param_flops`.

  Raises:
    ValueError: If a product lies inside a `lax.while_loop`.
    NotImplementedError: If a product lies inside an equation that cannot be
      looked into.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsejax import flops
    >>> flops.product_flops(lambda q, k: q @ k.T, jnp.ones((5, 8)),
    ...                     jnp.ones((7, 8)))
    560
  """
  return _count(fn, [], *args).total()


def _count(fn, origins, *args) -> Counter:
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  rest = [_DATA] * (len(jaxpr.invars) - len(origins))
  return _walk(jaxpr, [*origins, *rest])[0]


def sparse_flops(flops: Any, masks: Any) -> int | float:
  """The FLOPs of a forward pass that skips what the masks turn off.

  Every leaf costs its FLOPs times its density. The sum is made in exact
  fractions, so it does not depend on the order or the number of leaves.

  Args:
    flops: A pytree of integers, from `param_flops`.
    masks: A pytree of the same structure, of bool arrays (True = active) on
      the host or a device, or the scalar True for a leaf that stays dense.

  Returns:
    The FLOPs: an int wherever they are whole, which they are whenever each
    weight of a leaf is used equally often.

  Raises:
    ValueError: If the two structures differ.

  Example:
    >>> import numpy as np
    >>> from sparsejax import flops
    >>> masks = {"first": np.True_, "second": np.eye(4, dtype=bool)}
    >>> flops.sparse_flops({"first": 100, "second": 32}, masks)
    108

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  if jax.tree.structure(flops) != jax.tree.structure(masks):
    raise ValueError(
      "flops and masks must have one structure, that of params; got"
      f" {jax.tree.structure(flops)} and {jax.tree.structure(masks)}"
    )
  total = sum(
    Fraction(int(count) * int(np.count_nonzero(mask)), max(np.size(mask), 1))
    for count, mask in zip(
      jax.tree.leaves(flops),
      map(np.asarray, jax.tree.leaves(masks)),
      strict=True,
    )
  )
  return int(total) if total == int(total) else float(total)


def dense_training_flops(dense: float) -> float:
  """The FLOPs of a training step of a dense network: 3 f_D.

  A backward pass costs twice a forward pass: once for the gradient of the
  activations, once for that of the weights.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.

  Returns:
    The FLOPs per step, in that unit. Divide another method's by it to have
    them relative to dense training, as tables print them.

  Example:
    >>> from sparsejax import flops
    >>> flops.dense_training_flops(8.2e9)
    24600000000.0

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return 3 * dense


def static_training_flops(sparse: float) -> float:
  """The FLOPs of a step with a fixed mask, or of SET: 3 f_S.

  SET grows at random and SNIP masks once, so neither needs a dense gradient.

  Args:
    sparse: f_S, the FLOPs of the sparse forward pass, in any unit.

  Returns:
    The FLOPs per step, in that unit.

  Example:
    >>> from sparsejax import flops
    >>> flops.static_training_flops(100)
    300

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return 3 * sparse


def snfs_training_flops(dense: float, sparse: float) -> float:
  """The FLOPs of a step of sparse networks from scratch: 2 f_S + f_D.

  The momentum that it grows by needs the dense gradient of the weights on
  every step.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.
    sparse: f_S, the FLOPs of the sparse forward pass, in the same unit.

  Returns:
    The FLOPs per step, in that unit.

  Example:
    >>> from sparsejax import flops
    >>> flops.snfs_training_flops(1000, 100)
    1200

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return 2 * sparse + dense


def rigl_training_flops(dense: float, sparse: float, *, delta_t: int) -> float:
  """The FLOPs of RigL: (3 f_S dT + 2 f_S + f_D) / (dT + 1).

  The dense gradient of the weights is needed once every delta_t steps. As in
  the paper, the steps after the last mask update are not told apart.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.
    sparse: f_S, the FLOPs of the sparse forward pass, in the same unit.
    delta_t: dT, the steps between two mask updates, at least 1.

  Returns:
    The FLOPs per step on average, in that unit.

  Raises:
    ValueError: If delta_t is less than 1.

  Example:
    A ResNet-50 at 80 % sparsity (ERK), relative to dense training:

    >>> from sparsejax import flops
    >>> step = flops.rigl_training_flops(1.0, 0.414, delta_t=100)
    >>> round(step / flops.dense_training_flops(1.0), 3)
    0.416

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  if delta_t < 1:
    raise ValueError(f"delta_t must be at least 1, got {delta_t}")
  update = snfs_training_flops(dense, sparse)
  return (delta_t * static_training_flops(sparse) + update) / (delta_t + 1)


def pruning_training_flops(sparse: Iterable[float]) -> float:
  """The FLOPs of gradual pruning: the mean of 3 f_S(t) over the steps t.

  Args:
    sparse: f_S(t), the FLOPs of the forward pass at every step, or at steps
      spaced evenly over all of training, in any unit.

  Returns:
    The FLOPs per step on average, in that unit.

  Raises:
    ValueError: If there is no step.

  Example:
    >>> from sparsejax import flops
    >>> flops.pruning_training_flops([100, 60, 20])
    180.0

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  steps = [static_training_flops(s) for s in sparse]
  if not steps:
    raise ValueError("the mean over the steps of training needs a step")
  return math.fsum(steps) / len(steps)
