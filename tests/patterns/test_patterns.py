"""Patterns of zeros against brute force, by themselves and in training."""

import functools
import itertools
import re
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax
from sparsejax import distributions, patterns
from sparsejax import masks as masks_lib
from sparsejax.select import top_k_of_each
from tests.marks import few, slow

KEY = jax.random.key(0)
MATRIX, CONV = (16, 12), (3, 3, 4, 8)
DTYPES = {MATRIX: jnp.float32, CONV: jnp.bfloat16}
EXAMPLES = settings(max_examples=25, deadline=None, database=None)


# The reference: a pattern is a label for each weight. Either weights of one
# label stand or fall together, or each label keeps as many of its own.


class Row(NamedTuple):
  pattern: patterns.Pattern
  label: Any = lambda shape: np.zeros(shape, int)
  pool: Any = None  # of weights that stand or fall together
  tile: Any = None  # (n, m) of transposable masks, which have no labels
  order: Any = lambda shape: np.arange(np.prod(shape))  # of equal scores


def along(axis, parts=None):
  def label(shape):
    return np.indices(shape)[axis] // (shape[axis] // (parts or shape[axis]))

  return label


def cells(*lengths):
  """Cells of some length along some axes, and of 1 along the others."""

  def label(shape):
    index = np.indices(shape)
    for axis, length in lengths:
      index[axis] //= length
    return np.ravel_multi_index(tuple(index), shape)

  return label


