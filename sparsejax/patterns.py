"""The shapes that zeros may take.

A pattern says which masks are allowed: how many weights they keep, which are
the best of them by some scores, and how a mask moves among them.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax import select
from sparsejax.distributions import Distribution, check_sparsity

_MOST_IN_A_TILE = 4


class Pattern(NamedTuple):
  """Which masks a leaf may have: a set of pure functions.

  Attributes:
    density: The share of weights that it keeps, if the pattern itself settles
      that, as 2:4 does; None if a distribution does.
    budget: `(shape, n) -> n`: the number of weights nearest n that a leaf of
      that shape can keep. Raises a ValueError if the shape does not fit.
    top_k: `(scores, k, where=None) -> mask`: the best mask of k weights among
      the candidates `where`, a mask itself; of all candidates if there are
      fewer. A k between two budgets counts as the larger one; it may be traced.
    swap: `(mask, k, n, drop, grow, regrow) -> mask`: a mask of k weights like
      the old one, in which the best by the scores `grow` have taken the place
      of the n (or a few less) worst by `drop`. Those may return at once if
      `regrow`, and do otherwise only where nothing else is left to grow.
    holds: `(mask) -> bool scalar`: whether a mask is one of those allowed.
  """

  density: Fraction | None
  budget: Callable[[tuple[int, ...], int], int]
  top_k: Callable[..., jax.Array]
  swap: Callable[..., jax.Array]
  holds: Callable[[jax.Array], jax.Array]


Patterns = Pattern | Callable[[Collection[str]], Mapping[str, Pattern]]


def unstructured() -> Pattern:
  """Any weight may be zero.

  Returns:
    The pattern.

  Example:
    >>> import jax.numpy as jnp
    >>> print(unstructured().top_k(jnp.array([1.0, 3.0, 2.0]), 2))
    [False  True  True]
  """

  def swap(mask, k, n, drop, grow, regrow=True):
    return _swap(mask, k, n, drop, grow, regrow)

  return Pattern(
    density=None,
    budget=lambda shape, n: n,
    top_k=select.top_k_mask,
    swap=swap,
    holds=lambda mask: jnp.array(True),
  )


def blocks(shape: tuple[int, ...], *, pool: Callable = jnp.mean) -> Pattern:
  """Blocks of weights are zero, or not, as one.

  They tile the last axes; every index of the axes before, such as the places
  in a convolution's kernel, has blocks of its own.

  Args:
    shape: Of a block. The last axes have to divide by it: a leaf whose do not
      is refused, lest the number of weights change as smaller blocks at the
      border come and go. Give it another pattern with `by_path`, or leave it
      out of `prunable`.
    pool: A block's score, from those of its weights: a reduction like
      `jnp.mean` and `jnp.max`.

  Returns:
    The pattern. Its budgets are multiples of a block's size, at least one.

  Raises:
    ValueError: If the shape is empty, or not of positive integers.

  References:
    Narang et al., Block-Sparse Recurrent Neural Networks, arXiv:1711.02782,
    2017, section 3.1: max pooling.

  Example:
    >>> print(blocks((1, 2)).top_k(jnp.arange(8.0).reshape(2, 4), 4))
    [[False False False False]
     [ True  True  True  True]]
  """
  if not shape or not all(isinstance(b, int) and b > 0 for b in shape):
    raise ValueError(
      f"got blocks of shape {shape!r}, wanted positive integers, such as (4, 4)"
    )

  def parted(leaf):
    lead = len(leaf) - len(shape)
    if lead < 0 or any(a % b for a, b in zip(leaf[lead:], shape, strict=True)):
      raise ValueError(
        f"got the shape {leaf}, wanted last axes that divide by blocks of "
        f"{tuple(shape)}: give this leaf another pattern with "
        "patterns.by_path, or leave it out of `prunable`"
      )
    tiles = [(a // b, b) for a, b in zip(leaf[lead:], shape, strict=True)]
    return [(a, 1) for a in leaf[:lead]] + tiles

  return _of_parts(parted, pool)


def channels(axis: int = -1, *, pool: Callable = jnp.mean) -> Pattern:
  """Whole slices along an axis are zero, or not: channels, neurons.

  Args:
    axis: That of the slices: the last one holds the outputs of Flax's layers.
    pool: A slice's score, from those of its weights, as for `blocks`.

  Returns:
    The pattern. Its budgets are multiples of a slice's size, at least one.

  References:
    Li et al., Pruning Filters for Efficient ConvNets, arXiv:1608.08710, 2017,
    section 3: filters by the sum of |w|.

  Example:
    >>> print(channels().top_k(jnp.array([[1.0, 2.0], [3.0, 4.0]]), 2))
    [[False  True]
     [False  True]]
  """
  return _of_parts(lambda leaf: _sliced(leaf, axis, None), pool)


def heads(groups: int, axis: int = -1, *, pool: Callable = jnp.mean) -> Pattern:
  """An axis falls into groups, such as the heads of attention.

  Args:
    groups: How many groups of neighbours share the axis. A leaf whose axis
      does not divide by them is refused.
    axis: That axis: the last one for Flax's queries, keys and values
      [features, heads x size], -2 for the projection behind them.
    pool: A group's score, from those of its weights, as for `blocks`.

  Returns:
    The pattern. Its budgets are multiples of a group's size, at least one.

  Raises:
    ValueError: If there is not at least one group.

  References:
    Michel et al., Are Sixteen Heads Really Better than One?,
    arXiv:1905.10650, 2019.

  Example:
    >>> print(heads(2).top_k(jnp.array([[1.0, 2.0, 3.0, 4.0]]), 2))
    [[False False  True  True]]
  """
  if groups < 1:
    raise ValueError(f"got {groups} groups, wanted at least 1")
  return _of_parts(lambda leaf: _sliced(leaf, axis, groups), pool)


def fan_in(axis: int = -1) -> Pattern:
  """Every output has the same number of inputs: constant fan-in.

  Args:
    axis: The axis of outputs: the last one for Flax's layers, the first one
      for those of Equinox and PyTorch. All other axes are inputs.

  Returns:
    The pattern. Its budgets are multiples of the number of outputs.

  References:
    Lasby et al., Dynamic Sparse Training with Structured Sparsity,
    arXiv:2305.02299, 2023, section 3.

  Example:
    >>> print(fan_in().top_k(jnp.array([[1.0, 4.0], [2.0, 3.0]]), 2))
    [[False  True]
     [ True False]]
  """

  def inputs(mask):
    return jnp.sum(mask, axis=_others(mask.shape, axis), dtype=jnp.int32)

  def fill(scores, k, keep, where):
    each = -(-k // scores.shape[axis])
    new = select.top_k_of_each(scores, each - inputs(keep), axis, where & ~keep)
    return keep | new

  def budget(shape, n):
    _check_axis(shape, axis)
    return _nearest(shape, n, shape[axis])

  return Pattern(
    density=None,
    budget=budget,
    top_k=_top_k(fill),
    swap=_swap_of(fill),
    holds=lambda mask: jnp.ptp(inputs(mask)) == 0,
  )


def n_of_m(n: int, m: int, axis: int = -2) -> Pattern:
  """Of every m neighbours along an axis, n are active: N:M.

  Nothing is sorted: each weight counts the better ones of its group.

  Args:
    n: How many are active.
    m: Of how many. If the axis does not divide by m, its last group is shorter,
      and keeps n too, or all that it has: as if it were filled up with zeros.
    axis: That of the groups; hardware wants that of inputs, which comes
      second to last in Flax's layers, and last in those of Equinox and PyTorch.

  Returns:
    The pattern. It settles the budget by itself, whatever a distribution says.
    On the way down from dense, where a pruned mask has more, it is N:M with a
    larger n.

  Raises:
    ValueError: Unless 0 < n <= m.

  References:
    Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks
    From Scratch, arXiv:2102.04010, 2021, section 3.
    Kao et al., Training Recipe for N:M Structured Sparsity with Decaying
    Pruning Mask, arXiv:2209.07617, 2022: a falling n.

  Example:
    >>> print(n_of_m(1, 2, axis=0).top_k(jnp.array([1.0, 4.0, 3.0, 2.0]), 2))
    [False  True  True False]
  """
  _check_n_of_m(n, m)

  def counts(shape):
    """How many weights j:m keeps of a shape, for j from 0 to m."""
    whole, rest = divmod(shape[axis], m)
    lines = math.prod(shape) // shape[axis]
    return [lines * (whole * j + min(j, rest)) for j in range(m + 1)]

  def grouped(x):
    """Groups on an axis of their own, the last one filled up with zeros."""
    along = axis % x.ndim
    pad = [(0, 0)] * x.ndim
    pad[along] = (0, -x.shape[along] % m)
    x = jnp.pad(x, pad)
    return x.reshape(*x.shape[:along], -1, m, *x.shape[along + 1 :])

  def fill(scores, k, keep, where):
    along = axis % scores.ndim
    j = _how_many(counts(scores.shape), k)
    keys = jnp.where(where, select.ordered(scores), 0)
    most = jnp.array(jnp.iinfo(keys.dtype).max, keys.dtype)
    keys = grouped(jnp.where(keep, most, keys))
    mask = (_ranks(keys, along + 1) < j) & (keys > 0)
    shape = (*scores.shape[:along], -1, *scores.shape[along + 1 :])
    return lax.slice_in_dim(
      mask.reshape(shape), 0, scores.shape[along], axis=along
    )

  def holds(mask):
    along = axis % mask.ndim
    active = jnp.sum(grouped(mask), along + 1, dtype=jnp.int32)
    room = jnp.sum(grouped(jnp.ones_like(mask)), along + 1, dtype=jnp.int32)
    return jnp.all(active == jnp.minimum(room, jnp.max(active)))

  def budget(shape, wanted):
    del wanted
    _check_axis(shape, axis)
    return counts(shape)[n]

  return Pattern(
    density=Fraction(n, m),
    budget=budget,
    top_k=_top_k(fill),
    swap=_swap_of(fill),
    holds=holds,
  )


def transposable_n_of_m(n: int, m: int) -> Pattern:
  """N:M along both of the last two axes: a mask that fits the transpose too.

  So the same hardware serves the forward pass and the gradient of the inputs.
  All masks of an m x m tile are compared, 90 of them for 2:4, by the sum of
  what they keep.

  Args:
    n: How many of m are active, in every row and column of a tile.
    m: At most 4: the number of masks of a tile explodes. A leaf whose last two
      axes do not divide by m is refused.

  Returns:
    The pattern; see `n_of_m`.

  Raises:
    ValueError: Unless 0 < n <= m <= 4.

  References:
    Hubara et al., Accelerated Sparse Neural Training: A Provable and Efficient
    Method to Find N:M Transposable Masks, arXiv:2102.08124, 2021.
    Hu et al., Accelerating Transformer Pre-training with 2:4 Sparsity,
    arXiv:2404.01847, 2024: the search among all masks.

  Example:
    >>> scores = jnp.array([[9.0, 8.0], [8.0, 1.0]])
    >>> print(transposable_n_of_m(1, 2).top_k(scores, 2))
    [[False  True]
     [ True False]]
  """
  _check_n_of_m(n, m)
  if m > _MOST_IN_A_TILE:
    raise ValueError(
      f"got {n}:{m}, wanted an m of at most {_MOST_IN_A_TILE}: larger tiles "
      "have too many masks to compare"
    )

  def tiles(x):
    *lead, a, b = x.shape
    x = x.reshape(*lead, a // m, m, b // m, m)
    return jnp.swapaxes(x, -3, -2).reshape(*lead, a // m, b // m, m * m)

  def whole(x, shape):
    *lead, a, b = shape
    x = x.reshape(*lead, a // m, b // m, m, m)
    return jnp.swapaxes(x, -3, -2).reshape(shape)

  def best(scores, j, keep, where):
    """The best masks of tiles with what is to be kept, of j:m."""
    allowed = jnp.asarray(_tile_masks(j, m), jnp.float32)

    def total(x):
      return jnp.einsum(
        "...i,pi->...p",
        tiles(x.astype(jnp.float32)),
        allowed,
        precision=lax.Precision.HIGHEST,
      )

    fits = (m * m + 1) * total(keep) + total(where & ~keep)
    fits = fits == jnp.max(fits, -1, keepdims=True)
    # No sum of these overflows: none is below what does not fit.
    most = jnp.finfo(jnp.float32).max / (m * m)
    finite = jnp.clip(scores.astype(jnp.float32), -most, most)
    sums = total(jnp.where(jnp.isnan(finite), -most, finite))
    found = jnp.argmax(jnp.where(fits, sums, -jnp.inf), -1)
    return whole((allowed > 0)[found], scores.shape)

  def fill(scores, k, keep, where):
    size = scores.size
    branches = [lambda: _none(scores)] + [
      lambda j=j: best(scores, j, keep, where) for j in range(1, m + 1)
    ]
    j = _how_many([size * j // m for j in range(m + 1)], k)
    return lax.switch(j, branches)

  def top_k(scores, k, where=None):
    where = _or_all(where, scores)
    return fill(scores, k, _none(scores), where) & where  # if they are fewer

  def swap(mask, k, n, drop, grow, regrow=True):
    keep = select.top_k_mask(drop, k - n, mask)
    return fill(grow, k, keep, ~keep if regrow else ~mask)

  def holds(mask):
    x = tiles(mask).reshape(-1, m, m)
    sums = [jnp.sum(x, a, dtype=jnp.int32) for a in (1, 2)]
    return jnp.ptp(jnp.stack(sums)) == 0

  def budget(shape, wanted):
    del wanted
    if len(shape) < 2 or shape[-1] % m or shape[-2] % m:
      raise ValueError(
        f"got the shape {shape}, wanted last two axes that divide by {m}: give "
        "this leaf another pattern with patterns.by_path, or leave it out of "
        "`prunable`"
      )
    return math.prod(shape) * n // m

  return Pattern(Fraction(n, m), budget, top_k, swap, holds)


def by_path(
  rules: Mapping[str, Pattern], rest: Pattern | None = None
) -> Callable[[Collection[str]], dict[str, Pattern]]:
  """Gives leaves patterns of their own, by regular expression.

  Args:
    rules: Pattern by regular expression; the first that `re.search` finds in
      a sparse leaf's key path holds.
    rest: That of the leaves that no rule names; unstructured by default.

  Returns:
    What the argument `pattern` of the algorithms takes. It raises a ValueError
    for a rule that names no sparse leaf.

  Example:
    >>> import jax, optax, sparsejax
    >>> tx = sparsejax.static(optax.sgd(0.1), 0.5, key=jax.random.key(0),
    ...                       pattern=by_path({"^mlp": n_of_m(2, 4)}))
    >>> params = {"mlp": jnp.ones((8, 3)), "head": jnp.ones((3, 5))}
    >>> params, _ = sparsejax.init(tx, params)
    >>> print(params["mlp"].reshape(2, 4, 3).sum(1))
    [[2. 2. 2.]
     [2. 2. 2.]]
  """
  rest = rest or unstructured()

  def patterns(paths):
    for rule in rules:
      if not any(re.search(rule, path) for path in paths):
        near = difflib.get_close_matches(rule, paths, n=3, cutoff=0.1)
        raise ValueError(
          f"rule {rule!r} names no sparse leaf. Near it: {', '.join(near)}"
        )
    return {
      path: next((p for r, p in rules.items() if re.search(r, path)), rest)
      for path in paths
    }

  return patterns


def resolve(
  pattern: Patterns | None, paths: Collection[str]
) -> dict[str, Pattern]:
  """The pattern of each sparse leaf.

  Args:
    pattern: One for all, what `by_path` gives, or None: unstructured.
    paths: The key paths of the sparse leaves.

  Returns:
    A pattern by key path.

  Raises:
    ValueError: If a rule of `by_path` names no leaf.
  """
  if pattern is None:
    pattern = unstructured()
  if isinstance(pattern, Pattern):
    return dict.fromkeys(paths, pattern)
  return dict(pattern(paths))


def distribution(rest: Distribution, pattern: Patterns) -> Distribution:
  """A distribution that gives each leaf what its pattern can keep.

  Args:
    rest: Shares the weights among the leaves whose pattern leaves that open.
      Leaves whose pattern settles it, as 2:4 does, are left out of its budget.
    pattern: One for all leaves, or what `by_path` gives.

  Returns:
    The distribution. It raises a ValueError that names the leaf if its shape
    does not fit the pattern; and one if all patterns settle their leaves'
    density, but not at the sparsity that is asked for.

  Example:
    >>> from sparsejax import distributions
    >>> d = distribution(distributions.uniform, blocks((4, 4)))
    >>> d({"a": (8, 8), "b": (8, 4)}, 0.7)
    {'a': 16, 'b': 16}
  """

  def counts(shapes, sparsity):
    of = resolve(pattern, shapes)
    settled = {p.density for p in of.values()}
    if None not in settled:
      _check_settled(sparsity, settled)
    free = {p: s for p, s in shapes.items() if of[p].density is None}
    wanted = rest(free, sparsity) if free else {}
    return {
      path: _budget(path, of[path], shape, wanted.get(path))
      for path, shape in shapes.items()
    }

  return counts


def _budget(path, pattern, shape, wanted):
  if pattern.density is None and not isinstance(wanted, int | np.integer):
    return wanted  # refused, by name, where distributions are checked
  try:
    return pattern.budget(shape, wanted)
  except ValueError as error:
    raise ValueError(f"{path or 'the array'}: {error}") from None


def _check_settled(sparsity, densities):
  check_sparsity(sparsity)
  low, high = (float(1 - d) for d in (max(densities), min(densities)))
  if not low - 1e-3 <= sparsity <= high + 1e-3:  # 0.333 will do for 2:3
    wanted = f"{low:g}" + (f" to {high:g}" if low < high else "")
    raise ValueError(
      f"sparsity: got {sparsity}, but all leaves have patterns that settle it, "
      f"as 2:4 does: wanted {wanted}"
    )


# What the patterns are made of. `fill(scores, k, keep, where)` gives the mask
# of k that holds `keep`, and the best of `where` besides.


def _top_k(fill):
  def top_k(scores, k, where=None):
    return fill(scores, k, _none(scores), _or_all(where, scores))

  return top_k


def _swap_of(fill):
  """Drops the worst of the whole leaf, then fills up part by part."""

  def swap(mask, k, n, drop, grow, regrow=True):
    keep = select.top_k_mask(drop, k - n, mask)
    if regrow:
      return fill(grow, k, keep, ~keep)
    return fill(drop, k, fill(grow, k, keep, ~mask), mask)

  return swap


def _swap(mask, k, n, drop, grow, regrow):
  if not regrow:
    n = jnp.minimum(n, mask.size - k)
  keep = select.top_k_mask(drop, k - n, mask)
  return keep | select.top_k_mask(grow, n, ~(keep if regrow else mask))


def _of_parts(parted, pool) -> Pattern:
  """A pattern whose units are parts of a leaf.

  `parted(shape)` gives, per axis, how many parts there are, and how long one
  is.
  """

  def split(x):
    return x.reshape([n for part in parted(x.shape) for n in part])

  def inside(x):
    return tuple(range(1, 2 * x.ndim, 2))

  def size(shape):
    return math.prod(length for _, length in parted(shape))

  def pooled(scores):
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    return pool(split(scores).astype(wide), axis=inside(scores))

  def some(mask):
    return jnp.any(split(mask), axis=inside(mask))

  def spread(units, shape):
    units = jnp.expand_dims(units, inside(np.empty(shape)))
    lengths = [n for part in parted(shape) for n in part]
    return jnp.broadcast_to(units, lengths).reshape(shape)

  def top_k(scores, k, where=None):
    units = -(-k // size(scores.shape))
    among = None if where is None else some(where)
    return spread(select.top_k_mask(pooled(scores), units, among), scores.shape)

  def swap(mask, k, n, drop, grow, regrow=True):
    one = size(mask.shape)
    units = _swap(
      some(mask), k // one, n // one, pooled(drop), pooled(grow), regrow
    )
    return spread(units, mask.shape)

  def holds(mask):
    return jnp.all(jnp.all(split(mask), axis=inside(mask)) == some(mask))

  def budget(shape, n):
    return _nearest(shape, n, size(shape))

  return Pattern(None, budget, top_k, swap, holds)


def _sliced(shape, axis, groups):
  _check_axis(shape, axis)
  along = axis % len(shape)
  groups = groups or shape[along]
  if shape[along] % groups:
    raise ValueError(
      f"got the shape {shape}, wanted axis {axis} to divide by {groups} groups:"
      " give this leaf another pattern with patterns.by_path, or leave it out "
      "of `prunable`"
    )
  return [
    (groups, n // groups) if a == along else (1, n) for a, n in enumerate(shape)
  ]


def _ranks(keys, axis):
  """How many of a group come before each of its members."""
  size = keys.shape[axis]
  mine = lax.broadcasted_iota(jnp.int32, keys.shape, axis)
  rank = jnp.zeros(keys.shape, jnp.int32)
  for j in range(size):
    other = lax.slice_in_dim(keys, j, j + 1, axis=axis)
    before = (other > keys) | ((other == keys) & (j < mine))
    rank = rank + before.astype(jnp.int32)
  return rank


def _tile_masks(n, m) -> np.ndarray:
  """All masks of an m x m tile with n in every row and column: [count, m m]."""
  rows = [
    np.isin(np.arange(m), chosen)
    for chosen in itertools.combinations(range(m), n)
  ]
  tiles = (np.stack(t) for t in itertools.product(rows, repeat=m))
  return np.stack([t.ravel() for t in tiles if (t.sum(0) == n).all()])


def _how_many(counts, k):
  """The least j whose count reaches k."""
  return sum(jnp.asarray(k > c, jnp.int32) for c in counts[:-1])


def _nearest(shape, n, unit) -> int:
  """The multiple of a unit nearest n, at least one unit."""
  units = max(1, (2 * n + unit) // (2 * unit))
  return min(units * unit, math.prod(shape))


def _none(x):
  return jnp.zeros(x.shape, bool)


def _or_all(where, x):
  return jnp.ones(x.shape, bool) if where is None else where


def _others(shape, axis) -> tuple[int, ...]:
  return tuple(a for a in range(len(shape)) if a != axis % len(shape))


def _check_axis(shape, axis):
  if not -len(shape) <= axis < len(shape):
    raise ValueError(
      f"got the shape {shape}, wanted one with an axis {axis}: leave this leaf "
      "out of `prunable`, or give it another pattern with patterns.by_path"
    )


def _check_n_of_m(n, m):
  if not 0 < n <= m:
    raise ValueError(f"got {n}:{m}, wanted n of m active, 0 < n <= m")
