"""The order of examples: a permutation an epoch, and a function of the step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.order import batch_indices

KEY = jax.random.key(3, impl="rbg")


def stretches(n, batch_size, cuts):
  return np.concatenate(
    [
      batch_indices(
        KEY, n=n, batch_size=batch_size, start=a, steps=b - a
      )
      for a, b in itertools.pairwise(cuts)
    ]
  )  # fmt: skip


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (3, 10)])
def test_every_split_into_stretches_gives_the_same(n, batch_size):
  whole = stretches(n, batch_size, [0, 12])
  assert whole.shape == (12, batch_size)
  assert whole.dtype == np.int32
  for cuts in ([0, 5, 6, 12], range(13)):
    np.testing.assert_array_equal(stretches(n, batch_size, list(cuts)), whole)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (8, 4), (3, 10)])
def test_every_epoch_visits_each_example_once(n, batch_size):
  flat = stretches(n, batch_size, [0, 12]).reshape(-1)
  epochs = flat[: len(flat) // n * n].reshape(-1, n)
  np.testing.assert_array_equal(
    np.sort(epochs), np.tile(np.arange(n), (len(epochs), 1))
  )
  if n >= 8:
    assert len({tuple(e) for e in epochs}) == len(epochs)  # Shuffled anew.


def test_a_late_start_is_where_it_should_be():
  # Step 97,000 of 97,656 at batch 128 is in the 249th epoch of CIFAR.
  late = batch_indices(KEY, n=50_000, batch_size=128, start=97_000, steps=2)
  first = 97_000 * 128
  e, at = divmod(first, 50_000)
  bits = jax.random.bits(jax.random.fold_in(KEY, e), (50_000,), jnp.uint32)
  order = np.argsort(np.asarray(bits), kind="stable")
  np.testing.assert_array_equal(late.reshape(-1), order[at : at + 256])


def test_positions_beyond_int32_are_exact():
  n, batch_size, start = 1000, 999, 10_000_019
  assert start * batch_size > 2**33
  got = batch_indices(KEY, n=n, batch_size=batch_size, start=start, steps=1)
  traced = jax.jit(
    lambda s: batch_indices(KEY, n=n, batch_size=batch_size, start=s, steps=1)
  )(start)
  e, at = divmod(start * batch_size, n)
  orders = [
    np.argsort(
      jax.random.bits(jax.random.fold_in(KEY, i), (n,), jnp.uint32),
      stable=True,
    )
    for i in (e, e + 1)
  ]
  wanted = np.concatenate(orders)[at : at + batch_size]
  np.testing.assert_array_equal(got[0], wanted)
  np.testing.assert_array_equal(traced[0], wanted)


def test_seeds_differ_also_under_vmap():
  keys = jax.random.split(KEY, 2)
  both = jax.vmap(
    lambda k: batch_indices(k, n=20, batch_size=20, start=0, steps=1)
  )(keys)
  assert not np.array_equal(both[0], both[1])
  assert (np.sort(both[:, 0]) == np.arange(20)).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"n": 0}, "n must be at least 1, got 0"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"start": -1}, "start must be >= 0, got -1"),
    ({"n": 2**30}, "do not fit int32"),
    ({"steps": 2**30}, "do not fit int32"),
  ],
)
def test_what_is_wrong_is_said(change, message):
  good = {"n": 10, "batch_size": 2, "start": 0, "steps": 1}
  with pytest.raises(ValueError, match=message):
    batch_indices(KEY, **{**good, **change})
