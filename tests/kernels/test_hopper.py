"""Kernels for Hopper, in Pallas's interpreter, which looks for races."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from sparsejax import packed
from sparsejax.kernels import blocks, devices
from sparsejax.kernels.tiles import PRODUCTS, SHARED, TILES, Tile, candidates
from sparsejax.packed.blocks import block_product
from tests.marks import slow

params = pytest.importorskip(
  "jax._src.pallas.mosaic_gpu.interpret.params",
  reason="Mosaic GPU has an interpreter from JAX 0.10 on",
)
hopper = pytest.importorskip("sparsejax.kernels.hopper")
INTERPRET = params.InterpretGPUParams(detect_races=True)

# It runs callbacks on the host.
interpreted = pytest.mark.cpu
transposes = pytest.mark.skipif(
  jax.__version_info__ < (0, 11),
  reason="its interpreter transposes no operands before JAX 0.11",
)


def matrix(side, spare=0):
  """Three rows and columns of blocks, some of which have none."""
  there = np.array([[0, 0, 0], [1, 0, 1], [1, 0, 0]], bool)
  mask = np.kron(there, np.ones((side, side), bool))
  rng = np.random.default_rng(0)
  w = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
  form = packed.blocks(side)
  slots = form.slots(mask) + spare * side**2
  structure = form.place(jnp.asarray(mask), slots)
  return packed.Packed(structure.gather(jnp.asarray(w)), structure), w


def rounded(x):
  return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)


def check(got, want):
  got = np.asarray(got, np.float32)
  np.testing.assert_allclose(got, want, rtol=2**-7, atol=0.1)


# The interpreter compiles each program anew: one quick case, of three turns.
@pytest.mark.parametrize(
  ("side", "batch", "tiling", "cores"),
  [
    (32, 128, Tile(128, 2), 1),
    slow(32, 384, Tile(128, 3), 2),
    slow(64, 256, Tile(256, 2), 2),
    slow(128, 256, Tile(128, 2), 4),
  ],
)
@interpreted
def test_products_are_those_of_the_dense_matrix(side, batch, tiling, cores):
  w, dense = matrix(side)
  s = w.structure
  x = np.random.default_rng(1).normal(size=(batch, len(dense)))
  y = hopper.multiply(
    jnp.asarray(x, jnp.bfloat16),
    blocks.Columns(s.order, s.pointers, s.inputs),
    w.values.reshape(-1, side, side).astype(jnp.bfloat16),
    tiling=tiling,
    cores=cores,
    interpret=INTERPRET,
  )
  check(y, rounded(x) @ rounded(dense))


@interpreted
@transposes
@pytest.mark.parametrize(
  ("side", "batch", "tiling"),
  [
    (32, 128, Tile(4, 2)),
    slow(64, 192, Tile(2, 3)),
    slow(64, 128, Tile(4, 2)),
    slow(128, 128, Tile(1, 2)),
    slow(128, 128, Tile(2, 2)),
  ],
)
def test_gradients_of_blocks_are_those_of_the_dense_matrix(side, batch, tiling):
  # Two blocks more than there are, which no row has.
  w, dense = matrix(side, spare=2)
  s = w.structure
  rng = np.random.default_rng(1)
  x, g = (jnp.asarray(rng.normal(size=(batch, len(dense)))) for _ in range(2))
  x, g = x.astype(jnp.float16), g.astype(jnp.float16)
  rows = blocks.Columns(s.back_order, s.back_pointers, s.back_outputs)
  sampled = hopper.sample(
    *(x, g, s.inputs, rows, s.back_slots, side, jnp.float32),
    tiling=tiling,
    interpret=INTERPRET,
  )
  want = np.where(dense != 0, np.asarray(x, float).T @ np.asarray(g, float), 0)
  check(s.expand(sampled.reshape(-1)), want)
  np.testing.assert_array_equal(sampled[-2:], 0)


@interpreted
@transposes
@pytest.mark.parametrize("side", [32, slow(64), slow(128)])
def test_a_layer_is_differentiated(side):
  w, dense = matrix(side)
  rng = np.random.default_rng(1)
  x, g = (
    jnp.asarray(rng.normal(size=(2, 50, len(dense))), jnp.bfloat16)
    for _ in range(2)
  )

  def product(values, x):
    tree = packed.Packed(values, w.structure)
    return block_product(x, tree, kernels=hopper, interpret=INTERPRET)

  y, pull = jax.vjp(product, w.values, x)
  of_values, of_x = pull(g)
  assert (y.dtype, of_values.dtype, of_x.dtype) == (x.dtype, "float32", x.dtype)
  flat = [rounded(a).reshape(100, -1) for a in (x, g)]
  check(y.reshape(100, -1), flat[0] @ rounded(dense))
  check(of_x.reshape(100, -1), flat[1] @ rounded(dense).T)
  gradient = np.where(dense != 0, flat[0].T @ flat[1], 0)
  check(w.structure.expand(of_values), gradient)


@pytest.mark.slow
@interpreted
def test_products_are_vmapped():
  w, dense = matrix(32)
  s = w.structure
  values = w.values.reshape(-1, 32, 32).astype(jnp.bfloat16)
  x = np.random.default_rng(1).normal(size=(2, 128, len(dense)))

  def product(x, values, columns):
    return hopper.multiply(
      *(x, columns, values), tiling=Tile(128, 2), cores=1, interpret=INTERPRET
    )

  # The second matrix has the same blocks in other columns.
  tables = [
    blocks.Columns(s.order, s.pointers, s.inputs),
    blocks.Columns(s.order, s.pointers, s.inputs[::-1]),
  ]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *tables)
  x = jnp.asarray(x, jnp.bfloat16)
  y = jax.vmap(product, (0, None, 0))(x, values, stacked)
  for i, columns in enumerate(tables):
    one = product(x[i], values, columns)
    np.testing.assert_array_equal(y[i], one)
  check(y[0], rounded(x[0]) @ rounded(dense))


def turns(plan, counts, monkeypatch):
  """The tiles and columns of each program, and how many blocks these have."""
  pointers = jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32)
  order = jnp.asarray(np.argsort(-counts, kind="stable"), jnp.int32)
  columns = blocks.Columns(order, pointers, pointers)

  def one(program, turn):
    monkeypatch.setattr(hopper.lax, "axis_index", lambda _: program)
    return plan.turns(), *plan.tile(turn, columns)

  most = pl.cdiv(plan.tiles * plan.columns, plan.programs)
  program, turn = jnp.indices((plan.programs, most), jnp.int32)
  number, *found = jax.jit(jax.vmap(jax.vmap(one)))(program, turn)
  return [np.asarray(a)[turn < number] for a in (program, *found)]


@pytest.mark.parametrize("programs", [6, 35, 4])
def test_every_tile_is_made_once(programs, monkeypatch):
  plan = hopper._Plan(7, 5, 128, 32, programs)
  counts = np.array([3, 0, 1, 4, 1])
  _, tiles, columns, first, entries = turns(plan, counts, monkeypatch)
  made = sorted(zip(tiles.tolist(), columns.tolist(), strict=True))
  assert made == [(t, c) for t in range(7) for c in range(5)]
  np.testing.assert_array_equal(entries, counts[columns])
  np.testing.assert_array_equal(first, (np.cumsum(counts) - counts)[columns])


@pytest.mark.parametrize(("side", "least"), [(128, 0.85), (64, 0.85)])
def test_programs_have_about_as_much_to_do(side, least, monkeypatch):
  count = 4096 // side
  there = np.zeros(count**2)
  there[np.random.default_rng(0).permutation(count**2)[: count**2 // 10]] = 1
  counts = there.reshape(count, count).sum(0).astype(int)
  plan = hopper._Plan(16, count, 256, side, 132)
  program, *_, entries = turns(plan, counts, monkeypatch)
  work = np.bincount(program, entries)
  assert work.mean() / work.max() > least


def on(kind):
  """Programs are traced for a card that is not there."""
  device = jax.sharding.AbstractDevice(kind, 114, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


def test_kernels_are_chosen_by_the_card(monkeypatch):
  def name(side, dtype):
    module = blocks.chosen(side, dtype)
    return module and module.__name__.rsplit(".")[-1]

  for kind in ("NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA GH200 480GB"):
    with on(kind):
      assert devices.card() == (kind, (9, 0), 114)
      for side in blocks.HOPPER_SIDES:
        assert name(side, jnp.float16) == name(side, jnp.bfloat16) == "hopper"
      assert name(16, jnp.bfloat16) == name(64, jnp.float32) == "triton"
  with on("NVIDIA A100-SXM4-80GB"):
    assert name(64, jnp.bfloat16) == "triton"

  def cards(*capabilities):
    found = [
      FakeDevice(f"card {capability}", capability)
      for capability in capabilities
    ]
    monkeypatch.setattr(jax, "devices", lambda *_: found)
    return name(64, jnp.bfloat16)

  assert cards("9.0", "9.0") == "hopper"
  assert cards("10.0") == cards("8.0") == cards("9.0", "10.0") == "triton"
  assert cards("7.5") is cards("9.0", "7.0") is None


class FakeDevice:
  def __init__(self, kind, capability):
    self.device_kind, self.compute_capability = kind, capability
    self.core_count = 132


def test_tiles_fit_into_shared_memory():
  assert len(TILES) >= len(PRODUCTS) * len(blocks.HOPPER_SIDES)
  for (_, product, side), tile in TILES.items():
    assert tile in candidates(product, side)
  assert SHARED < 227 * 1024
