"""SpIEL and SEFT against float64 loops over single weights, and invariants."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import finetune, gradients, patterns
from sparsejax.finetune import moving
from sparsejax.finetune import slots as support
from sparsejax.linear import matmul
from tests.finetune.regression import (
  COLUMNS,
  KEY,
  ROWS,
  SIZE,
  X,
  everything,
  gradient,
  places_of,
  sparse_base,
  trained,
  update_of,
)
from tests.marks import slow

K = 12


class Slot:
  """A trained weight of the loops below."""

  def __init__(self, start, age=0, mean=0.0, square=0.0):
    self.start, self.delta = start, 0.0
    self.age, self.mean, self.square = age, mean, square


def aged_adam(slots, g, rate, decay=0.0, b1=0.9, b2=0.999, eps=1e-6):
  for place, slot in slots.items():
    slot.age += 1
    m, v = (
      slot.mean * (1 - b1 ** (slot.age - 1)),
      slot.square * (1 - b2 ** (slot.age - 1)),
    )
    m, v = b1 * m + (1 - b1) * g[place], b2 * v + (1 - b2) * g[place] ** 2
    slot.mean, slot.square = m / (1 - b1**slot.age), v / (1 - b2**slot.age)
    correction = (1 - b1**slot.age) / np.sqrt(1 - b2**slot.age)
    slot.delta -= rate * m / ((np.sqrt(v) + eps) * correction)
    slot.delta -= rate * decay * slot.delta


def loop(
  base,
  places,
  *,
  first,
  every,
  accumulate,
  share,
  adapt,
  zeros,
  rate,
  decay,
  candidates,
):
  """Fine-tuning as the papers tell it, one weight at a time."""
  w = np.asarray(base, np.float64).reshape(-1).copy()
  budget = np.count_nonzero(w)
  slots = {int(p): Slot(w[p]) for p in places}
  chosen = {}
  for t in range(STEPS):
    g = gradient(w.reshape(ROWS, COLUMNS), t).reshape(-1)
    done = t + 1
    ahead = (first - done) % every
    moves = first <= done + ahead < STEPS and ahead < accumulate
    if moves and ahead == accumulate - 1:
      allowed = [p for p in range(SIZE) if zeros or w[p]]
      best = sorted(allowed, key=lambda p: -abs(g[p]))[:candidates]
      chosen = {p: [] for p in best}
      total = np.zeros(SIZE)
    if moves:
      for p in chosen:
        chosen[p].append(g[p])
      total += g
    aged_adam(slots, g, rate, decay)
    for p, slot in slots.items():
      w[p] = slot.start + slot.delta
    if not moves or ahead:
      continue
    n = int(share(done) * K)
    dropped = sorted(slots, key=lambda p: abs(slots[p].delta))[:n]
    dropped = dropped[: max(0, n - (K - len(slots)))]
    free = [p for p in chosen if p not in slots or p in dropped]
    grown = sorted(free, key=lambda p: -abs(sum(chosen[p])))[:n]
    again = set(grown) & set(dropped)
    grown = [p for p in grown if p not in again]
    dropped = [p for p in dropped if p not in again][: len(grown)]
    for p in dropped:
      w[p] = slots.pop(p).start
    for p in grown:
      seen = np.array(chosen[p])
      slots[p] = Slot(w[p], accumulate, seen.mean(), (seen**2).mean())
    if not adapt:
      continue
    held = {p for p in range(SIZE) if w[p]} | set(slots)
    old = [p for p in held if w[p] and p not in grown]
    old.sort(key=lambda p: abs(w[p] * total[p]))
    for p in old[: max(0, len(held) - budget)]:
      w[p] = 0.0
      slots.pop(p, None)
  return w.reshape(ROWS, COLUMNS), slots


# A share of no whole number of slots, so that rounding cannot matter.
SHARE = 0.47
CASES = {
  "spiel": {"every": 6, "accumulate": 3},
  "spiel_on_mask": {"every": 5, "accumulate": 2},
  "seft": {"every": 4, "accumulate": 1},
  "seft_in_place": {"every": 4, "accumulate": 1},
  "seft_averaged": {"every": 5, "accumulate": 3},
}
STEPS = 30
RATE, DECAY = 0.02, 1.0
ADAMW = finetune.adamw(RATE, weight_decay=DECAY)


@functools.lru_cache
def transformation(case, inner=ADAMW, **options):
  options |= CASES[case]
  common = {"key": KEY, "t_end": STEPS, "k": K, "fraction": SHARE}
  if case.startswith("spiel"):
    zeros = case == "spiel"
    return finetune.spiel(
      inner, on_zeros=zeros, prunable=everything, **common, **options
    )
  revive = case != "seft_in_place"
  return finetune.seft(
    inner, revive=revive, prunable=everything, **common, **options
  )


@pytest.mark.parametrize(
  "case", [slow(c) if c == "seft_averaged" else c for c in CASES]
)
def test_every_step_is_that_of_a_loop_over_weights(case):
  base = sparse_base()
  tx = transformation(case)
  places = np.asarray(tx.start(base)[1].parts.indices)
  options = CASES[case]
  spiel = case.startswith("spiel")

  def share(done):
    if spiel:
      first = done == options["accumulate"]
      return 1.0 if first else SHARE * (1 - done / STEPS)
    return SHARE / 2 * (1 + np.cos(np.pi * done / STEPS))

  wanted, slots = loop(
    base,
    places,
    first=options["accumulate" if spiel else "every"],
    every=options["every"],
    accumulate=options["accumulate"],
    share=share,
    adapt=case in ("seft", "seft_averaged"),
    zeros=case in ("spiel", "seft", "seft_averaged"),
    rate=RATE,
    decay=DECAY,
    candidates=K if spiel else int((1 + SHARE) * K),
  )
  values, state = trained(tx, base, STEPS)
  ours = np.asarray(state.parts.indices)
  assert sorted(ours[ours < SIZE]) == sorted(slots)
  assert set(ours) != set(places)
  np.testing.assert_allclose(
    finetune.merge(values, state), wanted, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_array_equal(finetune.merge(values, state) == 0, wanted == 0)


@pytest.mark.parametrize("case", ["seft", slow("seft_averaged")])
@pytest.mark.parametrize("options", [
  {}, slow({"grow_at_random": True}), slow({"fold": True}),
  slow({"sensitivity": finetune.magnitude}), slow({"inner": optax.sgd(0.01)}),
], ids=["", "random", "fold", "magnitude", "sgd"])  # fmt: skip
def test_never_more_non_zeros_than_the_base(case, options):
  base = sparse_base()
  tx = transformation(case, **options)
  budget = int(jnp.sum(base != 0))
  revived = []

  def seen(t, values, state):
    merged = finetune.merge(values, state)
    places = state.parts.indices
    assert int(support.support_size(merged, places)) <= budget
    real = np.asarray(places[places < SIZE])
    assert len(set(real)) == len(real)
    revived.append(int(jnp.sum((merged != 0) & (base == 0))))
    # The base holds the deltas already.
    np.testing.assert_allclose(state.base, merged, rtol=1e-6, atol=1e-7)

  trained(tx, base, STEPS, seen)
  assert max(revived) > 0


def test_what_is_not_trained_keeps_its_bits():
  base = sparse_base()
  tx = transformation("spiel")
  held = set(places_of(tx.start(base)[1]))
  values, state = trained(
    tx, base, STEPS, lambda t, values, state: held.update(places_of(state))
  )
  merged, base = (
    np.asarray(x).reshape(-1) for x in (finetune.merge(values, state), base)
  )
  never = [p for p in range(SIZE) if p not in held]
  np.testing.assert_array_equal(merged[never], base[never])
  # What is dropped has its first bits again.
  dropped = sorted(held - set(places_of(state)))
  np.testing.assert_array_equal(merged[dropped], base[dropped])
  assert never
  assert dropped


@pytest.mark.slow
def test_a_pattern_stays_where_zeros_do():
  pattern = patterns.n_of_m(2, 4, axis=1)
  dense = jax.random.normal(KEY, (ROWS, COLUMNS))
  base = jnp.where(pattern.top_k(jnp.abs(dense), SIZE // 2), dense, 0)
  tx = transformation("seft_in_place")
  first = places_of(tx.start(base)[1])
  values, state = trained(tx, base, STEPS)
  np.testing.assert_array_equal(finetune.merge(values, state) == 0, base == 0)
  assert set(first) != set(places_of(state))


@pytest.mark.slow
def test_stacked_matrices_move_one_by_one():
  base = jnp.stack([sparse_base(), 2 * sparse_base()])
  tx = finetune.seft(
    optax.sgd(1.0), key=KEY, t_end=9, k=K, every=1, fraction=0.5,
    prunable=lambda path, leaf: path == "w",
  )  # fmt: skip
  values, state = tx.start({"w": base, "b": jnp.ones(COLUMNS)})
  assert values["w"].shape == (2, K)
  assert isinstance(values["b"], optax.MaskedNode)

  def loss_of(params):
    h, _ = jax.lax.scan(
      lambda h, m: (h + jnp.sum(jnp.tanh(matmul(X[0], m))), None),
      0.0,
      params["w"],
    )
    return h

  now = tx.moves(0)
  assert now == moving.Phase(first=True, last=True)
  value_and_grad = sparsejax.value_and_grad(loss_of, tx)
  value_and_grad = jax.jit(value_and_grad, static_argnames="update_masks")
  _, grads = value_and_grad(values, state, update_masks=now)
  _, new = update_of(tx)(grads, state, values, update_masks=now)
  dense = jax.grad(lambda w: jnp.sum(jnp.tanh(X[0] @ w)))
  answer = grads["w"].found[0]
  for layer in range(2):
    g = np.asarray(dense(base[layer])).reshape(-1)
    row, column, seen = np.asarray(answer[layer])
    places = (row * COLUMNS + column).astype(int)
    assert sorted(places) == sorted(np.argsort(-abs(g))[: int(1.5 * K)])
    np.testing.assert_allclose(seen, g[places], rtol=1e-4, atol=1e-6)
  assert not np.array_equal(new.parts["w"].indices, state.parts["w"].indices)


@pytest.mark.parametrize("moves", [False, True])
def test_a_step_makes_no_second_stack_of_matrices(moves):
  base = jnp.stack([jnp.tile(sparse_base(), (8, 8))] * 16)
  tx = finetune.seft(
    finetune.adamw(1.0), key=KEY, t_end=9, k=20, every=1, prunable=everything
  )
  values, state = tx.start(base)
  assert all(x.size == 0 for x in jax.tree.leaves(state.harvest))
  now = tx.moves(0) if moves else False

  def update(state, values, grads, found):
    grads = gradients.attached(grads, probes, found)
    return tx.update(grads, state, values, update_masks=now)

  jitted = jax.jit(update, donate_argnums=(0, 1))
  probes = tx.probes(values, state, now)
  args = state, values, values, gradients.zeros_of(probes)
  memory = jitted.lower(*args).compile().memory_analysis()
  assert memory.alias_size_in_bytes > base.nbytes
  assert memory.temp_size_in_bytes < base.nbytes / 2


def test_phases():
  tx = finetune.spiel(
    optax.sgd(1.0), key=KEY, t_end=30, k=1, every=10, accumulate=3
  )
  phases = {t: tx.moves(t) for t in range(30) if tx.moves(t)}
  assert list(phases) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
  assert [t for t, phase in phases.items() if phase.first] == [0, 10, 20]
  assert [t for t, phase in phases.items() if phase.last] == [2, 12, 22]
  once = finetune.seft(optax.sgd(1.0), key=KEY, t_end=9, k=1, every=4)
  assert [once.moves(t) for t in range(3)] == [False] * 3
  assert [t for t in range(9) if once.moves(t)] == [3, 7]
  assert once.moves(3) == moving.Phase(first=True, last=True)


def test_nothing_moves_by_gradients_that_are_not_finite():
  base = sparse_base()
  tx = transformation("seft")
  values, state = tx.start(base)
  now = moving.Phase(first=True, last=True)
  probes = tx.probes(values, state, now)
  found = jax.tree.map(lambda x: x * jnp.nan, gradients.zeros_of(probes))
  grads = gradients.attached(jnp.zeros(K), probes, found)
  updates, new = update_of(tx)(grads, state, values, update_masks=now)
  np.testing.assert_array_equal(new.parts.indices, state.parts.indices)
  np.testing.assert_array_equal(updates, 0)


def test_gradients_and_update_are_of_one_kind_of_step():
  tx = transformation("seft")
  values, state = tx.start(sparse_base())
  now = tx.moves(3)
  with pytest.raises(ValueError, match=r"Phase.*value_and_grad"):
    tx.update(values, state, values, update_masks=now)
  probes = tx.probes(values, state, now)
  grads = gradients.attached(values, probes, gradients.zeros_of(probes))
  with pytest.raises(ValueError, match=r"update_masks=False .* that moves"):
    tx.update(grads, state, values, update_masks=False)
  with pytest.raises(ValueError, match=r"got update_masks=True.*tx\.moves"):
    tx.update(grads, state, values, update_masks=True)


def test_a_base_without_zeros_is_refused():
  tx = transformation("seft")
  with pytest.raises(ValueError, match=r"w/kernel: .* without a zero.*prune"):
    tx.start({"w": {"kernel": jnp.ones((ROWS, COLUMNS))}})


@pytest.mark.parametrize(("options", "message"), [
  ({"k": 0}, "b: got k=0 weights to train, wanted 1 to 48"),
  ({"k": 49}, "k=49"),
  ({"every": 2, "accumulate": 3}, "every=2 and accumulate=3"),
  ({"accumulate": 0}, "accumulate=0"),
  ({"fraction": 1.5}, r"fraction=1\.5"),
  ({"prunable": lambda path, leaf: False}, "picks no leaf of a, b"),
  ({"prunable": lambda path, leaf: path == "a"}, r"a: got \(2,\)"),
])  # fmt: skip
def test_what_is_wrong_is_told(options, message):
  given = {
    "key": KEY, "t_end": 10, "k": 4, "accumulate": 2,
    "prunable": lambda path, leaf: path == "b", **options,
  }  # fmt: skip
  params = {"a": jnp.ones(2), "b": jnp.ones((ROWS, COLUMNS))}
  with pytest.raises(ValueError, match=message):
    sparsejax.init(finetune.spiel(optax.sgd(1.0), **given), params)


def test_weights_of_one_age_are_trained_by_adam():
  ours = finetune.scale_by_aged_adam(eps=0.0)
  theirs = optax.scale_by_adam(eps=0.0)
  params = {"w": jnp.zeros(5), "hole": optax.MaskedNode()}
  states = [ours.init(params), theirs.init(params)]
  for t in range(20):
    grads = {**params, "w": jax.random.normal(jax.random.key(t), (5,))}
    updates = []
    for i, tx in enumerate((ours, theirs)):
      update, states[i] = tx.update(grads, states[i], params)
      updates.append(update["w"])
    np.testing.assert_allclose(*updates, rtol=1e-4)


def test_adamw_adds_eps_and_decays_where_the_released_code_does():
  tx = finetune.adamw(0.1, b2=0.99, eps=0.5, weight_decay=2.0)
  values, wanted = jnp.array([3.0]), 3.0
  state = tx.init(values)
  m = v = 0.0
  for t, g in enumerate((2.0, -1.0, 0.5), start=1):
    updates, state = tx.update(jnp.array([g]), state, values)
    values = optax.apply_updates(values, updates)
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    root = (v**0.5 + 0.5) * (1 - 0.9**t) / (1 - 0.99**t) ** 0.5
    wanted -= 0.1 * m / root
    wanted -= 0.1 * 2.0 * wanted
    np.testing.assert_allclose(values, [wanted], rtol=1e-5)


def test_other_leaves_are_frozen_or_trained():
  params = {"w": sparse_base(), "b": jnp.ones(COLUMNS)}
  picks = lambda path, leaf: path == "w"  # noqa: E731
  frozen = finetune.spiel(optax.sgd(1.0), key=KEY, t_end=9, k=2, prunable=picks)
  values, state = frozen.start(params)
  assert isinstance(values["b"], optax.MaskedNode)
  assert sparsejax.forward_params(values, state)["b"] is params["b"]
  whole = finetune.fixed(optax.sgd(1.0), key=KEY, prunable=picks)
  values, state = whole.start(params)
  updates, state = whole.update(
    jax.tree.map(jnp.ones_like, values), state, values
  )
  merged = finetune.merge(optax.apply_updates(values, updates), state)
  np.testing.assert_array_equal(merged["b"], 0)
  wanted = np.where(params["w"] != 0, params["w"] - 1, 0)
  np.testing.assert_array_equal(merged["w"], wanted)


def test_full_training_is_plain_training():
  params = {"w": sparse_base(), "b": jnp.ones(COLUMNS)}
  for rest in (True, False):
    tx = finetune.full(optax.sgd(1.0), key=KEY, rest=rest)
    values, state = tx.start(params)
    grads = jax.tree.map(jnp.ones_like, values)
    updates, state = tx.update(grads, state, values)
    merged = finetune.merge(optax.apply_updates(values, updates), state)
    np.testing.assert_array_equal(merged["w"], params["w"] - 1)
    np.testing.assert_array_equal(merged["b"], 0 if rest else 1)


def test_stacked_non_zeros_of_different_numbers():
  base = jnp.stack([sparse_base(0.6), sparse_base(0.2)])
  tx = finetune.fixed(optax.sgd(1.0), key=KEY, prunable=everything)
  values, state = tx.start(base)
  assert values.shape == (2, 8 * math.ceil(int(jnp.sum(base[0] != 0)) / 8))
  np.testing.assert_array_equal(finetune.merge(values, state), base)
