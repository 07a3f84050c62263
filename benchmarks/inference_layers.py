"""What masked kernels give for the products of a language model on a CPU.

    python -m benchmarks.inference_layers --csv=results/inference_layers.csv

All products of SmolLM2-135M's 30 layers, one after another in one program: no
attention, no norms, no head. Weights are random, and stored as packed models
store them. What is left of the gains in a whole model says
`benchmarks.inference`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks import measure
from sparsejax import linear, packed, select

LAYERS, DIM, KEYS, HIDDEN = 30, 576, 192, 1536
SHAPES = (
  *((DIM, DIM), (DIM, KEYS), (DIM, KEYS), (DIM, DIM)),
  *((DIM, HIDDEN), (DIM, HIDDEN), (HIDDEN, DIM)),
)
BATCHES = (1, 16, 256)
W8A8 = "W8A8"  # INT8 with activations that are rounded to INT8, too
DENSE = (1.0, jnp.float32)
# Densities and dtypes, and the gains that are wanted of them.
KINDS = {
  (0.9, jnp.float32): (1, 1, 1),
  (0.5, jnp.float32): (1.4, 1, 1),
  (0.25, jnp.float32): (1.7, 1, 2.2),
  (0.1, jnp.float32): (2.8, 1, 2.2),
  (0.25, jnp.bfloat16): (1.7, 1, 1),
  (0.25, jnp.int8): (4, 1, 1),
  (0.25, W8A8): (4, 1, 1),
}


def layer(density: float, dtype: Any) -> tuple[Any, ...]:
  """Draws a layer's matrices: arrays, or packed ones."""
  found, integers = [], dtype in (jnp.int8, W8A8)
  for i, shape in enumerate(SHAPES):
    w = jax.random.normal(jax.random.key(i), shape) / shape[0] ** 0.5
    if density < 1:
      mask = select.top_k_mask(jnp.abs(w), round(density * w.size))
      small = w.astype(jnp.float32 if integers else dtype)
      w = packed.pack(small, mask, formats=packed.row_bits())
      w = packed.quantize(w, dynamic=dtype == W8A8) if integers else w
    found.append(w)
  return tuple(found)


@jax.jit
def network(layers: Sequence[tuple[Any, ...]], x: jax.Array) -> jax.Array:
  """Runs x [batch, DIM] through all products; ends as small as it began."""
  for query, key, value, output, gate, up, down in layers:
    small = linear.matmul(x, key) + linear.matmul(x, value)
    mixed = linear.matmul(x, query) + jnp.tile(small, DIM // KEYS)
    x += linear.matmul(mixed, output)
    x += linear.matmul(linear.matmul(x, gate) * linear.matmul(x, up), down)
    x /= jnp.max(jnp.abs(x))
  return x


def main(argv: Sequence[str]) -> None:
  """Times the networks in turns, and prints the table."""
  del argv
  kinds = [DENSE, *KINDS]
  # Each layer has arrays of its own, or all would come from a cache.
  networks = [
    [
      jax.tree.map(lambda a: jnp.asarray(np.array(a)), one)
      for _ in range(LAYERS)
    ]
    for one in (layer(*kind) for kind in kinds)
  ]
  gains = []
  for batch in BATCHES:
    x = jax.random.normal(jax.random.key(0), (batch, DIM))
    calls = [lambda net=net, x=x: network(net, x) for net in networks]
    times = measure.interleave(calls, measure.ROUNDS.value)
    gains.append([measure.ratio(times, 0, i) for i in range(len(kinds))])
  rows = []
  for i, (density, dtype) in enumerate(KINDS, start=1):
    for j, batch in enumerate(BATCHES):
      name = dtype if dtype == W8A8 else jnp.dtype(dtype).name
      what = f"{100 - 100 * density:g} %, {name}, {batch} tokens: dense / ours"
      least = KINDS[density, dtype][j]
      rows.append(measure.row(what, gains[j][i], least=least))
  measure.show(
    "products of 30 layers",
    "benchmarks.inference_layers",
    [r[:4] for r in rows],
    columns=measure.COLUMNS[:4],
  )


if __name__ == "__main__":
  app.run(main)
