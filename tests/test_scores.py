"""Scores against numpy, over several periods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax import scores as lib

STEPS, PERIOD = 13, 4
GRADS = np.random.default_rng(0).normal(size=(STEPS, 3, 2)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)


def run(score, grads=GRADS, w=W):
  """The scores of every step."""
  state, found = score.init(jnp.asarray(w)), []
  update = jax.jit(score.update)
  for g in grads:
    rated, state = update(jnp.asarray(g), state, jnp.asarray(w))
    found.append(np.asarray(rated))
  return np.stack(found)


def test_stateless_scores():
  np.testing.assert_array_equal(run(lib.magnitude()), [np.abs(W)] * STEPS)
  np.testing.assert_array_equal(run(lib.gradient()), np.abs(GRADS))
  np.testing.assert_array_equal(run(lib.sensitivity()), np.abs(GRADS * W))
  for score in (lib.magnitude(), lib.gradient(), lib.sensitivity()):
    assert not jax.tree.leaves(score.init(jnp.asarray(W)))


def test_sensitivity_does_not_underflow_in_half_precision():
  small = np.full((2,), 1e-5, np.float16)
  rated = run(lib.sensitivity(), [small], small)
  assert rated.dtype == np.float32
  np.testing.assert_allclose(rated[0], 1e-10, 2e-2)


def _dtypes(tree):
  return [x.dtype for x in jax.tree.leaves(tree)]


def average(xs, decay):
  mean, found = np.zeros_like(xs[0]), []
  for x in xs:
    mean = decay * mean + (1 - decay) * x
    found.append(mean)
  return np.stack(found)


def test_momentum_is_the_size_of_the_average_not_the_average_size():
  wanted = np.abs(average(GRADS, 0.8))
  np.testing.assert_allclose(run(lib.momentum(0.8)), wanted, 1e-5, 1e-7)


def test_smoothed_is_the_average_of_the_score():
  got = run(lib.smoothed(lib.sensitivity(), 0.8))
  wanted = average(np.abs(GRADS * W), 0.8)
  np.testing.assert_allclose(got, wanted, 1e-5, 1e-7)


@pytest.mark.parametrize(
  "score",
  [
    lib.momentum(),
    lib.smoothed(lib.gradient(), 0.5),
    lib.accumulated(lib.gradient(), 2, period=4),
  ],
)
def test_averages_are_float32_from_the_first_state_on(score):
  """So the state keeps its types, as lax.scan requires."""
  w = jnp.zeros((2,), jnp.bfloat16)
  first = score.init(w)
  rated, second = score.update(w, first, w)
  assert rated.dtype == jnp.float32
  assert _dtypes(first) == _dtypes(second)


@pytest.mark.parametrize("steps", [2, 3, PERIOD])
def test_accumulated_averages_the_last_gradients_before_an_update(steps):
  got = run(lib.accumulated(lib.gradient(), steps, period=PERIOD))
  for t in range(PERIOD, STEPS, PERIOD):
    wanted = np.abs(GRADS[t - steps + 1 : t + 1].mean(0))
    np.testing.assert_allclose(got[t], wanted, 1e-5, 1e-7)


@pytest.mark.parametrize("steps", [2, PERIOD])
def test_a_bad_gradient_spoils_its_own_window_only(steps):
  grads = GRADS.copy()
  grads[2 * PERIOD - 1] = np.nan  # in the window of the update at 8
  grads[3 * PERIOD - steps] = np.inf  # just before the window of that at 12
  got = run(lib.accumulated(lib.gradient(), steps, period=PERIOD), grads)
  assert np.isfinite(got[PERIOD]).all()
  assert not np.isfinite(got[2 * PERIOD]).any()
  wanted = np.abs(GRADS[3 * PERIOD - steps + 1 : 3 * PERIOD + 1].mean(0))
  np.testing.assert_allclose(got[3 * PERIOD], wanted, 1e-5, 1e-7)


def test_one_gradient_or_no_smoothing_is_the_score_itself():
  score = lib.gradient()
  assert lib.accumulated(score, 1, period=5) is score
  assert lib.smoothed(score, 0) is score


def test_what_is_out_of_range():
  with pytest.raises(
    ValueError, match=r"6 gradients to average, wanted 1 to 5"
  ):
    lib.accumulated(lib.gradient(), 6, period=5)
  with pytest.raises(ValueError, match="0 gradients"):
    lib.accumulated(lib.gradient(), 0, period=5)
  with pytest.raises(ValueError, match=r"decay=1, wanted one in \[0, 1\)"):
    lib.smoothed(lib.gradient(), 1)


def test_scores_chain_with_optax():
  score = optax.chain(optax.scale(-2.0), lib.gradient())
  np.testing.assert_array_equal(run(score), 2 * np.abs(GRADS))


def test_random_is_keyed_by_path_alone():
  x = jnp.zeros((4, 5))
  key = jax.random.key(3)
  score = lib.random()

  def noise(tree, key):
    return score.update(tree, score.init(tree), None, key=key)[0]

  many = noise({"z": x, "a": {"w": x}, "b": x}, key)
  one = noise({"a": {"w": x}}, key)
  np.testing.assert_array_equal(many["a"]["w"], one["a"]["w"])
  assert (many["z"] != many["b"]).any()
  jitted = jax.jit(noise)({"a": {"w": x.astype(jnp.bfloat16)}}, key)
  np.testing.assert_array_equal(jitted["a"]["w"], one["a"]["w"])
  assert one["a"]["w"].dtype == jnp.float32
  other = noise({"a": {"w": x}}, jax.random.key(4))
  assert (other["a"]["w"] != one["a"]["w"]).any()


@pytest.mark.parametrize(
  "score", [lib.momentum(0.5), lib.smoothed(lib.gradient(), 0.5)]
)
def test_one_bad_batch_does_not_spoil_the_average(score):
  good, bad = jnp.array([1.0, -2.0]), jnp.array([jnp.nan, -2.0])
  state = score.init(good)
  _, state = score.update(good, state, good)
  rated, state = score.update(bad, state, good)
  assert not jnp.isfinite(rated[0])  # by this no mask moves
  rated, _ = score.update(good, state, good)
  # 0.5 of one good batch, and half of that again; the other had three.
  np.testing.assert_allclose(rated, [0.75, 1.75])
