"""Products with masked and INT8 matrices, against NumPy in float64."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import kernels, packed, quantize
from sparsejax.kernels import build
from tests.kernels.test_kernels import supports
from tests.marks import few, slow

pytestmark = [
  pytest.mark.core,
  pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None,
    reason="there is no C++ compiler: install g++",
  ),
]

kernels.available(quiet=True)  # compiles them, before a test's time counts
DTYPES = (jnp.float32, jnp.bfloat16, jnp.int8)
# Inputs, outputs, groups of scales: a word of bits is of 64 inputs.
SHAPES = ((70, 33, 1), (64, 1, 8), (200, 40, 5), (5, 3, 1), (576, 192, 9))
BATCHES = (1, 3, 7, 8, 130, 300)


@pytest.fixture(autouse=True, scope="module")
def _built():
  assert kernels.available()


def matrix(rng, inputs, outputs, groups, density, dtype):
  """Draws the arguments of `multiply_bits`, and the same dense in float64."""
  mask = rng.random((outputs, inputs)) < density
  if 0 < density < 0.2:
    mask[0] = True  # more in a word than such densities have on average
  mask[outputs // 2] = False  # an output without inputs
  w = rng.integers(-127, 128, mask.shape) * mask
  scales = None
  exact = np.asarray(jnp.asarray(w, dtype), np.float64)
  if dtype == jnp.int8:
    scales = rng.random((outputs, groups)).astype(np.float32)
    exact *= np.repeat(scales.astype(np.float64), inputs // groups, axis=1)
  bits = np.packbits(mask, axis=1, bitorder="little")
  pointers = np.concatenate([[0], mask.sum(axis=1).cumsum()]).astype(np.int32)
  return (bits, pointers, jnp.asarray(w[mask], dtype), scales), exact


def check(got, x, exact):
  """Compares a product with the exact one, relative to its largest terms."""
  terms = np.abs(x).astype(np.float64) @ np.abs(exact).T
  wanted = x.astype(np.float64) @ exact.T
  assert got.dtype == jnp.float32
  assert np.all(np.abs(got - wanted) <= 1e-6 * terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", few(BATCHES, {1, 3, 130}))
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[:2]))
def test_products_are_those_of_the_dense_matrix(shape, batch, dtype):
  rng = np.random.default_rng(0)
  for density in (0.3, 0.08, 0.0, 1.0):
    arguments, exact = matrix(rng, *shape, density, dtype)
    x = rng.normal(size=(batch, shape[0])).astype(np.float32)
    check(kernels.multiply_bits(x, *arguments), x, exact)


@pytest.mark.parametrize("batch", few(BATCHES, {1, 130}))
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[:1]))
def test_dense_int8_is_exact(shape, batch):
  rng = np.random.default_rng(0)
  inputs, outputs, groups = shape
  w = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
  scales = rng.random((outputs, groups)).astype(np.float32)
  exact = w * np.repeat(scales.astype(np.float64), inputs // groups, axis=1)
  x = rng.normal(size=(batch, inputs)).astype(np.float32)
  check(kernels.multiply_int8(x, w, scales), x, exact)
  if batch == 1:
    assert kernels.multiply_int8(x[0], w, scales).shape == (outputs,)


@pytest.mark.parametrize("batch", few((1, 3, 7, 8, 41), {1, 3, 41}))
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[:3:2]))
def test_products_of_rounded_activations_are_exact(shape, batch):
  """Sums of the very integers, and with one group the very floats."""
  rng = np.random.default_rng(0)
  inputs, _, groups = shape
  x = rng.normal(size=(batch, inputs)).astype(np.float32)
  x[0] = rng.integers(-127, 127, inputs) + 0.5  # ties
  x[0, 0] = 127
  x[1:2] = 0  # a token of nothing
  scale = np.abs(x).max(axis=1, keepdims=True) * np.float32(1 / 127)
  scale[scale == 0] = 1
  numbers = np.rint(x / scale).astype(np.int64)
  for density in (0.3, 0.0, 1.0):
    (bits, pointers, values, scales), _ = matrix(rng, *shape, density, jnp.int8)
    mask = np.unpackbits(bits, axis=1, count=inputs, bitorder="little") != 0
    w = np.zeros(mask.shape, np.int8)
    w[mask] = values
    parts = [a.reshape(len(a), groups, -1) for a in (numbers, w.astype(int))]
    sums = np.einsum("bgi,ogi->bog", *parts)
    terms = sums.astype(np.float32) * scales
    exact, largest = (scale * a.sum(axis=2) for a in (terms, np.abs(terms)))
    ours = (
      kernels.multiply_bits(x, bits, pointers, values, scales, dynamic=True),
      kernels.multiply_int8(x, w, scales, dynamic=True),
    )
    for got in ours:
      if groups == 1:
        np.testing.assert_array_equal(got, exact)
      assert np.all(np.abs(got - exact) <= 1e-6 * largest)


@pytest.mark.parametrize("batch", [1, 16, slow(130)])
def test_several_products_at_once_are_those_of_one_to_the_bit(batch):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, 576)).astype(np.float32)
  matrices, exact = [], []
  # Densities of which 16 examples are few and many.
  for i, (density, dtype) in enumerate(
    ((0.5, jnp.float32), (0.1, jnp.int8), (0.9, jnp.bfloat16), (1, jnp.int8))
  ):
    shape = (576, 33 + 64 * i, 9)
    (bits, pointers, values, scales), dense = matrix(
      rng, *shape, density, dtype
    )
    matrices.append(kernels.Masked(values, scales, bits, pointers))
    exact.append(dense)
  matrices.append(kernels.Masked(jnp.asarray(exact[0], jnp.bfloat16)))
  exact.append(exact[0])
  together = kernels.multiply_each(x, matrices)
  for got, w, dense in zip(together, matrices, exact, strict=True):
    np.testing.assert_array_equal(got, kernels.multiply_each(x, [w])[0])
    check(got, x, dense)
  # Rounded for one and not for the other, and for another number of groups.
  some = [w._replace(dynamic=True) for w in matrices if w.scales is not None]
  some.append(some[0]._replace(scales=some[0].scales[:, :1]))
  together = kernels.multiply_each(x, [*some, matrices[1]])
  for got, w in zip(together, [*some, matrices[1]], strict=True):
    np.testing.assert_array_equal(got, kernels.multiply_each(x, [w])[0])


@pytest.mark.parametrize("batch", [1, 16])
def test_bits_that_do_not_go_with_values_are_refused(batch):
  rng = np.random.default_rng(0)
  (bits, pointers, values, _), _ = matrix(rng, 70, 33, 1, 0.3, jnp.float32)
  x = np.ones((batch, 70), np.float32)

  scales = np.ones((33, 1), np.float32)

  def refuse(bits, pointers, values):
    # JAX raises the one or the other, by where it runs the program.
    errors = jax.errors.JaxRuntimeError, ValueError
    whole = kernels.Masked(values, None, bits, pointers)
    for w in (
      whole,
      whole._replace(
        values=values.astype(jnp.int8), scales=scales, dynamic=True
      ),
    ):
      with pytest.raises(errors, match=r"packed\.check"):
        jax.block_until_ready(kernels.multiply_each(x, [w]))

  more = np.array(bits)
  more[5] = 255
  refuse(more, pointers, values)
  refuse(bits, pointers, values[:-1])
  for place, value in ((0, -1), (3, 10**6), (33, 10**6), (7, -5)):
    broken = np.array(pointers)
    broken[place] = value
    refuse(bits, broken, values)


@pytest.mark.parametrize("group", [False, None, slow(8), 5])
def test_packed_matrices_are_multiplied(group):
  rng = np.random.default_rng(0)
  mask = rng.random((40, 30)) < 0.4
  w = jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0), jnp.float32)
  tree = packed.pack(w, mask, formats=packed.row_bits())
  if group is not False:
    scales = functools.partial(quantize.scales, group=group)
    tree = packed.quantize(tree, scales=scales)
  x = rng.normal(size=(2, 9, 40)).astype(np.float32)
  exact = np.asarray(tree.unpack(), np.float64)
  np.testing.assert_allclose(tree.matmul(x), x @ exact, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_dense_matrix():
  rng = np.random.default_rng(0)
  mask = rng.random((40, 30)) < 0.4
  w = jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0), jnp.float32)
  tree = packed.pack(w, mask, formats=packed.row_bits())
  x = jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)

  def loss(values, x):
    return jnp.sum(packed.join(values, tree.structure).matmul(x) ** 2)

  of_values, of_x = jax.jit(jax.grad(loss, (0, 1)))(tree.values, x)
  y = x @ w
  wanted = tree.structure.gather(2 * x.T @ y)
  np.testing.assert_allclose(of_values, wanted, rtol=2e-5, atol=1e-4)
  np.testing.assert_allclose(of_x, 2 * y @ w.T, rtol=2e-5, atol=1e-4)


def test_shapes_and_dtypes_that_do_not_go_together_are_refused():
  x = jnp.ones((2, 24))
  bits, pointers = jnp.zeros((2, 3), jnp.uint8), jnp.zeros(3, jnp.int32)
  floats, bytes_ = jnp.ones(4), jnp.ones(4, jnp.int8)
  with pytest.raises(ValueError, match=r"wanted \(2, 4\)"):
    kernels.multiply_bits(jnp.ones((2, 30)), bits, pointers, floats)
  with pytest.raises(ValueError, match="int8 without scales"):
    kernels.multiply_bits(x, bits, pointers, bytes_)
  with pytest.raises(ValueError, match="float32 with scales"):
    kernels.multiply_bits(x, bits, pointers, floats, jnp.ones((2, 1)))
  for groups in (2, 5):  # of 12 inputs; that do not divide them
    with pytest.raises(ValueError, match="multiple of 8 inputs"):
      kernels.multiply_bits(x, bits, pointers, bytes_, jnp.ones((2, groups)))
  with pytest.raises(ValueError, match=r"wanted \(out, 24\)"):
    kernels.multiply_int8(x, jnp.ones((2, 3), jnp.int8), jnp.ones((2, 1)))
  with pytest.raises(ValueError, match="for values of float32, wanted int8"):
    kernels.multiply_bits(x, bits, pointers, floats, dynamic=True)
  with pytest.raises(ValueError, match="wanted int8"):
    kernels.multiply_int8(x, jnp.ones((2, 24)), jnp.ones((2, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", build.INSTRUCTION_SETS)
def test_every_instruction_set_is_exact(name):
  if not supports(name):
    pytest.skip(f"this processor does not run {name}")
  command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", ""]
  attention = pathlib.Path(__file__).with_name("test_attention.py")
  done = subprocess.run(
    [*command, "-k", "not instruction", __file__, attention],
    capture_output=True,
    text=True,
    env={**os.environ, "SPARSEJAX_ISA": name},
  )
  assert done.returncode == 0, done.stdout
