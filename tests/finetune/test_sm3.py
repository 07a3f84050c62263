"""SpIEL with SM3 against a float64 loop over single weights, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import finetune
from tests.finetune.regression import (
  COLUMNS,
  KEY,
  ROWS,
  SIZE,
  everything,
  gradient,
  places_of,
  sparse_base,
  trained,
  update_of,
)

K, STEPS, FIRST, EVERY = 12, 50, 3, 7
# A share of no whole number of slots, so that rounding cannot matter.
SHARE = 0.47
RATE = optax.linear_schedule(0.3, 0.1, STEPS)
CASES = {
  "everywhere": {"on_zeros": True, "eps": 1e-8, "weight_decay": 0.0},
  "on_non_zeros": {"on_zeros": False, "eps": 0.5, "weight_decay": 0.3},
}


@functools.lru_cache
def spiel_sm3(rate=RATE, **options):
  common = {"key": KEY, "k": K, "t_end": STEPS, "prunable": everything}
  schedule = {"first": FIRST, "every": EVERY, "fraction": SHARE}
  return finetune.spiel_sm3(rate, **(common | schedule | options))


@functools.lru_cache
def result(case):
  return trained(spiel_sm3(**CASES[case]), sparse_base(), STEPS)


def always():
  """Moves at every step."""
  return spiel_sm3(first=1, every=1)


def loop(base, places, *, on_zeros, eps, weight_decay):
  """The same, one weight at a time."""
  w = np.asarray(base, np.float64)
  start = w.copy()
  deltas = dict.fromkeys(places, 0.0)
  rows, columns = np.zeros(ROWS), np.zeros(COLUMNS)
  for t in range(STEPS):
    g = gradient(w, t)
    new_rows, new_columns = rows.copy(), columns.copy()
    for (i, j), delta in deltas.items():
      square = min(rows[i], columns[j]) + g[i, j] ** 2
      new_rows[i] = max(new_rows[i], square)
      new_columns[j] = max(new_columns[j], square)
      change = g[i, j] / np.sqrt(square + eps) + weight_decay * delta
      deltas[i, j] = delta - (0.3 - 0.2 * t / STEPS) * change
      w[i, j] = start[i, j] + deltas[i, j]
    rows, columns = new_rows, new_columns
    done = t + 1
    if done < FIRST or (done - FIRST) % EVERY or done >= STEPS:
      continue
    n = K if done == FIRST else int(SHARE * (1 - done / STEPS) * K)
    free = [
      (i, j)
      for i in range(ROWS)
      for j in range(COLUMNS)
      if (i, j) not in deltas and (on_zeros or start[i, j])
    ]
    grown = sorted(free, key=lambda p: -rows[p[0]] * columns[p[1]])[:n]
    dropped = sorted(deltas, key=lambda p: abs(deltas[p]))[: len(grown)]
    for place in dropped:
      del deltas[place]
      w[place] = start[place]
    deltas |= dict.fromkeys(grown, 0.0)
  return w, deltas, rows, columns


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_a_loop_over_weights(case):
  base = sparse_base()
  first = places_of(spiel_sm3(**CASES[case]).start(base)[1])
  places = [divmod(p, COLUMNS) for p in first]
  wanted, deltas, rows, columns = loop(base, places, **CASES[case])
  values, state = result(case)
  ours = [divmod(p, COLUMNS) for p in places_of(state)]
  assert sorted(ours) == sorted(deltas)
  assert set(ours) != set(places)
  np.testing.assert_allclose(
    finetune.merge(values, state), wanted, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(state.harvest.rows, rows, rtol=1e-4)
  np.testing.assert_allclose(state.harvest.columns, columns, rtol=1e-4)


@pytest.mark.slow
def test_zeros_of_the_base_stay_where_they_are():
  base = sparse_base()
  zeros = {
    case: np.asarray(finetune.merge(*result(case))) == 0 for case in CASES
  }
  np.testing.assert_array_equal(zeros["on_non_zeros"], base == 0)
  assert zeros["everywhere"].sum() < zeros["on_non_zeros"].sum()


def test_two_steps_and_a_move_by_hand():
  base = jnp.full((2, 3), 5.0)
  tx = spiel_sm3(1.0, k=4, eps=7.0, first=2, fraction=lambda step: 0.5)
  values, state = tx.start(base)
  # The columns 0 and 1 are trained, and 2 is not.
  slots = state.parts._replace(indices=jnp.array([0, 1, 3, 4]))
  state = state._replace(parts=slots)
  grads = jnp.array([3.0, 1.0, 2.0, 4.0])
  updates, state = update_of(tx)(grads, state, values, update_masks=tx.moves(0))
  wanted = [-3 / 4, -1 / 8**0.5, -2 / 11**0.5, -4 / 23**0.5]
  np.testing.assert_allclose(updates, wanted, rtol=1e-6)
  np.testing.assert_array_equal(state.harvest.rows, [9, 16])
  np.testing.assert_array_equal(state.harvest.columns, [9, 16, 0])
  updates, state = update_of(tx)(
    -grads, state, updates, update_masks=tx.moves(1)
  )
  # The squares are 18, 10, 13 and 32. With them the first two weights have come
  # back the furthest, and fall to 0.
  np.testing.assert_array_equal(state.harvest.rows, [18, 32])
  np.testing.assert_array_equal(state.harvest.columns, [18, 32, 0])
  wanted = [3 / 4, 1 / 8**0.5, 2 / 20**0.5, 4 / 39**0.5]
  np.testing.assert_allclose(updates, wanted, rtol=1e-6)
  assert places_of(state) == [2, 5, 3, 4]


def test_the_state_is_a_row_and_a_column_of_each_matrix():
  params = {"w": jnp.ones((3, 20, 30)), "b": jnp.ones(30)}
  tx = spiel_sm3(prunable=lambda path, leaf: path == "w")
  values, state = jax.eval_shape(tx.start, params)
  accumulators = state.harvest["w"]
  assert accumulators.rows.shape == (3, 20)
  assert accumulators.columns.shape == (3, 30)
  # Besides, only the step that the learning rate's schedule is at.
  assert sum(x.size for x in jax.tree.leaves(state.inner_state)) == 1
  assert values["w"].shape == (3, K)


def test_a_move_needs_no_probe():
  tx = spiel_sm3(first=5, every=20)
  moves = [t for t in range(STEPS) if tx.moves(t)]
  assert moves == [4, 24, 44]
  values, state = tx.start(sparse_base())
  probes = tx.probes(values, state, tx.moves(4))
  assert jax.tree.leaves(probes) == []
  assert sparsejax.forward_params(values, state, probes).probe is None


def test_stacked_matrices_are_trained_as_if_alone():
  bases = jnp.stack([sparse_base(), 2 * sparse_base()])
  tx = always()
  together = tx.start(bases)
  alone = []
  for i, base in enumerate(bases):
    values, state = tx.start(base)
    slots = jax.tree.map(lambda x, i=i: x[i], together[1].parts)
    alone.append((values, state._replace(parts=slots)))
  dense = np.asarray(jax.random.normal(KEY, (5, 2, SIZE)))

  def step(t, g, values, state):
    grads = np.take_along_axis(g, np.asarray(state.parts.indices), -1)
    update = update_of(tx)
    updates, state = update(grads, state, values, update_masks=tx.moves(t))
    return values + updates, state

  for t, g in enumerate(dense):
    together = step(t, g, *together)
    alone = [step(t, g[i], *pair) for i, pair in enumerate(alone)]
  for i, pair in enumerate(alone):
    for field in ("base", "parts", "harvest"):
      jax.tree.map(
        # XLA may fuse differently what differs in shape: one unit, not places.
        lambda ours, theirs, i=i: np.testing.assert_allclose(
          ours[i], theirs, rtol=1e-6
        ),
        getattr(together[1], field),
        getattr(pair[1], field),
      )
    np.testing.assert_array_equal(together[0][i], pair[0])


def test_empty_slots_change_nothing():
  base = jnp.zeros((ROWS, COLUMNS)).at[1, 2].set(3.0)
  tx = spiel_sm3(0.1, k=2, on_zeros=False, first=1, every=1)
  values, state = tx.start(base)
  assert places_of(state) == [COLUMNS + 2, SIZE]
  grads = jnp.array([2.0, 0.0])
  for t in range(3):
    now = tx.moves(t)
    updates, state = update_of(tx)(grads, state, values, update_masks=now)
    values = values + updates
  assert places_of(state) == [COLUMNS + 2, SIZE]
  np.testing.assert_array_equal(state.harvest.rows, [0, 12, 0, 0, 0, 0])
  np.testing.assert_array_equal(
    state.harvest.columns, [0, 0, 12, 0, 0, 0, 0, 0]
  )
  np.testing.assert_array_equal(finetune.merge(values, state) == 0, base == 0)


def test_nothing_moves_by_gradients_that_are_not_finite():
  tx = always()
  values, state = tx.start(sparse_base())
  grads = jnp.ones(K).at[3].set(jnp.nan)
  _, new = update_of(tx)(grads, state, values, update_masks=tx.moves(0))
  assert places_of(new) == places_of(state)


def test_squares_of_small_gradients_do_not_underflow():
  tx = always()
  values, state = tx.start(sparse_base())
  grads = jnp.linspace(1, 2, K)
  places = []
  for scale in (1.0, 1e-15):
    _, new = update_of(tx)(
      scale * grads, state, values, update_masks=tx.moves(0)
    )
    places.append(places_of(new))
  assert places[0] == places[1]


@pytest.mark.parametrize(("options", "message"), [
  ({"first": 0}, "first=0 and every=7"),
  ({"every": 0}, "every=0"),
  ({"eps": 0.0}, r"eps=0\.0"),
  ({"fraction": 1.5}, r"fraction=1\.5"),
])  # fmt: skip
def test_what_is_wrong_is_told(options, message):
  with pytest.raises(ValueError, match=message):
    spiel_sm3(**options)
