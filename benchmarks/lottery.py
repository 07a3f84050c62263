"""The cost of a round of iterative magnitude pruning, and pauses between them.

Run `python -m benchmarks.lottery`. Memory is what a compiled program takes
beyond its arguments and results.
"""

import pathlib
import runpy
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import app, logging

from benchmarks import measure
from experiments.runs import lottery as runs
from sparsejax import lottery

# About as many weights and leaves as a ResNet-50, of several shapes.
SHAPES = (
  *((3, 3, 256, 256),) * 20,
  *((512, 1024),) * 15,
  *((1000, 500),) * 10,
  (7, 7, 3, 64),
  (3, 3, 10, 33),
  (2000, 500),
  (784, 300),
  (300, 100),
)
RATE = 0.2
TIES = 8  # equal magnitudes at the threshold, which sorting keeps all


def prune_by_sorting(
  params: list[jax.Array], masks: list[jax.Array]
) -> list[jax.Array]:
  """Prunes a round by a threshold from the concatenated, sorted weights."""
  active = jnp.concatenate([m.ravel() for m in masks])
  flat = jnp.concatenate([jnp.abs(w).ravel() for w in params])
  kept = (4 * jnp.sum(active, dtype=jnp.int32) + 2) // 5
  ranked = jnp.sort(jnp.where(active, flat, -1))
  threshold = ranked[flat.size - kept]
  return [
    m & (jnp.abs(w) >= threshold) for w, m in zip(params, masks, strict=True)
  ]


def round_row(rounds: int) -> measure.Row:
  """Compares a global round over 25 M weights with sorting all of them."""
  keys = jax.random.split(jax.random.key(0), len(SHAPES))
  params = [jax.random.normal(k, s) for k, s in zip(keys, SHAPES, strict=True)]
  args = params, [jnp.abs(w) > 0.5 for w in params]
  ours, theirs = (
    jax.jit(f).lower(*args).compile()
    for f in (lambda p, m: lottery.prune_round(p, m, RATE), prune_by_sorting)
  )
  pairs = zip(ours(*args), theirs(*args), strict=True)
  assert sum(int(jnp.sum(a != b)) for a, b in pairs) < TIES
  measured = measure.gain(
    lambda: ours(*args), lambda: theirs(*args), max(3, rounds // 3)
  )
  size = sum(w.size for w in params)
  copy = sum(w.nbytes for w in params)
  ours, theirs = (measure.temporary_bytes(p) / copy for p in (ours, theirs))
  return measure.row(
    f"global round, {size / 1e6:.1f} M weights in {len(SHAPES)} leaves: "
    "concatenate and sort / ours",
    measured,
    goal=(">= 10, <= 2 copies", measured >= 10 and ours <= 2),
    memory=f"{ours:.2f} copies of the scores (sort {theirs:.1f})",
  )


def pause_row() -> measure.Row:
  """Measures the seconds between the last step of level 1 and level 2's first.

  In between lie saving, reading back, pruning, rewinding and an evaluation. The
  net is that of configs/imp_rewinding.py.
  """
  config = runpy.run_path("configs/imp_rewinding.py")["get_config"]("smoke")
  config.methods = (config.methods[1],)
  config.stability.branches = ()
  begun, ended = {}, {}

  def track(name: str, total: int, start: int) -> Callable[..., None]:
    begun[name] = time.perf_counter()

    def advance(step: int, note: str = "") -> None:
      if step == total:
        ended[name] = time.perf_counter()

    return advance

  with tempfile.TemporaryDirectory() as folder:
    list(runs.train_levels(config, 0, pathlib.Path(folder), track))
  first, second = (
    f"seed 0, {config.methods[0]}, level {level}" for level in (1, 2)
  )
  return measure.row(
    "seconds from the end of level 1 to the first step of level 2",
    begun[second] - ended[first],
    most=2,
  )


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax logs a lot
  rows = [round_row(measure.ROUNDS.value), pause_row()]
  measure.show("Iterative magnitude pruning", "benchmarks.lottery", rows)


if __name__ == "__main__":
  app.run(main)
