"""DST-EE against a loop in NumPy, float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax.algorithms import dynamic

RATE, DELTA_T, T_END, FRACTION = 0.05, 3, 40, 0.4
STEPS = 45
SHAPE = (7, 9)


def reference(w, mask, grads, c, epsilon):
  """An update every DELTA_T steps before T_END, SGD on all others."""
  counts, history = np.zeros(SHAPE, int), []
  for t, noise in enumerate(grads):
    g = 0.5 * w + noise
    if t and t % DELTA_T == 0 and t < T_END:
      counts += mask
      n = int(FRACTION / 2 * (1 + np.cos(np.pi * t / T_END)) * mask.sum())
      score = np.abs(g) + c * np.log(t) / (counts + epsilon)
      active = np.flatnonzero(mask)
      lowest = active[np.argsort(np.abs(w).flat[active], kind="stable")[:n]]
      kept = mask.copy()
      kept.flat[lowest] = False
      free = np.flatnonzero(~kept)
      best = free[np.argsort(-score.flat[free], kind="stable")[:n]]
      kept.flat[best] = True
      w = w * (kept & mask)
      mask = kept
    else:
      w = w - RATE * g * mask
    history.append((w, mask))
  return history


def run(algorithm=sparsejax.dst_ee, **options):
  tx = algorithm(
    optax.sgd(RATE),
    0.7,
    key=jax.random.key(3),
    t_end=T_END,
    delta_t=DELTA_T,
    fraction=FRACTION,
    **options,
  )
  generator = np.random.default_rng(0)
  params = {"w": jnp.asarray(generator.normal(size=SHAPE), jnp.float32)}
  grads = generator.normal(size=(STEPS, *SHAPE))
  params, state = sparsejax.init(tx, params)
  first = jax.device_get((params["w"], sparsejax.get_masks(state)["w"]))

  @jax.jit
  def step(params, state, noise):
    g = {"w": 0.5 * params["w"] + noise}
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state

  history = []
  for noise in grads:
    params, state = step(params, state, jnp.asarray(noise, jnp.float32))
    masks = sparsejax.get_masks(state)
    history.append(jax.device_get((params["w"], masks["w"])))
  return first, grads, history


@pytest.mark.parametrize(("c", "epsilon"), [(0.3, 0.5), (1.0, 2.0), (3.0, 1.0)])
def test_it_is_its_reference(c, epsilon):
  (first, drawn), grads, history = run(c=c, epsilon=epsilon)
  wanted = reference(first.astype(np.float64), drawn, grads, c, epsilon)
  for (w, mask), (ours, our_mask) in zip(wanted, history, strict=True):
    np.testing.assert_array_equal(our_mask, mask)
    np.testing.assert_allclose(ours, w, rtol=1e-5, atol=1e-6)
  masks = [mask for _, mask in history]
  moved = [np.any(old != new) for old, new in itertools.pairwise(masks)]
  assert sum(moved) == 10  # the others move less than one weight


def test_the_bonus_matters_and_without_it_it_is_rigl():
  *_, with_bonus = run(c=1.0)
  *_, without = run(c=0.0)
  *_, rigl = run(algorithm=sparsejax.rigl)
  for (w, mask), (other, other_mask) in zip(without, rigl, strict=True):
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_array_equal(w, other)
  ever = [
    np.any([mask for _, mask in history], axis=0).sum()
    for history in (with_bonus, without)
  ]
  assert ever[0] > ever[1]  # it explores more


@pytest.mark.parametrize("options", [{"c": -0.1}, {"epsilon": 0.0}])
def test_what_is_out_of_range_is_told(options):
  with pytest.raises(ValueError, match="wanted c >= 0 and epsilon > 0"):
    run(**options)


def test_the_bonus_is_that_of_the_formula():
  score = dynamic._gradient_and_exploration(2.0, 0.5, period=3)
  grads = {"w": jnp.array([1.0, -3.0, 0.0])}
  masks = {"w": jnp.array([True, False, False])}
  state = score.init(grads)
  for t in range(1, 9):
    rated, state = score.update(grads, state, masks=masks, step=jnp.int32(t))
    n = np.array([t // 3, 0, 0])
    expected = np.abs(grads["w"]) + 2 * np.log(t) / (n + 0.5)
    np.testing.assert_allclose(rated["w"], expected, rtol=1e-6)
