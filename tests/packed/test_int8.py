"""Packed matrices of INT8: values, products, masks, and what is refused."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax import kernels, packed, patterns, quantize
from sparsejax.quantize import products
from tests.marks import few

kernels.available(quiet=True)  # compiles them, before a test's time counts
SHAPE = (16, 12)
FORMATS = {
  "bits": packed.bits(),
  "row_bits": packed.row_bits(),
  "rows": packed.rows(kernel=True),
  "n_of_m": packed.n_of_m(2, 4),
  "flat": packed.flat(),
  "fan_in": packed.fan_in(),
  "blocks": packed.blocks(4),
}


def by(group):
  return functools.partial(quantize.scales, group=group)


def kernel(name="bits", seed=0, layers=()):
  """A matrix with the zeros of a format, some of its weights very small."""
  rng = np.random.default_rng(seed)
  noise = jnp.asarray(rng.random((*layers, *SHAPE)))
  pattern = {
    "n_of_m": patterns.n_of_m(2, 4),
    "fan_in": patterns.fan_in(),
    "blocks": patterns.blocks((4, 4)),
  }.get(name, patterns.unstructured())
  count = noise.size // 2
  mask = np.asarray(pattern.top_k(noise, count))
  w = rng.normal(size=mask.shape) * np.where(
    rng.random(mask.shape) < 0.2, 0.001, 1
  )
  return np.where(mask, w, 0).astype("f"), mask


@pytest.mark.parametrize(
  "case",
  few(
    itertools.product(FORMATS, (None, 4)), [("row_bits", None), ("n_of_m", 4)]
  ),
)
def test_packed_integers_are_those_of_the_dense_matrix(case):
  name, group = case
  w, mask = kernel(name)
  tree = packed.pack({"w": w}, {"w": mask}, formats=FORMATS[name])
  small = packed.quantize(tree, scales=by(group))["w"]
  dense = quantize.matrix(w, group=group)
  assert small.values.dtype == jnp.int8
  np.testing.assert_array_equal(small.scales, dense.scales)
  np.testing.assert_array_equal(small.unpack(), dense.dequantize())
  # Though small weights have become 0, the mask is the same.
  np.testing.assert_array_equal(small.structure.mask(), mask)
  assert np.sum(np.asarray(small.unpack()) != 0) < mask.sum()
  x = np.random.default_rng(1).normal(size=(2, 3, 16)).astype("f")
  wide = np.asarray(dense.dequantize(), np.float64)
  y = jax.jit(sparsejax.matmul)(x, small)
  np.testing.assert_allclose(y, x @ wide, rtol=1e-4, atol=1e-5)
  of_x = jax.grad(lambda x: jnp.sum(sparsejax.matmul(x, small) ** 2))(x)
  np.testing.assert_allclose(
    of_x, 2 * (x @ wide) @ wide.T, rtol=1e-3, atol=1e-4
  )
  packed.check({"w": small})
  # Activations in INT8: sums of the same integers, straight through.
  rounded = packed.quantize(tree, scales=by(group), dynamic=True)["w"]
  exact = products.dynamic_product(x, dense.values, dense.scales)
  y = jax.jit(sparsejax.matmul)(x, rounded)
  np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-6)
  y = sparsejax.matmul(jnp.asarray(x, jnp.bfloat16), rounded)
  assert y.dtype == jnp.bfloat16
  g = np.ones((2, 3, 12), "f")
  of_x = jax.grad(lambda x: jnp.sum(sparsejax.matmul(x, rounded) * g))(x)
  np.testing.assert_allclose(of_x, g @ wide.T, rtol=1e-4, atol=1e-4)
  packed.check({"w": rounded})


def test_stacked_layers_have_scales_of_their_own():
  w, mask = kernel(layers=(3,))
  w[1] *= 9
  form = packed.stacked(packed.bits())
  small = packed.quantize(packed.pack(w, mask, formats=form), scales=by(8))
  np.testing.assert_array_equal(
    small.unpack(), quantize.matrix(w, group=8).dequantize()
  )
  packed.check(small)

  def turn(x, w):
    return x, sparsejax.matmul(x, w)

  x = np.ones((1, 16), "f")
  _, y = jax.lax.scan(turn, x, small)
  for i in range(3):
    np.testing.assert_allclose(y[i], x @ small.unpack()[i], rtol=1e-4)


def test_scales_of_earlier_rounding_are_found_again():
  """So that packing adds no error, whatever the largest integer is."""
  rng = np.random.default_rng(0)
  limits = np.array([127, 120, 90, 31, 2, 1])
  integers = np.stack([rng.integers(-n, n + 1, 40) for n in limits], 1)
  integers[0] = limits
  scales = rng.random((2, len(limits), 1)).astype("f") + 0.1
  w = integers * scales.swapaxes(1, 2)
  found = quantize.exact_scales(jnp.asarray(w, "f"))
  again = quantize.matrix(w, scales=found)
  np.testing.assert_allclose(again.dequantize(), w, rtol=1e-6)
  assert np.abs(np.asarray(quantize.matrix(w).dequantize()) - w).max() > 1e-3
  plain = kernel()[0]
  plain[:, 3] = 0
  for group in (None, 8):
    np.testing.assert_allclose(
      quantize.exact_scales(plain, group=group),
      quantize.scales(plain, group=group),
      rtol=1e-6,
    )


def test_what_is_refused():
  w, mask = kernel()
  tree = packed.pack({"w": w}, {"w": mask})
  small = packed.quantize(tree)
  with pytest.raises(TypeError, match="integers are not trained"):
    packed.split(small)
  with pytest.raises(ValueError, match="w: got groups of 5 for 16 inputs"):
    packed.quantize(tree, scales=by(5))
  vector = packed.pack({"b": w[0]}, {"b": mask[0]})
  with pytest.raises(ValueError, match="b: got an array of shape"):
    packed.quantize(vector)
  for change, says in (
    ({"scales": None}, "values of int8 without scales"),
    ({"scales": np.ones((12, 5), "f")}, "scales of shape"),
    ({"scales": np.full((12, 1), np.inf, "f")}, "infinite"),
    ({"values": small["w"].values.astype("f")}, "float32 with scales"),
    (
      {
        "values": small["w"].values.astype("f"),
        "scales": None,
        "dynamic": True,
      },
      "activations of int8 for values of float32",
    ),
  ):
    with pytest.raises(ValueError, match=f"w: got .*{says}"):
      packed.check({"w": dataclasses.replace(small["w"], **change)})
