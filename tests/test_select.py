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

from sparsejax.select import top_k_mask

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
  fresh = jax.jit(lambda *args: top_k_mask.__wrapped__(*args))
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


def test_counts_and_nothing_else():
  closed = jax.make_jaxpr(top_k_mask)(jnp.ones((16, 8, 3)), 5)
  names = set(primitives(closed.jaxpr))
  assert "reduce_sum" in names  # so the walk has reached the passes
  shuffling = {"sort", "top_k", "gather", "all_gather", "scatter", "reshape"}
  assert not names & (shuffling | {"cumsum", "dynamic_slice", "concatenate"})


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
