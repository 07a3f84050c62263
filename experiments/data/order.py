"""The order in which training visits examples, a function of key and step.

Nothing is stored: a run that resumes at a step asks for it and gets the bits
that a run which never stopped would have had.
"""

import functools

import jax
import jax.numpy as jnp


def batch_indices(
  key: jax.Array,
  *,
  n: int,
  batch_size: int,
  start: int | jax.Array,
  steps: int,
) -> jax.Array:
  """Returns the examples of `steps` batches, from step `start` on.

  The order is an endless concatenation of permutations of the `n` examples,
  one an epoch, that of epoch e keyed by `fold_in(key, e)`. Step s takes
  positions `s * batch_size` to `(s + 1) * batch_size`, so batches straddle
  epochs and every example is visited once before any is visited again. The
  cost does not depend on `start`.

  Args:
    key: A PRNG key.
    n: Number of examples; static.
    batch_size: Examples of a step; may exceed `n`; static.
    start: The first step, from 0; an int, or a traced int32.
    steps: Number of steps; static.

  Returns:
    int32[steps, batch_size], each in [0, n).

  Raises:
    ValueError: A size is not positive, or too large for int32 arithmetic.

  >>> key = jax.random.key(0)
  >>> batch_indices(key, n=4, batch_size=2, start=0, steps=3).shape
  (3, 2)
  """
  for name, value in (("n", n), ("batch_size", batch_size), ("steps", steps)):
    if value < 1:
      raise ValueError(
        f"batch_indices: {name} must be at least 1, got {value}."
      )
  if isinstance(start, int) and start < 0:
    raise ValueError(f"batch_indices: start must be >= 0, got {start}.")
  if max(n * batch_size, steps * batch_size + 2 * n) >= 2**31:
    raise ValueError(
      f"batch_indices: n={n}, batch_size={batch_size}, steps={steps} do not "
      "fit int32 positions; ask for fewer steps at a time, or use "
      "experiments.data.stream."
    )
  # The position start * batch_size overflows int32 in long runs. Every n steps
  # are batch_size whole epochs, so only (start % n) * batch_size is needed.
  rounds, rest = divmod(start, n)
  epochs, offset = divmod(rest * batch_size, n)
  epoch = rounds * batch_size + epochs
  return _gather(key, epoch, offset, n=n, batch_size=batch_size, steps=steps)


@functools.partial(jax.jit, static_argnames=("n", "batch_size", "steps"))
def _gather(
  key: jax.Array,
  epoch: jax.Array,
  offset: jax.Array,
  *,
  n: int,
  batch_size: int,
  steps: int,
) -> jax.Array:
  """Returns the batches that begin at `offset` within `epoch`."""
  size = steps * batch_size
  last = (offset + size - 1) // n  # the last epoch touched, from 0

  def permutation(e: jax.Array) -> jax.Array:
    # One sort of 32 random bits (equal ones keep their order) takes half the
    # time of jax.random.permutation, which sorts twice.
    bits = jax.random.bits(jax.random.fold_in(key, epoch + e), (n,), jnp.uint32)
    return jnp.argsort(bits).astype(jnp.int32)

  def touched(e: jax.Array) -> jax.Array:
    identity = jnp.arange(n, dtype=jnp.int32)
    return jax.lax.cond(e <= last, permutation, lambda _: identity, e)

  most = (n - 1 + size - 1) // n + 1  # epochs touched at any offset
  orders = jax.lax.map(touched, jnp.arange(most, dtype=jnp.int32))
  positions = offset + jnp.arange(size, dtype=jnp.int32)
  return orders.reshape(-1)[positions].reshape(steps, batch_size)
