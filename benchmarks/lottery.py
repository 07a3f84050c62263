"""What a round of iterative magnitude pruning costs, and what lies between two.

Run `python -m benchmarks.lottery`. Memory is what the compiled program asks
for beyond its arguments and results.
"""

import pathlib
import runpy
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import app, logging

from benchmarks import measure
from experiments.runs import lottery as runs
from sparsejax import lottery

# About as many weights and leaves as ResNet-50 has, of several shapes.
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
TIES = 8  # Weights of one magnitude, of which a threshold keeps all.


def by_sorting(params, masks):
  """The same round by a threshold in the sorted weights, laid end to end."""
  active = jnp.concatenate([m.ravel() for m in masks])
  flat = jnp.concatenate([jnp.abs(w).ravel() for w in params])
  kept = (4 * jnp.sum(active, dtype=jnp.int32) + 2) // 5
  ranked = jnp.sort(jnp.where(active, flat, -1))
  threshold = ranked[flat.size - kept]
  return [
    m & (jnp.abs(w) >= threshold) for w, m in zip(params, masks, strict=True)
  ]


def round_row(rounds):
  """A global round over 25 M weights, against concatenating and sorting."""
  keys = jax.random.split(jax.random.key(0), len(SHAPES))
  params = [jax.random.normal(k, s) for k, s in zip(keys, SHAPES, strict=True)]
  args = params, [jnp.abs(w) > 0.5 for w in params]
  ours, theirs = (
    jax.jit(f).lower(*args).compile()
    for f in (lambda p, m: lottery.prune_round(p, m, RATE), by_sorting)
  )
  pairs = zip(ours(*args), theirs(*args), strict=True)
  assert sum(int(jnp.sum(a != b)) for a, b in pairs) < TIES
  times = measure.interleave(
    [lambda: ours(*args), lambda: theirs(*args)], max(3, rounds // 3)
  )
  measured = measure.ratio(times, 1, 0)
  size = sum(w.size for w in params)
  copy = sum(w.nbytes for w in params)
  ours, theirs = (measure.temporary(p) / copy for p in (ours, theirs))
  return measure.row(
    f"global round, {size / 1e6:.1f} M weights in {len(SHAPES)} leaves: "
    "concatenate and sort / ours",
    measured,
    ">= 10, <= 2 copies",
    measured >= 10 and ours <= 2,
    f"{ours:.2f} copies of the scores (sort {theirs:.1f})",
  )


def pause_row():
  """Seconds from the last step of level 1 to the first of level 2.

  Saving, reading back, pruning, rewinding and an evaluation lie between; the
  net is that of configs/imp_rewinding.py.
  """
  config = runpy.run_path("configs/imp_rewinding.py")["get_config"]("smoke")
  config.methods = (config.methods[1],)
  config.stability.branches = ()
  begun, ended = {}, {}

  def track(name, total, start):
    begun[name] = time.perf_counter()

    def advance(step, note=""):
      if step == total:
        ended[name] = time.perf_counter()

    return advance

  with tempfile.TemporaryDirectory() as folder:
    list(runs.train_levels(config, 0, pathlib.Path(folder), track))
  first, second = (
    f"seed 0, {config.methods[0]}, level {level}" for level in (1, 2)
  )
  pause = begun[second] - ended[first]
  return measure.row(
    "seconds from the end of level 1 to the first step of level 2",
    pause,
    "<= 2",
    pause <= 2,
  )


def main(argv):
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
  rows = [round_row(measure.ROUNDS.value), pause_row()]
  measure.show("Iterative magnitude pruning", "benchmarks.lottery", rows)


if __name__ == "__main__":
  app.run(main)
