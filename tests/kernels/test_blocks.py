"""Block-sparse products, interpreted on CPUs, and lowered for GPUs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax import masks, packed
from sparsejax.kernels import blocks, triton
from sparsejax.nodes import Probe
from sparsejax.packed.blocks import _scattered as scattered
from sparsejax.packed.blocks import block_product
from tests.marks import slow


def matrix(side, dtype=jnp.float32, density=0.4, tiles=(5, 7)):
  """A packed matrix of blocks, and the same dense."""
  rng = np.random.default_rng(0)
  there = rng.random(tiles) < density
  there[:, 2] = False  # A column and a row without any.
  there[3] = False
  mask = np.kron(there, np.ones((side, side), bool))
  w = jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0), dtype)
  return packed.pack(w, mask, formats=packed.blocks(side)), w, mask


@pytest.mark.parametrize("side", [16, slow(32), slow(64), 128])
@pytest.mark.parametrize("batch", [(3,), slow((100,)), (2, 40)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_gradients_are_those_of_the_dense_matrix(
  side, batch, dtype
):
  if side == 128 and batch != (100,):
    pytest.skip("one batch is enough for the largest")
  w, dense, mask = matrix(side, dtype)
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(*batch, dense.shape[0])), dtype)
  g = jnp.asarray(rng.normal(size=(*batch, dense.shape[1])), dtype)

  def product(values, x):
    return block_product(
      x, packed.join(values, w.structure), kernels=triton, interpret=True
    )

  y, pull = jax.vjp(product, w.values, x)
  of_values, of_x = pull(g)
  exact = [np.asarray(a, np.float64) for a in (x, g, dense)]
  flat = [a.reshape(-1, a.shape[-1]) for a in exact]
  gradient = np.where(mask, flat[0].T @ flat[1], 0)
  close = functools.partial(
    np.testing.assert_allclose,
    rtol=1e-4 if dtype == jnp.float32 else 2**-7,
    atol=1e-3 if dtype == jnp.float32 else 0.1,
  )
  close(np.asarray(y, np.float64), exact[0] @ exact[2])
  close(np.asarray(of_x, np.float64), exact[1] @ exact[2].T)
  got = w.structure.expand(of_values)
  close(np.asarray(got, np.float64), gradient)
  assert y.dtype == of_values.dtype == of_x.dtype == dtype


def test_a_probe_sees_the_dense_gradient():
  w, dense, _ = matrix(16)
  x = jnp.ones((8, dense.shape[0]))

  def read(gradient, weights, factor):
    values, structure = weights
    assert values.shape == w.values.shape
    return jnp.sum(gradient * (structure.expand(values) == dense)) * factor

  def loss(zeros):
    probe = Probe(zeros, jnp.float32(2), read)
    tree = packed.Packed(w.values, w.structure, probe)
    return jnp.sum(block_product(x, tree, kernels=triton, interpret=True))

  assert jax.grad(loss)(jnp.float32(0)) == 2 * 8 * dense.size


@pytest.mark.cpu
def test_everywhere_else_the_product_is_dense():
  w, dense, _ = matrix(16)
  x = jnp.ones((8, dense.shape[0]))
  np.testing.assert_array_equal(sparsejax.matmul(x, w), x @ dense)


@pytest.mark.filterwarnings("ignore:The Pallas Triton:DeprecationWarning")
@pytest.mark.parametrize("card", ["NVIDIA H200", "NVIDIA A100"])
@pytest.mark.parametrize(
  ("side", "dtype"), [(16, jnp.float32), (128, jnp.bfloat16)]
)
def test_kernels_are_lowered_for_gpus_without_one(side, dtype, card):
  w, dense, _ = matrix(side, dtype)
  x = jnp.ones((100, dense.shape[0]), dtype)

  def loss(values, x):
    y = sparsejax.matmul(x, packed.join(values, w.structure))
    return jnp.sum(y.astype(jnp.float32) ** 2)

  gpu = jax.sharding.AbstractDevice(card, 132, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = (
      jax.jit(jax.grad(loss, (0, 1)))
      .trace(w.values, x)
      .lower(lowering_platforms=("cuda",))
    )
  hopper = side == 128 and card == "NVIDIA H200"
  name = (
    "mosaic_gpu" if hopper and jax.__version_info__ >= (0, 10) else "triton"
  )
  assert lowered.as_text().count(name) >= 3


def test_older_cards_make_the_product_dense(monkeypatch):
  monkeypatch.setattr(blocks, "chosen", lambda *_: None)
  w, dense, _ = matrix(16)
  x = jnp.ones((8, dense.shape[0]))
  np.testing.assert_array_equal(block_product(x, w), x @ dense)


@pytest.mark.parametrize("n", [5, 20, 40])
def test_blocks_are_listed_alike_on_all_platforms(n):
  there = np.random.default_rng(0).random((6, 9)) < 0.4
  assert 5 < there.sum() < 40
  got = scattered(jnp.asarray(there), n)
  np.testing.assert_array_equal(got, masks.places(jnp.asarray(there), n))
  found = np.flatnonzero(there)[:n]
  np.testing.assert_array_equal(got[: len(found)], found)


def test_columns_with_the_most_blocks_come_first():
  w, _, mask = matrix(32)
  counts = mask[::32, ::32].sum(0)
  np.testing.assert_array_equal(
    w.structure.order, np.argsort(-counts, kind="stable")
  )
  counts = mask[::32, ::32].sum(1)
  np.testing.assert_array_equal(
    w.structure.back_order, np.argsort(-counts, kind="stable")
  )


def test_blocks_have_their_own_format():
  w, dense, mask = matrix(32)
  assert isinstance(w.structure, packed.Blocks)
  np.testing.assert_array_equal(w.unpack(), dense)
  packed.check(w)
  other = np.flip(mask)
  moved = jax.jit(lambda s, m: s.moved(m))(w.structure, other)
  np.testing.assert_array_equal(moved.mask(), other)
  back = w.structure.back_slots
  broken = dataclasses.replace(w.structure, back_slots=back[::-1])
  with pytest.raises(ValueError, match="back_slots that do not go"):
    packed.check(packed.Packed(w.values, broken))
  assert w.structure.kernel
  assert not packed.blocks(4).place(jnp.asarray(mask), mask.sum()).kernel
  assert not packed.blocks(64).fits(mask)
  assert not packed.blocks(16).fits(np.eye(32, dtype=bool))
