"""When masks move: the papers' steps and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import schedules


def test_rigl_updates_at_multiples_of_delta_t_before_t_end():
  """Algorithm 1 of RigL: t mod dT == 0 and t < T_end; not at step 0."""
  when = schedules.every(100, start=100, stop=750)
  steps = [t for t in range(1000) if when(t)]
  assert steps == [100, 200, 300, 400, 500, 600, 700]
  assert not schedules.every(100, start=100, stop=300)(300)


def moved(tx, steps):
  """The steps at which the masks of a transformation changed."""
  params, state = sparsejax.init(tx, jnp.ones((16, 16)))
  update = jax.jit(tx.update)
  found = []
  for t in range(steps):
    old = sparsejax.get_masks(state)
    grads = jax.random.normal(jax.random.key(t), params.shape)
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    if (sparsejax.get_masks(state) != old).any():
      found.append(t)
  return found


def test_algorithms_move_their_masks_at_the_papers_steps():
  sgd, key = optax.sgd(0.1), jax.random.key(0)
  rigl = sparsejax.rigl(sgd, 0.5, key=key, delta_t=3, t_end=12)
  assert moved(rigl, 20) == [3, 6, 9]
  gmp = sparsejax.gmp(sgd, 0.5, key=key, begin=2, end=11, delta_t=3)
  # At step 2 the sparsity is still the initial one, 0.
  assert moved(gmp, 20) == [5, 8, 11]


def test_traced_steps_agree_with_python_ones():
  when = schedules.every(7, start=3, stop=40)
  steps = np.arange(60)
  np.testing.assert_array_equal(
    jax.jit(when)(steps), [when(int(t)) for t in steps]
  )
  assert isinstance(when(3), bool)


def test_without_end_or_at_no_step():
  assert schedules.every(10, start=0)(10**9)
  assert schedules.every(5, start=0)(0)
  assert schedules.never(0) is False
  assert not any(map(schedules.every(1, start=4, stop=4), range(9)))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"period": 0, "start": 0}, "period=0 and start=0, wanted a period of at"),
    ({"period": -5, "start": 0}, "period=-5"),
    ({"period": 5, "start": -1}, "start=-1, wanted"),
    ({"period": 5, "start": 9, "stop": 8}, "stop=8 before start=9"),
  ],
)
def test_every_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    schedules.every(**arguments)


def test_cubic_is_the_formula_of_zhu_and_gupta():
  """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, by hand."""
  progress = schedules.cubic(100, 300)
  # (1 - 0)^3, (3/4)^3, (1/2)^3, (1/4)^3, 0
  steps = [0, 100, 150, 200, 250, 300, 900]
  wanted = [0, 0, 37 / 64, 7 / 8, 63 / 64, 1, 1]
  np.testing.assert_array_equal([progress(t) for t in steps], wanted)
  s_i, s_f, t = 0.2, 0.9, 170
  by_hand = s_f + (s_i - s_f) * (1 - (t - 100) / 200) ** 3
  np.testing.assert_allclose(s_i + (s_f - s_i) * progress(t), by_hand, 1e-6)


def test_cubic_refuses_an_end_before_its_beginning():
  with pytest.raises(ValueError, match="end=5, wanted a step after begin=5"):
    schedules.cubic(5, 5)
