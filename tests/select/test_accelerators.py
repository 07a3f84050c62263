"""Selection as accelerators do it, run on a CPU, against a stable argsort."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import lax
from jax.interpreters import mlir

from sparsejax import select
from sparsejax.select import equation, tiles
from tests.select.test_select import (
  DTYPES,
  check_tree,
  expected,
  primitives,
  values,
)

pytestmark = pytest.mark.core

# Below, at and above a tile of 1024; scalars, empty leaves and single elements.
SHAPES = [(), (0,), (1,), (5, 13), (3, 0, 2), (1024,), (41, 25), (3, 2, 512)]


@contextlib.contextmanager
def as_on_an_accelerator():
  """Lowers programs for a CPU as those for one accelerator."""
  register = functools.partial(
    mlir.register_lowering, equation._top_k_p, platform="cpu"
  )

  def by_default(*args, default, **others):
    del others
    return default(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "device_count", lambda: 1)
    patch.setattr(lax, "platform_dependent", by_default)
    register(mlir.lower_fun(equation._on_accelerators))
    jax.clear_caches()
    yield
    register(mlir.lower_fun(equation._on_cpu))
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def accelerator():
  """Has all tests of this module run so."""
  with as_on_an_accelerator():
    yield


@jax.jit
@select.together
def marked(leaves, ks, wheres):
  """Selects in each of several leaves."""
  return [
    select.top_k_mask(*one) for one in zip(leaves, ks, wheres, strict=True)
  ]


def check(leaves, ks, wheres):
  masks = marked(leaves, jnp.asarray(ks, jnp.int32), wheres)
  for mask, x, k, where in zip(masks, leaves, ks, wheres, strict=True):
    assert mask.shape == x.shape
    np.testing.assert_array_equal(mask, expected(x, k, where))


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=30, deadline=None, database=None)
@given(data=st.data())
def test_each_leaf_of_many_is_a_stable_argsort(name, data):
  """Of few values, with all that is odd among them, and so of many ties."""
  leaves, ks, wheres = [], [], []
  for shape in SHAPES:
    pick = hnp.arrays(np.int8, shape, elements=st.integers(0, 17))
    leaves.append(values(DTYPES[name])[data.draw(pick)])
    ks.append(data.draw(st.integers(-2, leaves[-1].size + 2)))
    wheres.append(
      data.draw(st.just(np.ones(shape, bool)) | hnp.arrays(bool, shape))
    )
  with jax.enable_x64(name == "float64"):
    check(leaves, ks, wheres)


@pytest.mark.parametrize("few", [2**22, 0])
@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_pattern_is_in_order(name, few, monkeypatch):
  """By passes of four bits and of three."""
  monkeypatch.setattr(tiles, "_FEW", few)
  dtype = np.dtype(DTYPES[name])
  bits = np.random.default_rng(0).bytes(2100 * dtype.itemsize)
  scores = np.frombuffer(bits, dtype)
  with jax.enable_x64(name == "float64"):
    mark = jax.jit(lambda x, k: select.top_k_mask(x, k))
    for k in (0, 1, 2, 37, 1024, 2099, 2100):
      mask = mark(jnp.asarray(scores), jnp.int32(k))
      np.testing.assert_array_equal(mask, expected(scores, k))


def test_ties_go_to_the_lower_index_across_tiles():
  sizes = (1023, 1024, 1025, 2048, 5000)
  leaves = [np.zeros(n, np.float32) for n in sizes]
  leaves[-1][::3] = 1
  wheres = [np.ones(n, bool) for n in sizes]
  for share in (0, 0.1, 0.5, 0.9, 1):
    check(leaves, [int(share * n) for n in sizes], wheres)
    check(leaves, [int(share * n) + 1 for n in sizes], wheres)


@pytest.mark.slow
def test_leaves_of_several_dtypes_and_one_threshold_for_a_tree():
  rng = np.random.default_rng(0)
  tree = {"a": rng.integers(0, 9, (30, 50)), "b": rng.integers(0, 9, 1200)}
  half = {p: x.astype(np.float16) for p, x in tree.items()}
  where = {p: rng.random(x.shape) < 0.7 for p, x in tree.items()}
  for k in (0, 1, 1300, 2700):
    check_tree(half, k)
    check_tree(half | {"b": tree["b"].astype(np.float32)}, k, where)
  leaves = [
    x.astype(d) for x in tree.values() for d in (np.float16, np.float32)
  ]
  check(leaves, [7, 800, 600, 1], [np.ones(x.shape, bool) for x in leaves])


def test_members_of_a_population_have_their_own_k():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 5, (3, 40, 30)).astype(np.float32)
  b = rng.integers(0, 5, (3, 11)).astype(np.float32)
  ks = np.array([[0, 700, 1200], [11, 3, 5]])

  @jax.jit
  @jax.vmap
  @select.together
  def members(a, b, i, j):
    return [select.top_k_mask(a, i), select.top_k_mask(b, j)]

  for mask, x, own in zip(members(a, b, *ks), (a, b), ks, strict=True):
    for row in zip(mask, x, own, strict=True):
      np.testing.assert_array_equal(row[0], expected(*row[1:]))
  masks = jax.vmap(lambda k: select.top_k_mask(a[0], k))(ks[0])
  for mask, k in zip(masks, ks[0], strict=True):
    np.testing.assert_array_equal(mask, expected(a[0], k))


def test_slices_along_any_axis_have_their_own_k():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 5, (2, 6, 4, 5)).astype(np.float32)
  where = rng.random(scores.shape) < 0.8
  ks = np.array([0, 1, 7, 19])

  def each(scores, where):
    return select.top_k_of_each(scores, ks, 1, where)

  masks = jax.vmap(each)(scores, where)
  for layer in range(2):
    for i, k in enumerate(ks):
      place = layer, slice(None), i
      wanted = expected(scores[place], k, where[place])
      np.testing.assert_array_equal(masks[place], wanted)


@pytest.mark.slow
def test_what_is_too_much_for_one_group_is_ranked_in_several(monkeypatch):
  monkeypatch.setattr(equation, "_MOST_SCORES", 3000)
  rng = np.random.default_rng(0)
  leaves = [
    rng.normal(size=n).astype(np.float32) for n in (2000, 900, 200, 5000)
  ]

  def all_of(leaves):
    masks = [select.top_k_mask(x, x.size // 3) for x in leaves]
    return masks

  masks = jax.jit(select.together(all_of))(leaves)
  for mask, x in zip(masks, leaves, strict=True):
    np.testing.assert_array_equal(mask, expected(x, x.size // 3))
  assert equation._groups(leaves) == [[0, 1], [2], [3]]


def test_no_loop_and_no_conditional():
  closed = jax.make_jaxpr(
    lambda x, k: equation._on_accelerators(
      x, k, selections=(equation.Selection(1, (False,)),), several=False
    )
  )(jnp.ones(5000), jnp.int32(3))
  names = set(primitives(closed.jaxpr))
  assert "cumsum" in names
  assert not names & {"while", "scan", "cond", "sort"}
