"""One product for arrays and for nodes that stand for matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sparsejax


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
