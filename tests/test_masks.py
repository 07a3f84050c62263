"""Mask trees: applied, counted, compared, packed, checked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax import masks as lib

pytestmark = pytest.mark.core

PARAMS = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": [jnp.ones(2)]}
MASKS = {
  "a": jnp.array([[True, False, True], [False, False, True]]),
  "b": [jnp.array(True)],
}


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_apply_masks_leaves_dense_leaves_alone():
  equal(
    lib.apply_masks(PARAMS, MASKS),
    {"a": jnp.array([[1.0, 0, 3], [0, 0, 6]]), "b": [jnp.ones(2)]},
  )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int8])
def test_apply_masks_keeps_dtypes_and_clears_nan(dtype):
  x = jnp.ones((2, 3), dtype)
  y = lib.apply_masks(x, MASKS["a"])
  assert y.dtype == dtype
  np.testing.assert_array_equal(y, MASKS["a"].astype(dtype))
  nan = lib.apply_masks(jnp.full((2, 3), jnp.nan), MASKS["a"])
  np.testing.assert_array_equal(jnp.isnan(nan), MASKS["a"])


def test_apply_masks_keeps_what_optax_leaves_out():
  masks = {"a": MASKS["a"], "b": [optax.MaskedNode()]}
  masked = lib.apply_masks(PARAMS, masks)
  np.testing.assert_array_equal(masked["b"][0], PARAMS["b"][0])
  holes = {"a": PARAMS["a"], "b": [optax.MaskedNode()]}
  assert lib.is_hole(lib.apply_masks(holes, masks)["b"][0])


def test_nnz_and_density_count_sparse_leaves_only():
  assert lib.nnz(MASKS) == 3
  assert isinstance(lib.nnz(MASKS), int)
  assert lib.density(MASKS) == 0.5
  assert lib.nnz([jnp.array(True)]) == 0
  assert lib.density([jnp.array(True)]) == 1.0


def test_nnz_and_density_of_params_count_what_is_not_zero():
  params = {"w": jnp.eye(4), "b": jnp.array([0.0, 2.0]), "scale": jnp.ones(())}
  assert lib.nnz(params) == 5
  assert lib.density(params) == 5 / 18
  assert lib.nnz(lib.apply_masks(PARAMS, MASKS)) == 3 + 2
  as_floats = jax.tree.map(lambda m: m.astype(jnp.float32), MASKS)
  assert lib.nnz(as_floats) == 3
  assert lib.density(as_floats) == 0.5
  assert int(jax.jit(lib.nnz)(params)) == 5


def test_nnz_refuses_what_is_neither_masks_nor_params():
  for leaf in (jnp.arange(3), jnp.zeros(3, jnp.uint8)):
    for count in (lib.nnz, lib.density):
      with pytest.raises(TypeError, match=r"^a/0: got u?int.*get_masks"):
        count({"a": [leaf]})


def test_nnz_is_exact_where_float32_is_not():
  mask = jnp.ones((2**12, 2**12 + 1), bool).at[0, 0].set(False)
  assert lib.nnz(mask) == 2**24 + 2**12 - 1


def test_nnz_and_density_under_jit():
  n, share = jax.jit(lambda m: (lib.nnz(m), lib.density(m)))(MASKS)
  assert (int(n), float(share)) == (3, 0.5)
  assert n.dtype == jnp.int32


def test_overlap_is_intersection_over_union():
  other = {"a": ~MASKS["a"] | (jnp.arange(3) == 2), "b": MASKS["b"]}
  got = lib.overlap(MASKS, other)
  np.testing.assert_allclose(got["a"], 2 / 6)
  np.testing.assert_allclose(got["b"][0], 1)
  nothing = jnp.zeros((2, 3), bool)
  np.testing.assert_allclose(lib.overlap(nothing, nothing), 1)
  np.testing.assert_allclose(lib.overlap(nothing, MASKS["a"]), 0)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 3), (2, 0), (5, 3, 7)])
def test_pack_bits_round_trip(shape):
  mask = jax.random.bernoulli(jax.random.key(0), 0.3, shape)
  packed = lib.pack_bits({"w": mask})
  assert packed["w"].dtype == jnp.uint8
  assert packed["w"].shape == (-(-mask.size // 8),)
  like = {"w": jax.ShapeDtypeStruct(shape, bool)}
  equal(lib.unpack_bits(packed, like), {"w": mask})


def test_unpack_bits_refuses_another_size():
  packed = lib.pack_bits({"w": jnp.ones((4, 4), bool)})
  with pytest.raises(ValueError, match=r"w: \(2,\) bytes.*\(5, 5\).*takes 4"):
    lib.unpack_bits(packed, {"w": jnp.ones((5, 5), bool)})


@pytest.mark.parametrize(
  ("masks", "message"),
  [
    ({"a": MASKS["a"].T, "b": [True]}, r"a: masks of shape \(3, 2\).*\(2, 3\)"),
    ({"a": MASKS["a"], "b": []}, r"b/0: masks lack a leaf"),
    ({"a": True, "b": [True, True]}, r"b/1: masks have a leaf that the params"),
    ({"a": True, "c": [True]}, r"c/0: masks have a leaf that the params lack"),
  ],
)
def test_what_does_not_fit_is_named(masks, message):
  with pytest.raises(ValueError, match=message):
    lib.apply_masks(PARAMS, masks)


def test_masks_have_to_be_bool():
  masks = {"a": MASKS["a"].astype(jnp.float32), "b": [True]}
  with pytest.raises(TypeError, match=r"a: got a mask of float32, wanted bool"):
    lib.apply_masks(PARAMS, masks)


def test_a_bare_array_has_a_name_too():
  with pytest.raises(ValueError, match=r"the array: masks of shape \(3,\)"):
    lib.apply_masks(jnp.ones(2), jnp.ones(3, bool))


def test_overlap_refuses_masks_of_other_params():
  with pytest.raises(ValueError, match="a: masks of shape"):
    lib.overlap(MASKS, {"a": MASKS["a"].T, "b": [True]})


def test_what_hands_on_attributes_does_not_stand_for_a_mask():
  class Stands:
    def __sparsejax_mask__(self):
      return jnp.array(True)

  class Proxy:  # as flax.nnx.Param is one of its value
    def __getattr__(self, name):
      return getattr(Stands(), name)

  assert lib.stands_for_mask(Stands())
  assert hasattr(Proxy(), "__sparsejax_mask__")
  assert not lib.stands_for_mask(Proxy())
