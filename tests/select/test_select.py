"""Selection against a stable argsort, and what it is made of."""

import jax
import jax.extend
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsejax.select import top_k_mask, top_k_masks
from sparsejax.select.counting import by_counting

pytestmark = pytest.mark.core

DTYPES = {
  "float32": np.float32,
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
  "float64": np.float64,
}
# One compilation a shape: few shapes, of 0 to 4 axes, empty ones among them.
SHAPES = [
  (),
  (0,),
  (7,),
  (65,),
  (3, 0, 2),
  (5, 13),
  (2, 3, 4),
  (2, 2, 3, 3),
]


def expected(scores, k, where=None):
  """The k largest, by a stable descending argsort; NaN comes last."""
  with np.errstate(invalid="ignore"):  # of signalling NaN
    flat = np.ravel(scores).astype(np.float64)
  candidates = np.ones(flat.shape, bool)
  if where is not None:
    candidates = np.ravel(np.broadcast_to(where, np.shape(scores)))
  order = np.lexsort((np.arange(flat.size), -flat, np.isnan(flat)))
  order = order[candidates[order]]
  mask = np.zeros(flat.shape, bool)
  mask[order[: max(k, 0)]] = True
  return mask.reshape(np.shape(scores))


def values(dtype):
  """Few values, so that ties are many, with all that is odd among them."""
  info = ml_dtypes.finfo(dtype)
  tiny, least = float(info.tiny), float(info.smallest_subnormal)
  odd = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 2.0]
  odd += [float(info.max), float(info.min), tiny, -tiny, tiny / 2]
  odd += [least, -least, 2 * least, float(1 + info.eps)]
  return np.array(odd, np.float64).astype(dtype)


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_is_a_stable_argsort(name, data):
  dtype = DTYPES[name]
  shape = data.draw(st.sampled_from(SHAPES))
  pick = hnp.arrays(np.int8, shape, elements=st.integers(0, 17))
  scores = values(dtype)[data.draw(pick)]
  k = data.draw(st.integers(-2, scores.size + 2))
  where = data.draw(st.just(np.ones(shape, bool)) | hnp.arrays(bool, shape))
  with jax.enable_x64(name == "float64"):
    mask = top_k_mask(jnp.asarray(scores), k, where)
    assert mask.dtype == bool
    assert mask.shape == shape
    np.testing.assert_array_equal(mask, expected(scores, k, where))


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_pattern_is_in_order(name):
  """Random bits reach every exponent, subnormals and NaN payloads."""
  dtype = np.dtype(DTYPES[name])
  bits = np.random.default_rng(0).bytes(999 * dtype.itemsize)
  scores = np.frombuffer(bits, dtype)
  with jax.enable_x64(name == "float64"):
    for k in (1, 2, 37, 500, 998, 999):
      mask = top_k_mask(jnp.asarray(scores), k)
      np.testing.assert_array_equal(mask, expected(scores, k))


@pytest.mark.parametrize("size", [7, 8, 9, 63, 64, 65, 511, 512, 513, 4097])
def test_ties_go_to_the_lower_index_at_any_size(size):
  """Sizes about powers of eight: a pass over the index settles three bits."""
  for k in (1, size // 2, size - 1, size):
    mask = top_k_mask(jnp.zeros(size), k)
    np.testing.assert_array_equal(mask, np.arange(size) < k)


def test_neighbouring_floats_are_told_apart_in_every_pass():
  """Scores that differ in one bit only, that of each pass in turn."""
  for bit in range(31):
    scores = np.array([0, 1 << bit, 0, 1 << bit], np.uint32).view(np.float32)
    np.testing.assert_array_equal(
      top_k_mask(jnp.asarray(scores), 2), expected(scores, 2)
    )


@pytest.mark.parametrize("k", [-3, 0, 1, 6, 7, 2**31 - 1])
def test_k_is_traced_and_may_be_out_of_range(k):
  scores = np.array([2, 1, 3, 3, 0, 2], np.float32)
  wanted = expected(scores, k)
  np.testing.assert_array_equal(top_k_mask(jnp.asarray(scores), k), wanted)
  traced = jax.jit(top_k_mask)(scores, jnp.int32(k))
  np.testing.assert_array_equal(traced, wanted)


def test_without_jit():
  scores = np.array([2, 1, 3, 3, 0, 2], np.float16)
  with jax.disable_jit():
    mask = top_k_mask(jnp.asarray(scores), 3)
  np.testing.assert_array_equal(mask, expected(scores, 3))


def test_where_broadcasts_and_bounds_what_is_marked():
  scores = np.arange(12, dtype=np.float32).reshape(3, 4)
  where = np.array([[True], [False], [True]])
  mask = top_k_mask(jnp.asarray(scores), 5, where)
  np.testing.assert_array_equal(mask, expected(scores, 5, where))
  everything = top_k_mask(jnp.asarray(scores), 11, where)
  np.testing.assert_array_equal(everything, np.broadcast_to(where, (3, 4)))
  lowest = jnp.full((3, 4), -jnp.inf).at[0, 0].set(jnp.nan)
  np.testing.assert_array_equal(
    top_k_mask(lowest, 5, where), expected(lowest, 5, where)
  )


def test_under_vmap_over_scores_and_k():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 5, (6, 4, 5)).astype(np.float32)
  where = rng.random((6, 4, 5)) < 0.7
  ks = np.array([0, 1, 5, 10, 20, 99])
  masks = jax.vmap(top_k_mask)(scores, ks, where)
  for row in zip(masks, scores, ks, where, strict=True):
    np.testing.assert_array_equal(row[0], expected(*row[1:]))
  masks = jax.vmap(lambda k: top_k_mask(scores[0], k))(ks)
  for mask, k in zip(masks, ks, strict=True):
    np.testing.assert_array_equal(mask, expected(scores[0], k))


