"""One product for arrays and for nodes that stand for matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sparsejax
from sparsejax import kernels, linear, packed, quantize


class Scaled(NamedTuple):
  """Integers times one float."""

  integers: jax.Array
  scale: jax.Array

  @property
  def shape(self):
    return self.integers.shape

  def matmul(self, x):
    return x @ self.integers.astype(x.dtype) * self.scale.astype(x.dtype)


X = np.arange(12.0).reshape(2, 2, 3)
W = np.arange(12).reshape(3, 4) - 5


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_the_product_has_the_dtype_of_x(dtype):
  x = jnp.asarray(X, dtype)
  for w in (W, W.astype(np.float32), jnp.asarray(W, jnp.bfloat16)):
    y = sparsejax.matmul(x, w)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), X @ W)


def test_a_node_multiplies_itself_under_jit_and_grad():
  w = Scaled(jnp.asarray(W), jnp.float32(0.5))
  x = jnp.asarray(X, jnp.float32)
  np.testing.assert_array_equal(jax.jit(sparsejax.matmul)(x, w), X @ W / 2)
  slope = jax.grad(
    lambda scale: sparsejax.matmul(x, Scaled(w.integers, scale)).sum()
  )(w.scale)
  assert float(slope) == (X @ W).sum()


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 3, 4)])
def test_shapes_that_do_not_fit_are_told(shape):
  for w in (jnp.ones(shape), Scaled(jnp.ones(shape, int), jnp.float32(1))):
    with pytest.raises(ValueError, match=r"\(2, 2, 3\) and w of shape"):
      sparsejax.matmul(jnp.asarray(X, jnp.float32), w)


def test_integers_are_refused():
  with pytest.raises(ValueError, match=r"x of int32.*wanted floats"):
    sparsejax.matmul(jnp.ones((2, 3), jnp.int32), jnp.ones((3, 4)))


@pytest.mark.parametrize("tokens", [1, 5, 9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_matrices_by_outputs(tokens, dtype):
  rng = np.random.default_rng(0)
  w = linear.ByOutputs(jnp.asarray(rng.normal(size=(30, 40)), jnp.bfloat16))
  assert w.shape == (40, 30)
  assert w.ndim == 2
  x = jnp.asarray(rng.normal(size=(1, tokens, 40)), dtype)
  y = sparsejax.matmul(x, w)
  assert y.dtype == dtype
  dense = np.asarray(w.values, np.float64).T
  wanted = np.asarray(x, np.float64) @ dense
  tolerance = 1e-5 if dtype == jnp.float32 else 0.03
  np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance)
  np.testing.assert_array_equal(w.take(jnp.array([3, 0])), w.values[:4:3][::-1])
  if dtype == jnp.bfloat16:
    return
  of_x, of_w = jax.grad(
    lambda x, w: jnp.sum(sparsejax.matmul(x, w) ** 2), (0, 1)
  )(x, w)
  np.testing.assert_allclose(of_x, 2 * wanted @ dense.T, rtol=1e-4, atol=1e-3)
  slope = 2 * np.einsum("bti,bto->oi", x, wanted)
  np.testing.assert_allclose(
    of_w.values.astype(float), slope, rtol=0.01, atol=0.3
  )


def test_several_products_are_those_of_one_call_and_as_each_alone():
  if not kernels.available(quiet=True):
    pytest.skip("the kernels are not available")
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 1, 40)), jnp.float32)
  masks = [rng.random((40, 24)) < 0.4, rng.random((40, 7)) < 0.1]
  floats, small = (
    packed.pack(
      jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0), jnp.float32),
      mask,
      formats=packed.row_bits(),
    )
    for mask in masks
  )
  dense = jnp.asarray(rng.normal(size=(40, 9)), jnp.float32)
  matrices = [
    *(floats, dense, packed.quantize(small), quantize.matrix(dense)),
    quantize.matrix(dense, dynamic=True),
  ]
  text = jax.jit(sparsejax.matmul_each).lower(x, matrices).as_text()
  assert text.count("call @sparsejax_multiply_masked") == 1
  for y, w in zip(
    jax.jit(sparsejax.matmul_each)(x, matrices), matrices, strict=True
  ):
    np.testing.assert_array_equal(y, jax.jit(sparsejax.matmul)(x, w))

  def loss(values, x, multiply):
    trained = packed.join(values, floats.structure)
    return sum(
      jnp.sum(y**2) for y in multiply(x, [trained, quantize.matrix(dense)])
    )

  def one_by_one(x, matrices):
    return [sparsejax.matmul(x, w) for w in matrices]

  slope = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
  for got, wanted in zip(
    slope(floats.values, x, sparsejax.matmul_each),
    slope(floats.values, x, one_by_one),
    strict=True,
  ):
    np.testing.assert_array_equal(got, wanted)
  with pytest.raises(ValueError, match=r"\(2, 1, 40\) and w of shape \(9, 4"):
    sparsejax.matmul_each(x, [floats, dense.T])
