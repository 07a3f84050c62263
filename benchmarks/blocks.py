"""Products with block-sparse matrices on a GPU, against dense ones.

Run `python -m benchmarks.blocks` where JAX sees a GPU: forward and backward
pass of a layer in bfloat16, with blocks of 16 to 128 at 80, 90 and 95 %.
With `--autotune` on a Hopper card it times the tiles of each product instead,
and prints entries for `sparsejax/kernels/tiles.py`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import sparsejax
from benchmarks import measure
from sparsejax import packed, select
from sparsejax.kernels import blocks as kernels
from sparsejax.kernels import devices, tiles

_SIZE = flags.DEFINE_integer(
  "size", 4096, "Input and output features of the layer."
)
_BATCH = flags.DEFINE_integer("batch", 4096, "Number of examples or tokens.")
_AUTOTUNE = flags.DEFINE_bool("autotune", False, "Time tiles instead.")
SPARSITIES = (0.8, 0.9, 0.95)
# Products in one program: one by one, dispatch would take longer than they do.
CHAIN = 10


class Layer(NamedTuple):
  """Functions to time: a layer's passes, with block-sparse and dense weights.

  Attributes:
    ours: Forward and backward pass.
    dense: The same with dense weights.
    forward: Our forward pass alone, CHAIN times, each of what the last made.
    flops: Of `forward`: what is not zero.
  """

  ours: Callable[[], Any]
  dense: Callable[[], Any]
  forward: Callable[[], Any]
  flops: float


def layer(side: int, sparsity: float, size: int, batch: int) -> Layer:
  """Makes a layer in bfloat16, and compares its results with float32 ones.

  Args:
    side: Rows and columns of a block.
    sparsity: The share of blocks that are zero.
    size: Input and output features.
    batch: Number of examples or tokens.
  """
  w, mask = _matrix(side, sparsity, size)
  tree = packed.pack(w, mask, formats=packed.blocks(side))
  values, structure = packed.split(tree)
  keys = jax.random.split(jax.random.key(2))
  x, g = (jax.random.normal(key, (batch, size), jnp.bfloat16) for key in keys)

  def product(values, structure, x):
    return sparsejax.matmul(x, packed.join(values, structure))

  ours = measure.forward_and_backward(product)
  dense = measure.forward_and_backward(lambda w, _, x: x @ w)

  @jax.jit
  def forward(values, structure, x):
    for _ in range(CHAIN):
      x = product(values, structure, x)
    return x

  got = ours(values, structure, x, g)
  with jax.default_matmul_precision("highest"):
    exact = [z.astype(jnp.float32) for z in (w, x, g)]
    want = dense(exact[0], None, *exact[1:])
  wanted = (want[0], structure.gather(want[1]), want[2])
  for a, b in zip(got, wanted, strict=True):
    a, b = (np.asarray(z, np.float32) for z in (a, b))
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * np.abs(b).max())
  return Layer(
    ours=lambda: ours(values, structure, x, g),
    dense=lambda: dense(w, None, x, g),
    forward=lambda: forward(values, structure, x),
    flops=2.0 * batch * int(mask.sum()) * CHAIN,
  )


def _matrix(
  side: int, sparsity: float, size: int
) -> tuple[jax.Array, np.ndarray]:
  """Draws a matrix of blocks that keeps the size of activations; its mask."""
  count = size // side
  noise = jax.random.uniform(jax.random.key(0), (count, count))
  active = select.top_k_mask(noise, round((1 - sparsity) * noise.size))
  mask = np.kron(np.asarray(active), np.ones((side, side), bool))
  w = jax.random.normal(jax.random.key(1), mask.shape)
  w *= ((1 - sparsity) * size) ** -0.5
  return jnp.where(mask, w, 0).astype(jnp.bfloat16), mask


class Timing(NamedTuple):
  """What the autotuner found.

  Attributes:
    tile: The tile.
    teraflops: TFLOP/s of what is not zero.
  """

  tile: tiles.Tile
  teraflops: float


def autotune(
  product: str, side: int, *, size: int, batch: int, rounds: int
) -> Iterator[Timing]:
  """Times the tiles of a product at 90 %; tiles that fail are told and left.

  Args:
    product: One of `tiles.PRODUCTS`.
    side: Of a block.
    size: Input and output features.
    batch: Number of examples or tokens.
    rounds: How often each is timed; the median counts.
  """
  from sparsejax.kernels import hopper  # It needs JAX 0.10.

  w, mask = _matrix(side, 0.9, size)
  s = packed.pack(w, mask, formats=packed.blocks(side)).structure
  values = s.gather(w).reshape(-1, side, side)
  keys = jax.random.split(jax.random.key(2), CHAIN)
  xs = [jax.random.normal(key, (batch, size), jnp.bfloat16) for key in keys]
  flops = 2.0 * batch * int(mask.sum()) * CHAIN
  want = None
  for tile in tiles.candidates(product, side):
    run = _tiled(hopper, product, side, tile)
    try:
      got = np.asarray(run(s, values, xs)[-1], np.float32)
      want = got if want is None else want
      np.testing.assert_allclose(got, want, rtol=0.02, atol=1e-3)
      call = functools.partial(run, s, values, xs)
      seconds = float(np.median(measure.interleave([call], rounds)))
      yield Timing(tile, flops / seconds / 1e12)
    except Exception as error:
      reason = str(error).splitlines()[0] if str(error) else ""
      print(f"{product} {side} {tile}: {type(error).__name__}: {reason}")


def _tiled(hopper: ModuleType, product: str, side: int, tile: tiles.Tile):
  """Compiles CHAIN products of one kind, with one tile."""

  @jax.jit
  def run(s, values, xs):
    columns = kernels.Columns(s.order, s.pointers, s.inputs)
    rows = kernels.Columns(s.back_order, s.back_pointers, s.back_outputs)
    if product == "weight":
      return [
        hopper.sample(
          *(x, g, s.inputs, rows, s.back_slots, side, jnp.float32),
          tiling=tile,
        )
        for x, g in zip(xs, [*xs[1:], xs[0]], strict=True)
      ]
    slots = () if product == "forward" else (s.back_slots,)
    table = columns if product == "forward" else rows
    return [hopper.multiply(x, table, values, *slots, tiling=tile) for x in xs]

  return run


def print_best_tiles(size: int, batch: int, rounds: int) -> None:
  """Prints what the autotuner finds, as lines of `tiles.TILES`."""
  card = devices.card()
  if card is None or not card.hopper:
    raise SystemExit("tiles are those of Hopper cards; JAX sees none here")
  for product in tiles.PRODUCTS:
    for side in kernels.HOPPER_SIDES:
      timings = list(
        autotune(product, side, size=size, batch=batch, rounds=rounds)
      )
      for tile, teraflops in timings:
        print(f"# {product} {side} {tile}: {teraflops:.0f} TFLOP/s")
      if timings:
        best = max(timings, key=lambda timing: timing.teraflops)
        print(f'("{card.name}", "{product}", {side}): {best.tile},')


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  if jax.default_backend() != "gpu":
    raise SystemExit("blocks have kernels on GPUs only; JAX sees none here")
  if _AUTOTUNE.value:
    print_best_tiles(_SIZE.value, _BATCH.value, measure.ROUNDS.value)
    return
  rows = []
  for side in kernels.SIDES:
    for sparsity in SPARSITIES:
      made = layer(side, sparsity, _SIZE.value, _BATCH.value)
      ratio = measure.gain(made.ours, made.dense, measure.ROUNDS.value)
      what = f"blocks of {side}, {100 * sparsity:g} %, bfloat16: dense / ours"
      rows.append(measure.row(what, ratio))
  measure.show("blocks on a GPU", "benchmarks.blocks", rows)


if __name__ == "__main__":
  app.run(main)
