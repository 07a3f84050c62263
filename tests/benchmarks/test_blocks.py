"""The autotuner of tiles, with products that run on a CPU."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import blocks, measure
from sparsejax.kernels import devices, tiles
from sparsejax.kernels.tiles import Tile

pytestmark = pytest.mark.skipif(
  jax.__version_info__ < (0, 10), reason="Hopper's kernels need JAX 0.10"
)


@pytest.fixture
def cheap(monkeypatch):
  """Products that are the faster the more stages; of two, they fail."""

  def tiled(hopper, product, side, tile):
    def run(structure, values, xs):
      del structure, values
      if tile.stages == 2:
        raise ValueError("too large")
      return [*xs[:-1], jnp.full(4, 1.0 + (tile == Tile(256, 3)))]

    return lambda *args: Timed(run(*args), 1 / tile.stages)

  monkeypatch.setattr(blocks, "_tiled", tiled)
  monkeypatch.setattr(
    measure, "interleave", lambda calls, rounds: [[calls[0]().seconds]]
  )


class Timed(list):
  def __init__(self, results, seconds):
    super().__init__(results)
    self.seconds = seconds


def test_tiles_that_fail_or_are_wrong_are_left_out(cheap, capsys):
  found = list(blocks.autotune("forward", 32, size=128, batch=8, rounds=1))
  wanted = [t for t in tiles.candidates("forward", 32) if t.stages > 2]
  wanted.remove(Tile(256, 3))
  assert [timing.tile for timing in found] == wanted
  assert found[1].teraflops / found[0].teraflops == pytest.approx(4 / 3)
  told = capsys.readouterr().out
  assert "Tile(size=128, stages=2): ValueError: too large" in told
  assert "Tile(size=256, stages=3): AssertionError" in told


def test_what_is_printed_goes_into_the_table(cheap, capsys, monkeypatch):
  card = devices.Card("NVIDIA H200", (9, 0), 132)
  monkeypatch.setattr(devices, "card", lambda: card)
  monkeypatch.setattr(blocks.kernels, "HOPPER_SIDES", (32,))
  blocks.print_best_tiles(128, 8, 1)
  lines = capsys.readouterr().out.splitlines()
  entries = [line for line in lines if line.startswith("(")]
  table = eval("{" + "".join(entries) + "}")
  assert len(table) == 3
  assert table["NVIDIA H200", "forward", 32] == Tile(128, 8)


def test_without_a_card_of_hopper_nothing_is_timed(monkeypatch):
  monkeypatch.setattr(devices, "card", lambda: None)
  with pytest.raises(SystemExit, match="Hopper"):
    blocks.print_best_tiles(64, 8, 1)


@pytest.mark.slow
def test_a_layer_is_checked_against_float32():
  layer = blocks.layer(32, 0.5, 64, 16)
  assert layer.flops == 2 * 16 * 2 * 32**2 * blocks.CHAIN
  for function in (layer.ours, layer.dense, layer.forward):
    jax.block_until_ready(function())
