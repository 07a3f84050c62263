"""Prints how much longer counts take one by one than by one reduction."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import xla


def main() -> None:
  """Times both in turns: what else the machine does then slows both."""
  x = jnp.asarray(np.random.default_rng(0).random(2**20, np.float32))
  limits = [i / 8 for i in range(1, 8)]

  def each(*flags):
    return [jnp.sum(f, dtype=jnp.int32) for f in flags]

  def compiled(count):
    return jax.jit(lambda x: count(*(x > limit for limit in limits)))

  def seconds(run):
    begin = time.perf_counter()
    jax.block_until_ready(run(x))
    return time.perf_counter() - begin

  one = functools.partial(xla.count, several=False)
  runs = compiled(each), compiled(one)
  wanted, got = ([int(c) for c in run(x)] for run in runs)
  assert got == wanted
  times = [[seconds(run) for run in runs] for _ in range(30)]
  print(np.median([a / b for a, b in times]))


if __name__ == "__main__":
  main()
