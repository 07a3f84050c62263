"""Mask updates and their options, weight by weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import scores, updates

pytestmark = pytest.mark.core

KEY = jax.random.key(0)
MASK = jnp.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
W = jnp.array([4.0, -3, 2, -1, 0, 0, 0, 0])
# The dropped weights 2 and 3 have a larger gradient than 4, 5, 6 and 7.
GRADS = jnp.array([0.0, 0, 9, -8, 1, -2, 3, -4])


def begin(tx, masks=MASK, params=W):
  """A state of `tx` whose masks are given."""
  state = tx.init(params)
  mask_state = state.mask_state._replace(masks=masks)
  return state._replace(mask_state=mask_state)


def rule(fraction=0.5, **options):
  return updates.drop_and_grow(
    sparsity=0.5,
    drop=scores.magnitude(),
    grow=scores.gradient(),
    fraction=fraction,
    prunable=lambda path, leaf: True,
    **options,
  )


def masks_after(update, params=W, grads=GRADS, masks=MASK):
  state = update.init(KEY, params)._replace(masks=masks)
  return update.update(grads, state, params, True)


def which(mask):
  return np.flatnonzero(mask).tolist()


def test_a_dropped_weight_may_grow_back_at_once():
  assert which(masks_after(rule()).masks) == [0, 1, 2, 3]


def test_regrow_false_takes_only_weights_that_were_inactive():
  assert which(masks_after(rule(regrow=False)).masks) == [0, 1, 6, 7]


@pytest.mark.parametrize("regrow", [True, False])
def test_fraction_0_moves_nothing_and_1_moves_everything(regrow):
  assert which(masks_after(rule(0.0, regrow=regrow)).masks) == [0, 1, 2, 3]
  everything = masks_after(rule(1.0, regrow=regrow)).masks
  assert which(everything) == ([2, 3, 6, 7] if regrow else [4, 5, 6, 7])


def test_the_number_that_moves_is_truncated():
  """trunc(0.49 x 4) = 1: only weight 3 goes, as its |w| is lowest."""
  assert which(masks_after(rule(0.49, regrow=False)).masks) == [0, 1, 2, 7]
  assert which(masks_after(rule(0.24, regrow=False)).masks) == [0, 1, 2, 3]


def test_without_room_fewer_move():
  mask = jnp.arange(8) < 7
  update = updates.drop_and_grow(
    sparsity=0.125,
    drop=scores.magnitude(),
    grow=scores.gradient(),
    fraction=1.0,
    prunable=lambda path, leaf: True,
    regrow=False,
  )
  new = masks_after(update, masks=mask).masks
  assert new.sum() == 7
  assert new[7]


def test_a_fraction_may_be_a_schedule_of_the_step():
  update = rule(lambda step: jnp.where(step < 5, 0.0, 1.0), regrow=False)
  assert which(masks_after(update).masks) == [0, 1, 2, 3]
  state = update.init(KEY, W)._replace(masks=MASK, count=jnp.int32(5))
  new = update.update(GRADS, state, W, True)
  assert which(new.masks) == [4, 5, 6, 7]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_leaf_whose_scores_are_not_finite_stays(bad):
  params, masks = {"a": W, "b": W}, {"a": MASK, "b": MASK}
  grads = {"a": GRADS.at[7].set(bad), "b": GRADS}
  new = masks_after(rule(regrow=False), params, grads, masks)
  assert which(new.masks["a"]) == [0, 1, 2, 3]
  assert which(new.masks["b"]) == [0, 1, 6, 7]
  assert new.refused == 1


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
@pytest.mark.filterwarnings("ignore:.*may as well stack layers")
def test_the_budget_is_exact_after_every_update(sparsity):
  params = {"a": jnp.ones((33, 17)), "b": jnp.ones((5, 7, 3), jnp.bfloat16)}
  update = updates.drop_and_grow(
    sparsity=sparsity,
    drop=scores.sensitivity(),  # of constant weights: many ties
    grow=scores.random(),
    fraction=0.37,
  )
  wanted = sparsejax.distributions.budgets(params, sparsity)
  state = update.init(KEY, params)
  step = jax.jit(lambda g, s: update.update(g, s, params, True))
  for t in range(5):
    assert jax.tree.map(int, state.budget) == wanted
    assert {p: int(m.sum()) for p, m in state.masks.items()} == wanted
    keys = dict(zip(params, jax.random.split(jax.random.key(t)), strict=True))
    grads = {p: jax.random.normal(keys[p], x.shape) for p, x in params.items()}
    state = step(grads, state)._replace(count=state.count + 1)
  assert state.refused == 0


def test_a_budget_beyond_the_integers_of_float32_is_kept():
  """2**24 + 3 weights are kept of which float32 cannot tell the number."""
  size = 2**25 + 6
  params = jax.ShapeDtypeStruct((size,), jnp.bfloat16)
  counts = sparsejax.distributions.budgets(
    params, 0.5, prunable=lambda path, leaf: True
  )
  assert counts == {"": 2**24 + 3}


# Options of `sparsify`.


def algorithm(inner=None, **options):
  return sparsejax.rigl(
    inner or optax.sgd(0.1, momentum=0.9),
    0.5,
    key=KEY,
    t_end=10**6,
    delta_t=1,
    fraction=0.5,
    prunable=lambda path, leaf: True,
    regrow=False,
    **options,
  )


def test_grown_weights_are_zero_unless_asked_for():
  tx = algorithm()
  change, _ = tx.update(GRADS, begin(tx), W, update_masks=True)
  np.testing.assert_array_equal(W + change, [4, -3, 0, 0, 0, 0, 0, 0])


def test_grown_values_start_the_grown_weights_only():
  tx = algorithm(grown_values=jax.nn.initializers.constant(0.5))
  change, state = tx.update(GRADS, begin(tx), W, update_masks=True)
  params = W + change
  np.testing.assert_array_equal(params, [4, -3, 0, 0, 0, 0, 0.5, 0.5])
  again, _ = tx.update(0 * GRADS, state, params, update_masks=False)
  np.testing.assert_array_equal((params + again)[6:], [0.5, 0.5])


def test_random_grown_values_differ_from_update_to_update():
  tx = algorithm(grown_values=jax.nn.initializers.normal(1.0))
  state = begin(tx)
  later = state._replace(
    mask_state=state.mask_state._replace(count=jnp.int32(7))
  )
  first, _ = tx.update(GRADS, state, W, update_masks=True)
  other, _ = tx.update(GRADS, later, W, update_masks=True)
  assert (first[6:] != other[6:]).all()
  np.testing.assert_array_equal(first[:6], other[:6])


def with_trace(state, trace):
  return jax.tree.map(
    lambda x: trace if isinstance(x, optax.TraceState) else x,
    state,
    is_leaf=lambda x: isinstance(x, optax.TraceState),
  )


@pytest.mark.parametrize(
  ("grown_moments", "wanted"),
  [
    (None, [1, 1, 0, 0, 0, 0, 0, 0]),
    (lambda m, g: g, [1, 1, 0, 0, 0, 0, 3, -4]),
    (lambda m, g: jnp.full_like(m, 7), [1, 1, 0, 0, 0, 0, 7, 7]),
  ],
)
def test_moments_of_grown_weights(grown_moments, wanted):
  tx = algorithm(grown_moments=grown_moments)
  state = begin(tx)
  state = with_trace(state, optax.TraceState(MASK.astype(jnp.float32)))
  _, state = tx.update(GRADS, state, W, update_masks=True)
  np.testing.assert_array_equal(optax.tree.get(state, "trace"), wanted)


def test_a_weight_dropped_and_regrown_keeps_value_and_moment():
  tx = sparsejax.rigl(
    optax.sgd(0.1, momentum=0.9),
    0.5,
    key=KEY,
    t_end=10**6,
    fraction=0.5,
    prunable=lambda path, leaf: True,
    grown_values=jax.nn.initializers.constant(0.5),
  )
  trace = optax.TraceState(MASK.astype(jnp.float32))
  state = with_trace(begin(tx), trace)
  change, state = tx.update(GRADS, state, W, update_masks=True)
  np.testing.assert_array_equal(W + change, W)
  np.testing.assert_array_equal(optax.tree.get(state, "trace"), trace.trace)


# What scores are told of.


def exploration(**options):
  """|g|, and a bonus for weights that are not active, more at every step."""

  def update(grads, state, params=None, *, masks, step, **extra):
    del params, extra
    by = jax.tree.map(lambda g, m: jnp.abs(g) + 10 * step * ~m, grads, masks)
    return by, state

  return updates.drop_and_grow(
    sparsity=0.5,
    drop=scores.magnitude(),
    grow=options.pop("composed", lambda score: score)(
      optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
      )
    ),
    fraction=0.5,
    prunable=lambda path, leaf: True,
    **options,
  )


@pytest.mark.parametrize(
  "composed",
  [
    lambda score: score,
    lambda score: scores.smoothed(score, 0.5),
    lambda score: scores.accumulated(score, 2, period=3),
    lambda score: optax.chain(optax.scale(2.0), score),
  ],
)
def test_a_score_sees_the_masks_and_the_step(composed):
  update = exploration(composed=composed)
  just_grown = jnp.array([4.0, -3, 0, 0, 0, 0, 0, 0])  # 2 and 3 are active
  for count, wanted in ((0, [0, 1, 2, 3]), (3, [0, 1, 6, 7])):
    state = update.init(KEY, just_grown)
    state = state._replace(masks=MASK, count=jnp.int32(count))
    state = jax.jit(update.update, static_argnums=3)(
      GRADS, state, just_grown, True
    )
    assert which(state.masks) == wanted


def test_a_score_sees_what_is_active_on_the_step_after_a_move_too():
  """Weights just grown are 0, and active."""
  rng = np.random.default_rng(0)
  when = sparsejax.schedules.always
  tx = sparsejax.sparsify(optax.sgd(0.5), exploration(), when=when, key=KEY)
  params, state = sparsejax.init(tx, jnp.asarray(rng.normal(size=8)))
  for step in range(6):
    mask, w = (np.asarray(x) for x in (sparsejax.get_masks(state), params))
    if step == 1:
      assert (w[mask] == 0).any()
    grads = rng.normal(size=8).astype(np.float32)
    kept = set(sorted(np.flatnonzero(mask), key=lambda i: -abs(w[i]))[:2])
    by = np.abs(grads) + 10 * step * ~mask
    grown = sorted(set(range(8)) - kept, key=lambda i: -by[i])[:2]
    change, state = tx.update(jnp.asarray(grads), state, params)
    params = optax.apply_updates(params, change)
    assert which(sparsejax.get_masks(state)) == sorted(kept | set(grown))


# Pruning.


def pruned(tx, steps, shape=(40, 25)):
  params = jax.random.normal(jax.random.key(1), shape)
  params, state = sparsejax.init(tx, params)
  update, found = jax.jit(tx.update), []
  for t in range(steps):
    grads = jax.random.normal(jax.random.key(t), shape)
    change, state = update(grads, state, params)
    params = optax.apply_updates(params, change)
    found.append(sparsejax.nnz(sparsejax.get_masks(state)))
  return found


def test_prune_follows_the_cubic_to_the_exact_budget():
  tx = sparsejax.gmp(optax.sgd(0.1), 0.9, key=KEY, begin=0, end=8, delta_t=2)
  # 100 + floor(900 (1 - t / 8)^3) at 0, 2, ... 8, then constant.
  wanted = [1000, 1000, 479, 479, 212, 212, 114, 114, 100, 100]
  assert pruned(tx, 10) == wanted


def test_prune_starts_from_its_initial_sparsity():
  tx = sparsejax.gmp(
    optax.sgd(0.1),
    0.9,
    key=KEY,
    begin=1,
    end=3,
    delta_t=1,
    initial_sparsity=0.5,
  )
  # Dense before the beginning; 100 + floor(400 / 8) halfway.
  assert pruned(tx, 5) == [1000, 500, 150, 100, 100]


@pytest.mark.parametrize("initial", [-0.1, 0.6, 1.0])
def test_prune_refuses_an_initial_sparsity_above_the_final_one(initial):
  with pytest.raises(ValueError, match=f"initial_sparsity.* got {initial}"):
    updates.prune(
      sparsity=0.5,
      score=scores.magnitude(),
      progress=lambda step: 1.0,
      initial_sparsity=initial,
    )


def test_what_is_pruned_stays_so():
  update = updates.prune(
    sparsity=0.5,
    score=scores.gradient(),
    progress=lambda step: 1.0,
    prunable=lambda path, leaf: True,
  )
  state = masks_after(update, masks=jnp.ones(8, bool))
  assert which(state.masks) == [2, 3, 6, 7]
  again = update.update(GRADS[::-1], state, W, True)
  assert which(again.masks) == [2, 3, 6, 7]


# Given masks.


PARAMS = {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "c": jnp.ones(4)}


def test_fixed_takes_a_prefix_of_the_tree():
  full = updates.fixed({"a": True, "c": jnp.arange(4) < 1}).init(None, PARAMS)
  assert jax.tree.map(np.shape, full.masks) == {
    "a": {"w": (), "b": ()},
    "c": (4,),
  }
  assert jax.tree.map(int, full.budget) == {"a": {"w": 6, "b": 3}, "c": 1}
  dense = updates.fixed(True).init(None, PARAMS)
  assert jax.tree.structure(dense.masks) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
  ("masks", "error", "message"),
  [
    ({"a": True, "c": jnp.ones(5, bool)}, ValueError, r"c: .*\(5,\).*\(4,\)"),
    (
      {"a": jnp.ones((2, 3), bool), "c": True},
      ValueError,
      r"a/b: got a mask of shape \(2, 3\) for params of shape \(3,\)",
    ),
    ({"a": True, "c": jnp.ones(4)}, TypeError, r"c: .*float32, wanted bool"),
    ({"a": False, "c": True}, ValueError, r"a/b: got the mask False"),
    ({"a": True}, ValueError, "masks do not fit the params"),
    ({"a": True, "d": True}, ValueError, "masks do not fit the params"),
    ([True, True], ValueError, "masks do not fit the params"),
  ],
)
def test_fixed_refuses_masks_that_do_not_fit(masks, error, message):
  tx = sparsejax.fixed(optax.sgd(0.1), masks)
  with pytest.raises(error, match=message):
    sparsejax.init(tx, PARAMS)


FIRST = {"a": MASK, "b": jnp.array(True)}
LEAVES = {"a": W, "b": jnp.ones(3)}


@pytest.mark.parametrize("name", ["static", "set_", "rigl", "seft", "snfs"])
def test_an_algorithm_begins_with_the_masks_that_it_is_given(name):
  options = {} if name == "static" else {"t_end": 100, "delta_t": 2}
  tx = getattr(sparsejax, name)(
    optax.sgd(0.1), 0.9, key=KEY, masks=FIRST, **options
  )
  params, state = sparsejax.init(tx, LEAVES)
  np.testing.assert_array_equal(params["a"], jnp.where(MASK, W, 0))
  assert jax.tree.map(int, state.mask_state.budget) == {"a": 4, "b": 3}
  grads = {"a": GRADS, "b": jnp.ones(3)}
  _, state = tx.update(grads, state, params, update_masks=True)
  assert sparsejax.nnz(sparsejax.get_masks(state)) == 4


def test_masks_may_be_traced():
  def begin(masks):
    tx = sparsejax.rigl(optax.adam(0.1), 0.5, key=KEY, t_end=9, masks=masks)
    return sparsejax.init(tx, LEAVES)

  params, state = jax.jit(begin)(FIRST)
  assert int(state.mask_state.budget["a"]) == 4
  np.testing.assert_array_equal(params["a"] != 0, MASK)


def test_pruning_begins_with_given_masks_and_leaves_what_is_sparser():
  """Half of `a` is left, more than its budget; 1 of `b`, less than it."""
  few = jnp.arange(8).reshape(2, 4) == 5
  masks = {"a": MASK.reshape(2, 4), "b": few}
  params = {"a": W.reshape(2, 4), "b": jnp.ones((2, 4))}
  tx = sparsejax.gmp(
    optax.sgd(0.0),
    0.75,
    key=KEY,
    begin=0,
    end=2,
    delta_t=1,
    distribution=sparsejax.distributions.uniform,
    masks=masks,
  )
  params, state = sparsejax.init(tx, params)
  assert jax.tree.map(int, state.mask_state.budget) == {"a": 2, "b": 1}
  for _ in range(3):
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  found = sparsejax.get_masks(state)
  assert which(found["a"].ravel()) == [0, 1]
  np.testing.assert_array_equal(found["b"], few)


def test_masks_that_do_not_fit_are_named():
  tx = sparsejax.rigl(
    optax.sgd(0.1), 0.5, key=KEY, t_end=9, masks={"a": MASK[:3], "b": True}
  )
  with pytest.raises(ValueError, match=r"a: got a mask of shape \(3,\)"):
    sparsejax.init(tx, LEAVES)
