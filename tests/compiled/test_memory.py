"""The memory of a training step in each mode, as docs/gpus_and_tpus.md has it.

`python -m pytest -m compiled -n 0 -s -k memory` prints the page's table.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax
from benchmarks import measure
from sparsejax import modes, packed, patterns
from tests.compiled.harness import compile_for_h100

LAYERS, WIDTH, BATCH = 4, 2048, 256
WEIGHTS = LAYERS * WIDTH**2 * 4 / measure.MIB  # 64 MiB
OPTIMIZERS = {
  "SGD with momentum": optax.sgd(0.1, momentum=0.9),
  "Adam": optax.adam(1e-3),
}
# At most, in the memory of the dense weights: with SGD, of an ordinary step and
# of one that moves masks; with Adam, the same.
TABLE = {
  "dense": (2.5, 3.6),
  "masked": (2.8, 4.5, 3.8, 5.5),
  "packed": (0.9, 1.7, 1.0, 1.8),
  "kernels, blocks of 64": (0.5, 1.0, 0.6, 1.1),
}


def params():
  return {
    f"layer{i}": jax.random.normal(jax.random.key(i), (WIDTH, WIDTH))
    for i in range(LAYERS)
  }


def loss(params, x):
  for w in params.values():
    x = jax.nn.relu(sparsejax.matmul(x, w))
  return jnp.mean(x**2)


def transformation(mode, inner):
  pattern = patterns.unstructured()
  if mode.startswith("kernels"):
    pattern = patterns.blocks((64, 64))
  tx = sparsejax.rigl(
    inner,
    0.9,
    key=jax.random.key(0),
    t_end=75_000,
    distribution=sparsejax.distributions.uniform,
    pattern=pattern,
  )
  if mode == "packed":
    return modes.packed(tx)
  if mode.startswith("kernels"):
    return modes.kernels(tx, formats=packed.blocks(64))
  return sparsejax.dense(inner) if mode == "dense" else tx


def memory(mode, inner):
  """Arguments, results and temporaries, in MiB: of both kinds of steps."""
  tx = transformation(mode, inner)
  value_and_grad = sparsejax.value_and_grad(loss, tx)
  state = sparsejax.init(tx, params())
  x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)

  def step(params, state, x, now):
    _, grads = value_and_grad(params, state, x, update_masks=now)
    updates, state = tx.update(grads, state, params, update_masks=now)
    return optax.apply_updates(params, updates), state

  for now in (False,) if mode == "dense" else (False, True):
    compiled = compile_for_h100(
      functools.partial(step, now=now), *state, x, donate_argnums=(0, 1)
    )
    yield measure.peak_bytes(compiled) / measure.MIB


@pytest.mark.parametrize("mode", TABLE)
def test_memory(mode):
  found = [
    one / WEIGHTS
    for inner in OPTIMIZERS.values()
    for one in memory(mode, inner)
  ]
  print(f"| {mode} | " + " | ".join(f"{x:.1f}" for x in found) + " |")
  for ratio, most in zip(found, TABLE[mode], strict=True):
    assert most - 0.3 < ratio < most + 0.05