def going_round(axis, m):
  """Which of equal scores comes first: N:M turns from group to group."""

  def order(shape):
    index = np.indices(shape)
    group, place = np.divmod(index[axis], m)
    turn = index.sum(0) - index[axis] + group
    forwards = (place + turn) % m
    return np.where(turn // m % 2 == 0, forwards, m - 1 - forwards).ravel()

  return order


def n_of_m(n, m, axis=-2):
  label, order = cells((axis, m)), going_round(axis, m)
  return Row(patterns.n_of_m(n, m, axis=axis), label, order=order)


ROWS = {
  "unstructured": Row(patterns.unstructured()),
  "blocks": Row(patterns.blocks((2, 4)), cells((-2, 2), (-1, 4)), np.mean),
  "max blocks": Row(
    patterns.blocks((4,), pool=jnp.max), cells((-1, 4)), np.max
  ),
  "channels": Row(patterns.channels(), along(-1), np.mean),
  "heads": Row(patterns.heads(4, -2, pool=jnp.max), along(-2, 4), np.max),
  "fan_in": Row(patterns.fan_in(), along(-1)),
  "fan_in 0": Row(patterns.fan_in(0), along(0)),
  "2:4": n_of_m(2, 4),
  "2:8": n_of_m(2, 8),
  "3:5": n_of_m(3, 5),
  "1:3 out": n_of_m(1, 3, axis=-1),
  "1:2 at 0": n_of_m(1, 2, axis=0),
  "2:4 both": Row(patterns.transposable_n_of_m(2, 4), tile=(2, 4)),
  "1:4 both": Row(patterns.transposable_n_of_m(1, 4), tile=(1, 4)),
}
LABELLED = [name for name, row in ROWS.items() if not row.tile]
TILED = [name for name, row in ROWS.items() if row.tile]
COMMON = ("unstructured", "blocks", "channels", "fan_in", "2:4", "2:4 both")


def marked(scores, k, where, ties=None):
  """The k largest by a stable descending argsort; NaN comes last."""
  flat, among = np.ravel(scores), np.ravel(where)
  ties = np.arange(flat.size) if ties is None else ties
  order = np.lexsort((ties, -flat, np.isnan(flat)))
  mask = np.zeros(flat.shape, bool)
  mask[order[among[order]][: max(k, 0)]] = True
  return mask.reshape(np.shape(scores))


def filled(labels, scores, k, keep, where, ties):
  """`keep`, and each label's best, up to the share that is nearest to k."""
  mine = [labels == i for i in np.unique(labels)]
  sizes = np.array([m.sum() for m in mine])
  counts = [np.minimum(j, sizes).sum() for j in range(sizes.max() + 1)]
  share = min(range(len(counts)), key=lambda j: (abs(counts[j] - k), -j))
  mask = keep.copy()
  for m in mine:
    mask |= marked(scores, share - (keep & m).sum(), where & m & ~keep, ties)
  return mask


def as_units(row, shape):
  """What labels are of one unit, and how arrays become one value a unit."""
  labels = row.label(shape)
  if row.pool is None:
    return labels, 1, np.asarray, np.asarray
  ids, units = np.unique(labels, return_inverse=True)
  units = units.reshape(shape)

  def pooled(x, pool=row.pool):
    with np.errstate(invalid="ignore"):
      return np.array([pool(x[labels == i]) for i in ids])

  size = labels.size // ids.size
  return np.zeros(ids.shape, int), size, pooled, lambda mask: mask[units]


def wanted_top_k(row, scores, k, where):
  labels, size, pooled, spread = as_units(row, scores.shape)
  among = pooled(where, np.any) if size > 1 else where
  nothing = np.zeros(among.shape, bool)
  units, ties = (2 * k + size) // (2 * size), row.order(labels.shape)
  return spread(filled(labels, pooled(scores), units, nothing, among, ties))


def wanted_swap(row, mask, k, n, drop, grow, regrow):
  """Drops the n worst of the whole leaf, then each label fills up."""
  labels, size, pooled, spread = as_units(row, mask.shape)
  mask = pooled(mask, np.any) if size > 1 else mask
  drop, grow, k, n = pooled(drop), pooled(grow), k // size, n // size
  keep, ties = marked(drop, k - n, mask), row.order(labels.shape)
  if regrow:
    return spread(filled(labels, grow, k, keep, ~keep, ties))
  new = filled(labels, grow, k, keep, ~mask, ties)
  return spread(filled(labels, drop, k, new, mask, ties))


@functools.cache
def tile_masks(n, m):
  """Those of all 2^(m m) masks that have n in every row and column."""
  bits = np.arange(2 ** (m * m))[:, None] >> np.arange(m * m)
  tiles = (bits & 1).astype(bool).reshape(-1, m, m)
  return tiles[(tiles.sum(1) == n).all(1) & (tiles.sum(2) == n).all(1)]


def check_tiles(mask, n, m, keep, first, by):
  """Each tile holds `keep`, then the most of `first`, then the best sum."""
  for at in itertools.product(*(range(0, s, m) for s in mask.shape[-2:])):
    window = (..., slice(at[0], at[0] + m), slice(at[1], at[1] + m))
    parts = [x[window].reshape(-1, m, m) for x in (mask, keep, first, by)]
    for got, kept, new, score in zip(*parts, strict=True):
      allowed = tile_masks(n, m)
      value = (64 * (allowed & kept) + (allowed & new)).sum((1, 2))
      total = np.where(value == value.max(), (allowed * score).sum((1, 2)), -99)
      index = np.flatnonzero((allowed == got).all((1, 2)))
      assert index.size == 1
      assert value[index] == value.max()
      assert total[index] == total.max()


def share_of(row, mask):
  """How many each label, row or column keeps; None if they are unequal."""
  if row.tile:
    *lead, a, _ = mask.shape
    x = mask.reshape(*lead, a // row.tile[1], row.tile[1], -1, row.tile[1])
    kept = np.concatenate([x.sum(-1).ravel(), x.sum(-3).ravel()])
    sizes = np.full(kept.shape, row.tile[1])
  else:
    labels = row.label(mask.shape)
    mine = [labels == i for i in np.unique(labels)]
    kept = np.array([mask[m].sum() for m in mine])
    sizes = np.array([m.sum() for m in mine])
  share = kept.max()
  fits = (kept % sizes == 0) if row.pool else kept == np.minimum(share, sizes)
  return share if fits.all() else None


# One compilation a pattern, shape and dtype.


@functools.partial(jax.jit, static_argnums=0)
def top_k(pattern, scores, k, where):
  return pattern.top_k(scores, k, where)


@functools.partial(jax.jit, static_argnums=(0, 6))
def swap(pattern, mask, k, n, drop, grow, regrow):
  return pattern.swap(mask, k, n, drop, grow, regrow)


def repeated(tile, shape):
  *lead, a, b = shape
  return np.tile(tile, (*lead, a // len(tile), b // len(tile)))


def drawn(data, shape, levels):
  """Scores of few values, so that ties are many."""
  seed, few = data.draw(st.tuples(st.integers(0, 2**32), st.integers(1, 8)))
  return np.random.default_rng(seed).choice(levels[: few + 1], shape)


def some_tile(data, n, m, shape):
  return repeated(data.draw(st.sampled_from(list(tile_masks(n, m)))), shape)


FINITE = np.array([1, 0, -1, 0.5, 2, -0.0, 1.5, -2, 3])
ODD = np.array([1, -np.inf, np.nan, 0, -1, np.inf, 2, -0.0, -np.nan])


@pytest.mark.parametrize("name", LABELLED)
@EXAMPLES
@given(data=st.data())
def test_top_k_is_the_best_mask(name, data):
  row, shape = ROWS[name], data.draw(st.sampled_from([MATRIX, CONV]))
  by = drawn(data, shape, data.draw(st.sampled_from([FINITE, ODD])))
  k, where = data.draw(st.integers(0, by.size + 1)), np.ones(shape, bool)
  if data.draw(st.booleans()):
    more = data.draw(st.integers(0, by.size))
    where = wanted_top_k(row, drawn(data, shape, FINITE), more, where)
  mask = top_k(row.pattern, jnp.asarray(by, DTYPES[shape]), k, where)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, wanted_top_k(row, by, k, where))


@pytest.mark.parametrize("name", TILED)
@EXAMPLES
@given(data=st.data())
def test_top_k_is_the_best_of_all_masks_of_a_tile(name, data):
  row, shape = ROWS[name], data.draw(st.sampled_from([MATRIX, CONV]))
  (_, m), by = row.tile, drawn(data, shape, FINITE)
  k, among = data.draw(st.integers(0, by.size)), data.draw(st.integers(0, m))
  where = some_tile(data, among, m, shape)
  mask = top_k(row.pattern, jnp.asarray(by, DTYPES[shape]), k, where)
  share = min((2 * k * m + by.size) // (2 * by.size), among)
  check_tiles(np.asarray(mask), share, m, where & False, where, by)


@pytest.mark.parametrize("name", LABELLED)
@EXAMPLES
@given(data=st.data())
def test_swap_drops_the_worst_and_fills_up(name, data):
  row, regrow = ROWS[name], data.draw(st.booleans())
  shape = MATRIX if regrow else CONV
  more = data.draw(st.integers(1, 192))
  noise, drop, grow = (drawn(data, shape, FINITE) for _ in range(3))
  mask = wanted_top_k(row, noise, more, np.ones(shape, bool))
  k, n = mask.sum(), data.draw(st.integers(0, mask.sum()))
  by = [jnp.asarray(x, DTYPES[shape]) for x in (drop, grow)]
  new = np.asarray(swap(row.pattern, mask, k, n, *by, regrow))
  wanted = wanted_swap(row, mask, k, n, drop, grow, regrow)
  np.testing.assert_array_equal(new, wanted)
  assert new.sum() == k
  assert share_of(row, new) == share_of(row, mask)


@pytest.mark.parametrize("name", TILED)
@EXAMPLES
@given(data=st.data())
def test_swap_drops_the_worst_and_fills_up_the_tiles(name, data):
  """Also where a mask has more than the pattern asks for in the end."""
  row, regrow = ROWS[name], data.draw(st.booleans())
  shape, m = MATRIX if regrow else CONV, row.tile[1]
  drop, grow = (drawn(data, shape, FINITE) for _ in range(2))
  j = data.draw(st.integers(0, m))
  mask = some_tile(data, j, m, shape)
  k, n = mask.sum(), data.draw(st.integers(0, mask.sum()))
  by = [jnp.asarray(x, DTYPES[shape]) for x in (drop, grow)]
  new = np.asarray(swap(row.pattern, mask, k, n, *by, regrow))
  keep = marked(drop, k - n, mask)
  check_tiles(new, j, m, keep, keep | ~(mask & (not regrow)), grow)


@pytest.mark.parametrize("name", few(ROWS, COMMON))
def test_swap_of_nothing_changes_nothing(name):
  """Weights of zero, scores at the ends of their dtypes, some not finite."""
  row, rng = ROWS[name], np.random.default_rng(0)
  for shape, regrow in ((MATRIX, True), (CONV, False)):
    dtype = DTYPES[shape]
    most = float(jnp.finfo(dtype).max)
    k = row.pattern.budget(shape, np.prod(shape) // 2)
    noise = jnp.asarray(rng.choice(FINITE, shape), dtype)
    mask = top_k(row.pattern, noise, k, np.ones(shape, bool))
    assert mask.sum() == k
    for levels in ([0.0], [most, -most], [0, most, np.inf], [-np.inf, np.nan]):
      grow = jnp.asarray(rng.choice(levels, shape), dtype)
      for drop in (0 * noise, abs(noise), grow):
        new = swap(row.pattern, mask, k, 0, drop, grow, regrow)
        np.testing.assert_array_equal(new, mask)


@pytest.mark.parametrize("name", TILED)
def test_tiles_avoid_what_is_no_number(name):
  (n, m), by = ROWS[name].tile, np.ones(MATRIX, np.float32)
  by[::m, ::m], by[1::m, 1::m] = np.nan, -np.inf
  mask = top_k(ROWS[name].pattern, by, by.size * n // m, by == by)
  assert share_of(ROWS[name], mask) == n
  assert (by[mask] == 1).all()


def test_ties_of_n_of_m_by_hand():
  """Four equal weights: the first two, then one on; after four turns back."""
  pattern, ones = patterns.n_of_m(2, 4), jnp.ones((4, 8))
  rows = top_k(pattern, ones, 16, ones == 1).T.astype(int).tolist()
  assert rows == [
    *([1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]),
    *([0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]),
  ]
  # Places 1 and 2 are equal; the next group of inputs is one turn on.
  scores = jnp.array([[3.0, 2, 2, 1] * 2] * 4).T
  rows = top_k(pattern, scores, 16, scores > 0).T.astype(int).tolist()
  first, second = [1, 1, 0, 0], [1, 0, 1, 0]
  assert [row[:4] for row in rows] == [first, first, second, first]
  assert [row[4:] for row in rows] == [first, second, first, second]


@pytest.mark.parametrize(
  "pattern",
  [patterns.n_of_m(2, 4), patterns.transposable_n_of_m(2, 4)],
  ids=["2:4", "2:4 both"],
)
def test_ties_favour_no_input(pattern):
  """Of weights of few values, as in a model of 4 bits."""
  rng = np.random.default_rng(0)
  for high in (1, 2, 4):
    scores = jnp.asarray(rng.integers(0, high, (64, 360)), jnp.float32)
    mask = top_k(pattern, scores, scores.size // 2, scores >= 0)
    of_input = np.asarray(mask).reshape(16, 4, 360).mean((0, 2))
    np.testing.assert_allclose(of_input, 0.5, atol=0.02)
    if high == 1:
      np.testing.assert_array_equal(mask.sum(1), 180)


@pytest.mark.mesh
def test_ties_are_the_same_in_any_program():
  """Eagerly, compiled, mapped and sharded; `where` changes none of them."""
  pattern = patterns.n_of_m(2, 4)
  rng = np.random.default_rng(1)
  scores = jnp.asarray(rng.integers(0, 3, (16, 24)), jnp.float32)
  want = pattern.top_k(scores, 192)
  pairs = jnp.stack([scores, scores])
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  one = NamedSharding(mesh, PartitionSpec(None, "x"))
  for got in (
    top_k(pattern, scores, 192, scores >= 0),
    *jax.vmap(lambda x: pattern.top_k(x, 192))(pairs),
    jax.jit(lambda x: pattern.top_k(x, 192))(jax.device_put(scores, one)),
  ):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("regrow", [True, False])
def test_swap_by_hand(regrow):
  def moved(pattern, mask, n, drop, grow):
    mask, *by = np.array(mask, bool), np.float32(drop), np.float32(grow)
    new = swap(pattern, mask, mask.sum(), n, *by, regrow)
    return np.flatnonzero(new).tolist()

  # The two worst weights of the leaf are of one group: both go.
  mask, drop = [1, 1, 0, 0, 1, 1, 0, 0], [1, 2, 9, 9, 8, 7, 9, 9]
  pattern, grow = patterns.n_of_m(2, 4, axis=0), [5, 0, 1, 2, 9, 9, 2, 2]
  wanted = [0, 3, 4, 5] if regrow else [2, 3, 4, 5]
  assert moved(pattern, mask, 2, drop, grow) == wanted
  # Means of blocks: 1.5 goes, for 2.5, its own, or for 2.
  wanted = [0, 1, 4, 5] if regrow else [4, 5, 6, 7]
  assert moved(patterns.blocks((2,)), mask, 2, drop, grow) == wanted
  # One place is free for two: the better of them by `drop` stays.
  pattern, mask = patterns.n_of_m(3, 4, axis=0), [1, 1, 1, 0, 1, 1, 1, 0]
  drop, grow = [1, 2, 9, 0, 9, 9, 9, 0], [8, 7, 0, 9, 0, 0, 0, 9]
  wanted = [0, 2, 3, 4, 5, 6] if regrow else [1, 2, 3, 4, 5, 6]
  assert moved(pattern, mask, 2, drop, grow) == wanted
  # Both inputs of the first output go, and none of the second.
  mask = [[1, 0], [1, 1], [0, 1], [0, 0]]
  drop = [[1, 9], [2, 3], [9, 4], [9, 9]]
  grow = [[5, 9], [1, 9], [2, 9], [3, 9]]
  wanted = [0, 3, 5, 6] if regrow else [3, 4, 5, 6]
  assert moved(patterns.fan_in(), mask, 2, drop, grow) == wanted


def test_budgets_are_the_nearest_that_a_pattern_keeps():
  units = {"blocks": 8, "max blocks": 4, "channels": 16, "heads": 48}
  units |= {"unstructured": 1, "fan_in": 12, "fan_in 0": 16}
  for name, unit in units.items():
    assert ROWS[name].pattern.density is None
    for n in range(1, 193):
      wanted = min(range(unit, 193, unit), key=lambda u: (abs(u - n), -u))
      assert ROWS[name].pattern.budget(MATRIX, n) == wanted
  for name, shape, wanted in (
    ("2:4", (3, 3, 10, 5), 9 * 5 * (2 + 2 + 2)),
    ("2:4", (3, 4), 2 * 4),
    ("2:4", (9, 4), (2 + 2 + 1) * 4),
    ("1:3 out", CONV, 3 * 3 * 4 * 3),
    ("1:2 at 0", CONV, 2 * 3 * 4 * 8),
    ("2:4 both", MATRIX, 96),
    ("1:4 both", CONV, 72),
  ):
    for n in (1, 96):  # whatever a distribution says
      assert ROWS[name].pattern.budget(shape, n) == wanted
  assert ROWS["3:5"].pattern.density == Fraction(3, 5)


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    (patterns.blocks((3, 4)), r"\(16, 12\).* divide by blocks of \(3, 4\)"),
    (patterns.blocks((1, 2, 2)), r"divide by blocks of \(1, 2, 2\)"),
    (patterns.heads(5), r"wanted axis -1 to divide by 5 groups"),
    (patterns.channels(2), r"wanted one with an axis 2"),
    (patterns.fan_in(-3), r"wanted one with an axis -3"),
    (patterns.n_of_m(2, 4, axis=2), r"wanted one with an axis 2"),
    (patterns.transposable_n_of_m(1, 3), r"last two axes that divide by 3"),
  ],
)
def test_a_leaf_that_does_not_fit_is_named_with_what_to_do(pattern, message):
  for part in (message, "patterns.by_path", "`prunable`"):
    with pytest.raises(ValueError, match=part):
      pattern.budget(MATRIX, 96)
  params = {"Dense_0": {"kernel": jnp.ones(MATRIX)}}
  sparsity = 0.5 if pattern.density is None else float(1 - pattern.density)
  tx = sparsejax.rigl(
    optax.sgd(0.1), sparsity, key=KEY, t_end=9, pattern=pattern
  )
  with pytest.raises(ValueError, match="^Dense_0/kernel: .*" + message):
    sparsejax.init(tx, params)


def test_patterns_that_make_no_sense_are_refused():
  for make in (
    lambda: patterns.blocks(()),
    lambda: patterns.blocks((4, 0)),
    lambda: patterns.blocks((4, 2.0)),
    lambda: patterns.heads(0),
    lambda: patterns.n_of_m(0, 4),
    lambda: patterns.n_of_m(5, 4),
    lambda: patterns.transposable_n_of_m(4, 8),
  ):
    with pytest.raises(ValueError, match=r"^got .*, wanted"):
      make()


# In training: a leaf of each pattern, and one compilation for all of them.


SHAPES = dict.fromkeys(ROWS, MATRIX) | {
  f"{name} conv": CONV for name in ("blocks", "fan_in", "3:5")
}
ROW_OF = {leaf: ROWS[leaf.removesuffix(" conv")] for leaf in SHAPES}


def options(shapes):
  rules = {f"^{re.escape(p)}$": ROW_OF[p].pattern for p in shapes}
  uniform, of = distributions.uniform, patterns.by_path(rules)
  return {"key": KEY, "pattern": of, "distribution": uniform}


def noise(seed, shapes):
  rng = np.random.default_rng(seed)
  return {p: rng.normal(size=s).astype("float32") for p, s in shapes.items()}


def begun(leaf, by):
  """Random masks of about half the weights; 3:4 where 2:4 is asked for."""
  row, shape = ROW_OF[leaf], by.shape
  if row.tile:
    n, m = row.tile
    return repeated(tile_masks(n + (m == 4), m)[-1], shape)
  k = 144 if leaf == "2:4" else row.pattern.budget(shape, by.size // 2)
  return wanted_top_k(row, by, k, np.ones(shape, bool))


@jax.jit
def all_hold(masks):
  return {p: ROW_OF[p].pattern.holds(m) for p, m in masks.items()}


def trained(tx, shapes, steps=7):
  """Masks at first and after every step, whose zeros and shape are checked."""
  params, state = sparsejax.init(tx, noise(0, shapes))
  budget = {p: int(n) for p, n in state.mask_state.budget.items()}

  @jax.jit
  def step(grads, state, params):
    change, state = tx.update(grads, state, params)
    return optax.apply_updates(params, change), state

  found = []
  for t in range(steps + 1):
    found.append(jax.tree.map(np.asarray, sparsejax.get_masks(state)))
    assert all(all_hold(found[-1]).values())
    for p, mask in found[-1].items():
      assert share_of(ROW_OF[p], mask) is not None, p
      assert not np.asarray(params[p])[~mask].any(), p
    params, state = step(noise(t + 1, shapes), state, params)
  assert int(state.mask_state.refused) == 0
  return {p: [masks[p] for masks in found] for p in shapes}, budget


@pytest.mark.parametrize("name", ["set_", slow("rigl"), slow("seft")])
def test_every_pattern_moves_and_keeps_its_budget(name):
  """N:M masks that never move, and nobody is told, are no sparse training."""
  shapes, given = SHAPES, {}
  if name == "set_":  # which draws its first masks, too
    few = ("blocks", "fan_in", "3:5", "2:4 both")
    shapes = {p: SHAPES[p] for p in few}
  else:
    given["masks"] = {p: begun(p, w) for p, w in noise(9, shapes).items()}
  given |= options(shapes) | {"t_end": 100, "delta_t": 2, "fraction": 0.6}
  tx = getattr(sparsejax, name)(optax.sgd(0.1, 0.9), 0.5, **given)
  found, budget = trained(tx, shapes)
  for p, masks in found.items():
    assert {mask.sum() for mask in masks} == {budget[p]}, p
    assert len({share_of(ROW_OF[p], mask) for mask in masks}) == 1, p
    moved = [(a != b).any() for a, b in itertools.pairwise(masks)]
    assert not any(moved[t] for t in (0, 1, 3, 5)), p
    assert any(moved), p


@pytest.mark.slow
def test_every_pattern_is_pruned_to_its_budget():
  tx = sparsejax.gmp(
    optax.sgd(0.1), 0.75, begin=0, end=6, delta_t=2, **options(SHAPES)
  )
  found, budget = trained(tx, SHAPES)
  for p, masks in found.items():
    size, counts = masks[0].size, [mask.sum() for mask in masks]
    assert all((b <= a).all() for a, b in itertools.pairwise(masks)), p
    assert budget[p] == ROW_OF[p].pattern.budget(SHAPES[p], size // 4)
    assert counts[2] == size > counts[-1] == budget[p], p
  shares = {p: [share_of(ROW_OF[p], mask) for mask in found[p]] for p in found}
  # 192 weights at first, then 48 + floor(144 left), rounded to j:m.
  assert shares["2:8"] == [8, 8, 8, 4, 4, 2, 2, 2]
  assert shares["1:4 both"] == [4, 4, 4, 2, 2, 1, 1, 1]


def test_one_weight_more_or_less_breaks_a_pattern():
  rng, masks = np.random.default_rng(0), {}
  for p, w in noise(9, SHAPES).items():
    masks[p] = begun(p, w)
    masks[p].flat[rng.integers(w.size)] ^= True
  held = {p for p, holds in all_hold(masks).items() if holds}
  assert held == {"unstructured"}


def test_n_of_m_under_rigl_moves_to_the_masks_of_the_rule():
  """One pattern for all leaves, settled by it, weight by weight."""
  w, g = (np.round(8 * noise(s, {0: MATRIX})[0]) / 8 for s in (0, 1))
  row = ROWS["2:4"]
  tx = sparsejax.rigl(
    optax.sgd(0.1), 0.5, key=KEY, t_end=100, fraction=0.3, pattern=row.pattern
  )
  params, state = sparsejax.init(tx, jnp.asarray(w))
  mask = np.asarray(sparsejax.get_masks(state))
  _, state = jax.jit(functools.partial(tx.update, update_masks=True))(
    jnp.asarray(g), state, params
  )
  new = np.asarray(sparsejax.get_masks(state))
  wanted = wanted_swap(row, mask, 96, 28, abs(w), abs(g), True)
  np.testing.assert_array_equal(new, wanted)
  assert 0 < (mask & ~new).sum() <= 28


# One pattern by path.


def test_the_first_rule_that_names_a_leaf_holds():
  a, b, rest = (patterns.n_of_m(n, 4) for n in (1, 2, 3))
  of = patterns.by_path({"attn": a, "kernel$": b}, rest)
  paths = ["attn/kernel", "mlp/kernel", "mlp/scale"]
  assert of(paths) == dict(zip(paths, (a, b, rest), strict=True))
  assert patterns.by_path({"^mlp": b})(paths)["attn/kernel"].density is None
  of = patterns.by_path({"kernle": b})
  tx = sparsejax.set_(optax.sgd(0.1), 0.5, key=KEY, t_end=9, pattern=of)
  with pytest.raises(ValueError, match=r"'kernle' names no .*: a/kernel"):
    sparsejax.init(tx, {"a": {"kernel": jnp.ones(MATRIX)}})


def test_what_a_pattern_settles_is_left_out_of_the_distribution():
  shapes = {"mlp": (8, 8), "head": (10, 10), "in": (20, 5)}
  of = patterns.by_path({"mlp": patterns.n_of_m(2, 4)})
  for rest in (distributions.uniform, distributions.erdos_renyi_kernel):
    counts = patterns.distribution(rest, of)(shapes, 0.9)
    assert list(counts) == list(shapes)
    assert counts.pop("mlp") == 32
    assert counts == rest({p: shapes[p] for p in ("head", "in")}, 0.9)


BOTH = patterns.by_path({"a": ROWS["2:4"].pattern}, ROWS["2:8"].pattern)


@pytest.mark.parametrize(
  ("pattern", "sparsity", "wanted"),
  [
    (patterns.n_of_m(2, 4), 0.5, None),
    (patterns.n_of_m(2, 4), 0.9, "wanted 0.5$"),
    (patterns.n_of_m(2, 4), 0.0, "wanted 0.5$"),
    (patterns.n_of_m(2, 3), 0.333, None),
    (patterns.transposable_n_of_m(2, 3), 0.33, "wanted 0.333333$"),
    (BOTH, 0.6, None),
    (BOTH, 0.9, "wanted 0.5 to 0.75$"),
  ],
)
def test_a_sparsity_that_patterns_contradict_is_refused(
  pattern, sparsity, wanted
):
  counts = patterns.distribution(distributions.uniform, pattern)
  shapes = {"a": (12, 9), "b": (12, 3)}
  if wanted is None:
    assert set(counts(shapes, sparsity)) == {"a", "b"}
    return
  with pytest.raises(ValueError, match=f"got {sparsity}, .*{wanted}"):
    counts(shapes, sparsity)


# Given masks, packed masks, masks on a mesh.


@pytest.mark.slow
def test_given_masks_need_to_have_the_pattern():
  params = {"a": {"w": jnp.ones(MATRIX), "b": jnp.ones(3)}}
  mask = np.roll(np.arange(16) < 4, 1)[:, None] & np.ones(MATRIX, bool)
  mask[1, 0] = False
  for name in set(ROWS) - {"unstructured"}:
    pattern, masks = ROWS[name].pattern, {"a": {"w": mask, "b": True}}
    tx = sparsejax.rigl(
      optax.sgd(0.1), 0.5, key=KEY, t_end=9, pattern=pattern, masks=masks
    )
    with pytest.raises(ValueError, match=r"^a/w: the mask of shape \(16, 12\)"):
      sparsejax.init(tx, params)
    sparsity = float(1 - (pattern.density or 0.5))
    tx = sparsejax.gmp(
      optax.sgd(0.1),
      sparsity,
      key=KEY,
      begin=1,
      end=2,
      delta_t=1,
      pattern=pattern,
      masks=masks,
    )
    with pytest.raises(ValueError, match=r"^a/w: the mask of shape \(16, 12\)"):
      sparsejax.init(tx, params)


def test_masks_of_every_pattern_pack_eight_to_a_byte():
  masks = {p: begun(p, w) for p, w in noise(9, SHAPES).items()}
  w = noise(9, dict.fromkeys(("fan_in", "3:5", "1:2 at 0"), (5, 7, 3)))
  masks |= {f"odd {p}": begun(p, x) for p, x in w.items()}
  packed = masks_lib.pack_bits(masks)
  back = masks_lib.unpack_bits(packed, masks)
  for p, mask in masks.items():
    assert packed[p].nbytes == -(-mask.size // 8)
    np.testing.assert_array_equal(packed[p], np.packbits(mask))
    assert back[p].dtype == bool
    np.testing.assert_array_equal(back[p], mask)


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize("kind", [AxisType.Auto, slow(AxisType.Explicit)])
def test_masks_on_a_mesh_are_those_of_one_device(kind):
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
  names = ("2:4", "blocks", "fan_in")
  # Rounded, so that ties are many, and sums exact in any order.
  by = [noise(s, dict.fromkeys(names, (16, 8))) for s in range(3)]
  by = jax.tree.map(lambda x: np.round(2 * x) / 2, by)

  @jax.jit
  def moved(first, drop, grow):
    found = {}
    for name in names:
      pattern = ROWS[name].pattern
      mask = pattern.top_k(first[name], 64)
      found[name] = mask, pattern.swap(mask, 64, 24, drop[name], grow[name])
    return found

  spread = jax.device_put(by, NamedSharding(mesh, PartitionSpec("x", "y")))
  wanted, got = moved(*by), moved(*spread)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)
  for name, (mask, new) in got.items():
    assert len(mask.sharding.device_set) == 8
    if kind == AxisType.Explicit:
      assert new.sharding.is_equivalent_to(spread[0][name].sharding, 2)
    assert mask.sum() == new.sum() == 64
    assert (mask != new).any(), name


# Selection slice by slice.


@EXAMPLES
@given(data=st.data())
def test_top_k_of_each_slice(data):
  axis, shape = data.draw(st.sampled_from([0, 1, -1])), (3, 5, 4)
  by, count, where = drawn(data, shape, ODD), shape[axis], None
  ks = data.draw(st.integers(-1, 21))
  if data.draw(st.booleans()):
    where = drawn(data, shape, FINITE) > 0
    ks = np.random.default_rng(abs(ks)).integers(-1, 22, count)
  dtype = "bfloat16" if axis == 1 else "float32"
  mask = of_each(jnp.asarray(by, dtype), ks, axis, where)
  every = np.ones(shape, bool) if where is None else where
  each = enumerate(np.broadcast_to(ks, count))
  wanted = [marked(by.take(i, axis), k, every.take(i, axis)) for i, k in each]
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, np.stack(wanted, axis))


@functools.partial(jax.jit, static_argnums=2)
def of_each(scores, k, axis, where):
  return top_k_of_each(scores, k, axis, where)


def test_patterns_go_by_name():
  masks = [
    sparsejax.get_masks(
      sparsejax.static(optax.sgd(0.1), 0.5, key=KEY, pattern=pattern).init(
        jnp.ones((16, 12))
      )
    )
    for pair in (
      ("2:4", patterns.n_of_m(2, 4)),
      ("4x4", patterns.blocks((4, 4))),
      ("fan_in", patterns.fan_in()),
      ("channels", patterns.channels()),
      ("unstructured", None),
    )
    for pattern in pair
  ]
  for named, made in zip(masks[::2], masks[1::2], strict=True):
    np.testing.assert_array_equal(named, made)
  with pytest.raises(ValueError, match=r"'fanin'\. Near it: fan_in"):
    patterns.named("fanin")
  with pytest.raises(ValueError, match="4:2, wanted n of m"):
    patterns.named("4:2")
  with pytest.raises(TypeError, match="pattern: got 4"):
    patterns.resolve(4, ["w"])
  by_path = patterns.by_path({"^a": "2:4"}, rest="fan_in")(["a", "b"])
  assert by_path["a"].density is not None
  assert by_path["b"].density is None


@pytest.mark.parametrize("pattern", [None, "fan_in", "channels", "2:4", "4x4"])
def test_a_leaf_of_no_size_has_any_pattern(pattern):
  params = {"w": jnp.ones((16, 12)), "empty": jnp.ones((0, 4))}
  tx = sparsejax.rigl(
    optax.sgd(0.1), 0.5, key=KEY, t_end=9, delta_t=1, pattern=pattern
  )
  params, state = sparsejax.init(tx, params)
  _, state = tx.update(params, state, params, update_masks=True)
  masks = sparsejax.get_masks(state)
  assert masks["empty"].shape == (0, 4)
  assert int(masks["w"].sum()) == 96