@pytest.mark.parametrize("devices", [1, 2])
def test_it_counts_alike_on_one_device_and_on_several(monkeypatch, devices):
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  fresh = jax.jit(lambda *args: top_k_mask(*args))
  rng = np.random.default_rng(3)
  for dtype in (jnp.float32, jnp.bfloat16):
    for values in (rng.normal(size=(9, 7)), rng.integers(0, 4, (9, 7))):
      scores = jnp.asarray(values, dtype)
      where = rng.random((9, 7)) < 0.8
      for k in (0, 1, 20, 63):
        np.testing.assert_array_equal(
          fresh(scores, k, where), expected(scores, k, where)
        )


def primitives(jaxpr):
  """The names of all primitives, those of inner jaxprs included."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from primitives(inner)


@pytest.mark.parametrize("loops", [True, False])
def test_several_devices_count_and_do_nothing_else(loops):
  """With loops on CPUs, and without on accelerators; trees as single leaves."""
  leaves = [jnp.ones((16, 8, 3)), jnp.ones((5, 3))]
  closed = jax.make_jaxpr(
    lambda *xs: by_counting(xs, 5, [None, None], several=True, loops=loops)
  )(*leaves)
  names = set(primitives(closed.jaxpr))
  assert "reduce_sum" in names  # so the walk has reached the passes
  shuffling = {"sort", "top_k", "gather", "all_gather", "scatter", "reshape"}
  assert not names & (shuffling | {"cumsum", "dynamic_slice", "concatenate"})
  program = jax.extend.core.jaxpr_as_fun(closed)
  traced = jax.jit(program).trace(*leaves)
  lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert ("stablehlo.while" in lowered) == loops
  masks = [m.tolist() for m in program(*leaves)]
  assert masks == [m.tolist() for m in top_k_masks(leaves, 5)]


def test_too_many_scores_are_refused():
  fits = jax.ShapeDtypeStruct((2**31 - 1,), jnp.bfloat16)
  assert jax.eval_shape(top_k_mask, fits, 5).shape == (2**31 - 1,)
  huge = jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)
  with pytest.raises(ValueError, match=r"2147483648 scores.*split the array"):
    jax.eval_shape(top_k_mask, huge, 5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_other_scores_than_floats_are_refused(dtype):
  with pytest.raises(TypeError, match=r"must be floating, got \w+\[2, 3\]"):
    top_k_mask(jnp.ones((2, 3), dtype), 1)


# Over a whole tree.

TREES = {
  "float32": {"b": (4, 5), "a": (7,), "c": ()},
  "bfloat16": [(3, 2, 2), (0, 3), (5,), (1, 1)],
}
MIXED = {
  "half": ["float32", "bfloat16", "float16"],
  "double": ["bfloat16", "float64", "float32", "float16"],
}


def end_to_end(tree):
  """The leaves laid end to end, as float64."""
  with np.errstate(invalid="ignore"):  # of signalling NaN
    flat = [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]
  return np.concatenate(flat)


def check_tree(scores, k, where=None):
  """Against the argsort of the leaves laid end to end."""
  masks = top_k_masks(jax.tree.map(jnp.asarray, scores), k, where)
  assert jax.tree.structure(masks) == jax.tree.structure(scores)
  for mask, x in zip(
    jax.tree.leaves(masks), jax.tree.leaves(scores), strict=True
  ):
    assert mask.dtype == bool
    assert mask.shape == np.shape(x)
  if where is not None:
    where = jax.tree.map(np.broadcast_to, where, jax.tree.map(np.shape, scores))
    where = end_to_end(where).astype(bool)
  wanted = expected(end_to_end(scores), k, where)
  np.testing.assert_array_equal(end_to_end(masks).astype(bool), wanted)


def drawn_tree(data, shapes, names):
  """Scores of few values, whose leaves are of these dtypes in turn."""

  def leaf(shape, name):
    pick = hnp.arrays(np.int8, shape, elements=st.integers(0, 17))
    return values(DTYPES[name])[data.draw(pick)]

  flat, treedef = jax.tree.flatten(shapes, is_leaf=lambda s: type(s) is tuple)
  return treedef.unflatten(map(leaf, flat, names))


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_a_tree_is_a_stable_argsort_of_its_leaves_end_to_end(name, data):
  scores = drawn_tree(data, TREES[name], [name] * 4)
  k = data.draw(st.integers(-2, end_to_end(scores).size + 2))
  where = jax.tree.map(lambda x: data.draw(hnp.arrays(bool, x.shape)), scores)
  check_tree(scores, k, where)


@pytest.mark.parametrize("names", MIXED)
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_leaves_of_several_dtypes_are_ordered_by_value(names, data):
  shapes = [(3, 4), (6,), (5,), (2, 3)][: len(MIXED[names])]
  scores = drawn_tree(data, shapes, MIXED[names])
  k = data.draw(st.integers(0, end_to_end(scores).size))
  with jax.enable_x64(names == "double"):
    check_tree(scores, k)


@pytest.mark.parametrize("narrow", ["float32", "bfloat16", "float16"])
def test_every_bit_pattern_keeps_its_place_among_wider_ones(narrow):
  """Each value of the narrow dtype next to its neighbours in the wide one."""
  dtype = np.dtype(DTYPES[narrow])
  bits = np.random.default_rng(0).bytes(300 * dtype.itemsize)
  a = np.frombuffer(bits, dtype)
  wide = np.float64 if narrow == "float32" else np.float32
  with np.errstate(invalid="ignore", over="ignore", under="ignore"):
    b = np.nextafter(a.astype(wide), wide(np.inf))
    c = np.nextafter(a.astype(wide), -wide(np.inf))
  with jax.enable_x64(narrow == "float32"):
    for k in range(1, 900, 128):
      check_tree([a, b, c], k)


def test_a_scalar_candidate_holds_for_the_whole_leaf():
  scores = {"a": np.float32([5, 1]), "b": np.float32([4, 3, 2])}
  where = {"a": np.array(True), "b": np.array([False, True, True])}
  check_tree(scores, 2, where)
  check_tree(scores, 9, where)
  check_tree(scores, 3, {"a": np.array(False), "b": np.array(True)})


@pytest.mark.parametrize("devices", [1, 2])
def test_a_surplus_of_ties_cuts_one_leaf_and_leaves_the_later_out(
  monkeypatch, devices
):
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  fresh = jax.jit(lambda *args: top_k_masks.__wrapped__(*args))
  scores = [jnp.ones((2, 3)), jnp.ones((0,)), jnp.ones(63), jnp.ones((8, 8))]
  for k in (0, 1, 5, 6, 7, 68, 69, 70, 132, 133, 134):
    masks = fresh(scores, k)
    np.testing.assert_array_equal(end_to_end(masks), np.arange(133) < k)


def test_a_tree_under_jit_and_vmap():
  rng = np.random.default_rng(0)
  scores = {"a": rng.integers(0, 5, (4, 6)), "b": rng.integers(0, 5, (4, 3, 2))}
  scores = {p: x.astype(np.float32) for p, x in scores.items()}
  ks = np.array([0, 3, 7, 99])
  masks = jax.jit(jax.vmap(top_k_masks))(scores, ks)
  for i, k in enumerate(ks):
    row = {p: x[i] for p, x in scores.items()}
    got = end_to_end({p: m[i] for p, m in masks.items()})
    np.testing.assert_array_equal(got, expected(end_to_end(row), k))


def test_one_leaf_is_as_top_k_mask_and_no_leaf_is_no_mask():
  scores = jnp.array([2.0, 1, 2, 2])
  np.testing.assert_array_equal(top_k_masks(scores, 2), top_k_mask(scores, 2))
  assert top_k_masks({"a": {}, "b": None}, 3) == {"a": {}, "b": None}
  empty = top_k_masks([jnp.ones((0, 2))], 3)[0]
  assert empty.shape == (0, 2)
  assert empty.dtype == bool


def test_what_a_tree_cannot_be_ranked_by_is_refused():
  half = jax.ShapeDtypeStruct((2**30,), jnp.bfloat16)
  rest = jax.ShapeDtypeStruct((2**30 - 1,), jnp.bfloat16)
  assert jax.eval_shape(top_k_masks, [half, rest], 5)[0].shape == (2**30,)
  with pytest.raises(ValueError, match=r"2147483648 scores in 2 leaves"):
    jax.eval_shape(top_k_masks, [half, half], 5)
  with pytest.raises(TypeError, match=r"^a/0: .* floating, got int32\[2\]"):
    top_k_masks({"a": [jnp.ones(2, int)]}, 1)
  with pytest.raises(ValueError, match=r"^b: candidates of shape \(2,\)"):
    top_k_masks({"b": jnp.ones(3)}, 1, {"b": np.ones(2, bool)})
  with pytest.raises(ValueError, match=r"^c: candidates have a leaf"):
    top_k_masks({"b": jnp.ones(3)}, 1, {"c": np.ones(3, bool)})
