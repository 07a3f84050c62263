"""Masks that move by phases and stages, against loops in numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import distributions, patterns, schedules, scores, updates
from tests.conformance import table as conformance
from tests.marks import slow

KEY = jax.random.key(0)
STEPS = 13
RNG = np.random.default_rng(0)
SHAPES = {"a": (8, 6), "b": (6, 4), "bias": (6,)}
SIZES = {"a": 48, "b": 24}
W, *TARGETS = [
  {p: jnp.array(RNG.normal(size=s), "f") for p, s in SHAPES.items()}
  for _ in range(STEPS + 1)
]
EVERYTHING = {p: np.ones(SHAPES[p], bool) for p in SIZES} | {"bias": np.True_}
SGD = optax.sgd(0.1, momentum=0.9)
OPTIONS = {"key": KEY, "distribution": distributions.uniform}
# Compiling takes most of the time of these tests. Optimized programs, too, may
# differ in a last bit where the same sum is part of another whole.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
jit = functools.partial(jax.jit, compiler_options=QUICK)


def train_step(tx, params, state, target, **options):
  """Of the loss |params - target|^2 / 2."""
  grads = jax.tree.map(jnp.subtract, params, target)
  change, state = tx.update(grads, state, params, **options)
  return optax.apply_updates(params, change), state


def follow(tx, rule, restart=()):
  """Takes the library and a loop through the same steps of `SGD`.

  `rule(t, w, g, masks, got)` gives the masks that step t trains with, or None
  where they stay; `got` are the library's, for what is drawn at random. A
  gradient step goes with all of that. Returns the masks of all steps.
  """
  params, state = sparsejax.init(tx, W)
  step = jit(functools.partial(train_step, tx))
  w = jax.tree.map(np.float64, jax.device_get(params))
  m = jax.tree.map(np.zeros_like, w)
  masks = jax.device_get(sparsejax.get_masks(state))
  found = [masks]
  for t, target in enumerate(TARGETS):
    params, state = step(params, state, target)
    got = jax.device_get(sparsejax.get_masks(state))
    g = {p: w[p] - target[p] for p in w}
    new = rule(t, w, g, masks, got)
    assert (new is not None) == tx.moves(t)
    for p in w:
      if new is not None:
        kept = masks[p] & new[p]
        w[p] = np.where(kept, w[p], 0)
        m[p] = np.where(kept & (t not in restart), m[p], 0)
      mask = masks[p] if new is None else new[p]
      m[p] = 0.9 * m[p] + np.where(mask, g[p], 0)
      w[p] = np.where(mask, w[p] - 0.1 * m[p], 0)
      np.testing.assert_array_equal(got[p], mask)
      np.testing.assert_allclose(params[p], w[p], atol=1e-5)
      trace = optax.tree.get(state, "trace")[p]
      np.testing.assert_allclose(trace, m[p], atol=1e-5)
    masks = got
    assert conformance.inactive_are_zero(params, masks)
    found.append(masks)
  assert step._cache_size() == 1
  return found


# What the rules are made of, and what they lead to.


def top(x, k, among=True):
  best = np.argsort(-np.where(among, x, -np.inf).ravel(), kind="stable")[:k]
  return np.isin(np.arange(x.size), best).reshape(x.shape) & among


def top_of_all(w, k, among):
  """Of `a` and `b` together, by one threshold."""
  flat, where = (
    np.concatenate([np.ravel(tree[p]) for p in "ab"]) for tree in (w, among)
  )
  a, b = np.split(top(np.abs(flat), k, where), [48])
  return {"a": a.reshape(8, 6), "b": b.reshape(6, 4), "bias": np.True_}


def swapped(w, g, mask, share):
  n = int(share * mask.sum())
  keep = top(np.abs(w), mask.sum() - n, mask)
  return keep | top(np.abs(g), n, ~keep)


def left(t, begin, end):
  return (1 - min(max((t - begin) / (end - begin), 0), 1)) ** 3


def cosine(t):
  return 0.25 * (1 + np.cos(np.pi * t / STEPS))


def nnz(found):
  return [sparsejax.nnz(masks) for masks in found]


def moved(found):
  """The steps that have changed masks."""
  steps = enumerate(itertools.pairwise(found))
  return {t for t, pair in steps if not conformance.same(*pair)}


# AC/DC.


@pytest.mark.parametrize("fresh", [True, False])
def test_ac_dc_is_its_reference(fresh):
  """Dense, sparse from 3, dense from 6, sparse from 9: 18 of 72 weights."""

  def rule(t, w, g, masks, got):
    if t in (3, 9):
      return top_of_all(w, 18, EVERYTHING)
    return EVERYTHING if t == 6 else None

  tx = sparsejax.ac_dc(
    SGD, 0.75, phases=(3, 6, 9), fresh_moments=fresh, **OPTIONS
  )
  found = follow(tx, rule, restart=(6,) if fresh else ())
  assert nnz(found) == [72] * 4 + [18] * 3 + [72] * 3 + [18] * 4
  assert found[4]["a"].sum() != 12  # not a layer's own share


# GraNet.


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet_is_its_reference(initial):
  """One threshold, then every leaf regenerates, and does when all is pruned."""
  first = round(72 * (1 - initial))

  def total(t):
    return 18 + int((first - 18) * left(t, 2, 6))

  def rule(t, w, g, masks, got):
    if t < 2 or t % 2:
      return None
    new = top_of_all(w, total(t), masks)
    again = {p: swapped(w[p], g[p], new[p], cosine(t)) for p in SIZES}
    assert all(new[p].sum() == again[p].sum() for p in SIZES)
    return new | again

  tx = sparsejax.granet(
    SGD,
    0.75,
    begin=2,
    end=6,
    t_end=STEPS,
    delta_t=2,
    initial_sparsity=initial,
    **OPTIONS,
  )
  found = follow(tx, rule)
  assert nnz(found) == [total(2)] * 5 + [total(4)] * 2 + [total(6)] * 7
  assert total(6) == 18
  assert 8 in moved(found)


# MEST.


@pytest.mark.parametrize(
  ("sparsity", "fraction", "surplus", "weight", "regrow"),
  [
    (0.75, 0.25, 0.0, 0.0, True),
    (0.75, 0.2, 0.5, 0.5, True),
    (0.4, 0.0, 0.5, 0.0, False),  # there is less room than is to be grown
  ],
)
def test_mest_is_its_reference(sparsity, fraction, surplus, weight, regrow):
  """Full stages until step 9 of T_end = 12, half from there, 0 at the end."""
  budgets = {p: round(n * (1 - sparsity)) for p, n in SIZES.items()}

  def stage(t):
    return 1 if t < 9 else 0.5 if t < 11 else 0

  def kept(p, t):
    return budgets[p] + int(stage(t) * surplus * budgets[p])

  def rule(t, w, g, masks, got):
    if t % 2 or not t:
      return None
    for p, budget in budgets.items():
      stay = budget - int(stage(t) * fraction * budget)
      if not regrow:
        stay = max(stay, kept(p, t) - (~masks[p]).sum())
        assert (got[p] & masks[p]).sum() == stay
      score = np.abs(w[p]) + weight * np.abs(g[p])
      assert got[p][top(score, stay, masks[p])].all()
      assert got[p].sum() == kept(p, t)
    return got

  tx = sparsejax.mest(
    SGD,
    sparsity,
    t_end=12,
    delta_t=2,
    fraction=fraction,
    surplus=surplus,
    gradient_weight=weight,
    regrow=regrow,
    **OPTIONS,
  )
  found = follow(tx, rule)
  stages = [sum(kept(p, t) for p in SIZES) for t in (0, 10, 12)]
  assert nnz(found) == [stages[0]] * 11 + [stages[1]] * 2 + [stages[2]]
  assert stages[2] == sum(budgets.values())
  assert (stages[0] > stages[1] > stages[2]) == (surplus > 0)
  assert (12 in moved(found)) == (surplus > 0)
  assert len(moved(found)) > 3


@pytest.mark.slow
def test_mest_of_several_seeds_in_one_scan():
  """Masks and growth are drawn from each one's key."""
  targets = jax.tree.map(lambda *x: jnp.stack(x), *TARGETS[:3])

  def train(key):
    tx = sparsejax.mest(SGD, 0.75, key=key, t_end=4, delta_t=2)

    def body(now, target):
      return train_step(tx, *now, target), None

    (params, state), _ = jax.lax.scan(body, sparsejax.init(tx, W), targets)
    return params, sparsejax.get_masks(state)

  keys = jax.random.split(KEY, 2)
  params, masks = together = jit(jax.vmap(train))(keys)
  alone = jit(train)
  for n, key in enumerate(keys):
    mine = jax.tree.map(lambda x, n=n: x[n], together)
    jax.tree.map(np.testing.assert_array_equal, mine, alone(key))
  assert np.any(masks["a"][0] != masks["a"][1])
  assert np.all((params["a"] != 0) == masks["a"])


# SRigL.


def test_srigl_by_hand():
  """[inputs, neurons]; half of the active weights move."""
  hidden = np.array([[3, 1, 0], [2, 0, 0.2], [0, 0.9, 0], [0, 0, 0.1]], "f")
  out = np.array([[5, 0.2], [4, 0], [0, 0.1], [0, 0]], "f")
  params = {"hidden": jnp.asarray(hidden), "out": jnp.asarray(out)}
  tx = sparsejax.srigl(
    optax.sgd(0.0),
    0.5,
    key=KEY,
    t_end=9,
    delta_t=1,
    fraction=lambda step: 0.5,
    never_ablate=distributions.matching("^out"),
    masks=jax.tree.map(lambda x: x != 0, params),
  )
  update = jit(functools.partial(tx.update, update_masks=True))
  params, state = sparsejax.init(tx, params)
  # Hidden: 3, 2 and 1 are kept. The largest |g| are 9, 8 and 7, of neuron 0,
  # which has them already but for the 9. So neuron 2 has nothing salient, and
  # the two others 6 / 2 weights each: neuron 0 its 3, 2 and the 9; neuron 1 its
  # 1, and the best |g|, .3 and .2, so that .9 goes.
  # Out: 5 and 4 are kept, and neuron 0 has the largest |g|. Neuron 1 has
  # nothing salient, but stays, with the best |g| that it has.
  grads = {
    "hidden": [[8, 5, 1], [-7, 0.3, 2], [9, 0.1, 3], [0, -0.2, 4]],
    "out": [[9, 1], [9, -2], [8, 3], [7, 0]],
  }
  grads = {p: jnp.array(g, "f") for p, g in grads.items()}
  change, state = update(grads, state, params)
  masks = sparsejax.get_masks(state)
  now = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
  np.testing.assert_array_equal(masks["hidden"], now)
  np.testing.assert_array_equal(masks["out"], [[1, 0], [1, 1], [0, 1], [0, 0]])
  params = optax.apply_updates(params, change)
  np.testing.assert_array_equal(params["hidden"], np.where(now, hidden, 0))
  # The ablated neuron now has the largest |g|, and comes back: two each.
  back = [[0, 5, 7], [0, 0.3, 9], [6, 0.5, -8], [0, -0.2, 0]]
  _, state = update(grads | {"hidden": jnp.array(back, "f")}, state, params)
  now = [[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]]
  np.testing.assert_array_equal(sparsejax.get_masks(state)["hidden"], now)


def test_srigl_is_its_reference():
  """Two weights of a neuron have to be salient; `b` keeps its neurons."""
  budgets, living = {"a": 16, "b": 8}, []

  def leaf(w, g, mask, budget, n, whole):
    inputs, neurons = w.shape
    keep = top(np.abs(w), mask.sum() - n, mask)
    salient = (keep | top(np.abs(g), n)).sum(0)
    least = budget // neurons
    order = np.argsort(-salient, kind="stable")
    enough = neurons if whole else np.sum(salient >= least)
    alive = order[: max(enough, -(-budget // inputs))]
    living = mask & np.isin(np.arange(neurons), alive)
    keep = top(np.abs(w), mask.sum() - n, living)
    each = min(budget // len(alive), inputs)
    if len(alive) == neurons:
      each = round(budget / neurons)
    new = np.zeros_like(mask)
    for j in alive:
      new[:, j] = top(np.abs(w[:, j]), each, keep[:, j])
      new[:, j] |= top(np.abs(g[:, j]), each - new[:, j].sum(), ~new[:, j])
    return new

  def rule(t, w, g, masks, got):
    if t % 2 or not t:
      return None
    for p, k in budgets.items():
      inputs = got[p].sum(0)
      alive = inputs > 0
      assert np.ptp(inputs[alive]) == 0
      each = round(k / alive.size) if alive.all() else k // alive.sum()
      assert inputs.max() == each
      living.append(alive.all())
      assert living[-1] or p == "a"
    n = {p: int(cosine(t) * masks[p].sum()) for p in budgets}
    return masks | {
      p: leaf(w[p], g[p], masks[p], k, n[p], p == "b")
      for p, k in budgets.items()
    }

  tx = sparsejax.srigl(
    SGD,
    2 / 3,
    t_end=STEPS,
    delta_t=2,
    fraction=0.5,
    ablation=1.0,
    never_ablate=distributions.matching("^b$"),
    **OPTIONS,
  )
  assert nnz(follow(tx, rule))[0] == 26
  assert not all(living)


def test_what_an_ablated_neuron_loses_is_among_what_is_dropped():
  """The authors' code sets its scores lowest, and keeps the best n - K then."""
  w = np.array([[3, 1, 0.1], [2, 0.9, 5], [0, 0, 0], [0, 0, 0]], "f")
  g = np.array([[0, 0.1, 0], [0, 9, 0], [0.2, 8, 0], [0.1, 7, 0]], "f")
  tx = sparsejax.srigl(
    optax.sgd(0.0),
    0.5,
    key=KEY,
    t_end=9,
    delta_t=1,
    fraction=lambda step: 0.5,
    ablation=1.0,
    never_ablate=lambda path, leaf: False,
    masks=jnp.asarray(w != 0),
  )
  params, state = sparsejax.init(tx, jnp.asarray(w))
  _, state = tx.update(jnp.asarray(g), state, params, update_masks=True)
  # 5, 3 and 2 are the best half of six; neuron 2 is ablated with one of two
  # salient weights. Then 3, 2 and 1 are kept, not 3 and 2.
  now = [[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)


@pytest.mark.slow
def test_the_fan_in_of_the_neurons_left_is_of_the_layers_own_budget():
  """204 of 204.8 weights over 28 of 64 neurons are 7 each, not (3 64) // 28."""
  w, g = (
    np.array(jax.random.normal(jax.random.key(i), (32, 64))) for i in (0, 1)
  )
  g[:, 28:] = 0
  tx = sparsejax.srigl(
    optax.sgd(0.0),
    0.9,
    key=KEY,
    t_end=9,
    delta_t=1,
    fraction=lambda step: 1.0,
    never_ablate=lambda path, leaf: False,
  )
  params, state = sparsejax.init(tx, jnp.asarray(w))
  assert sparsejax.nnz(sparsejax.get_masks(state)) == 3 * 64
  assert int(state.mask_state.budget) == 205
  _, state = tx.update(jnp.asarray(g), state, params, update_masks=True)
  inputs = np.asarray(sparsejax.get_masks(state)).sum(0)
  np.testing.assert_array_equal(inputs, np.where(np.arange(64) < 28, 7, 0))


# RigL-ITOP, and moments that start again.


@pytest.mark.parametrize("restart", [(), (4, 7)])
def test_rigl_itop_is_its_reference(restart):
  """The gradient step is taken. At 7 masks do not move, so moments go on."""

  def rule(t, w, g, masks, got):
    if t % 2 or not t:
      return None
    new = {p: swapped(w[p], g[p], masks[p], cosine(t)) for p in SIZES}
    return masks | new

  options = {"restart": schedules.at(*restart)} if restart else {}
  tx = sparsejax.rigl(
    SGD,
    0.75,
    t_end=STEPS,
    delta_t=2,
    fraction=0.5,
    step_on_update=True,
    **OPTIONS,
    **options,
  )
  found = follow(tx, rule, restart=restart[:1])
  assert nnz(found) == [18] * 14
  assert {2, 4, 6} <= moved(found)


# Pruning: from given masks, and by one threshold.


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("dense", [False, True])
def test_gradual_pruning_from_given_masks(scope, dense):
  """Half of `a`, and all of `b`, or `b` as a dense leaf."""
  final = {"a": 12} if dense else {"a": 12, "b": 6}

  def fall(k, t):
    return k + int(k * left(t, 2, 10))

  def rule(t, w, g, masks, got):
    if t < 2 or t > 10 or t % 2:
      return None
    if scope == "global" and not dense:
      return top_of_all(w, fall(18, t), masks)
    return masks | {
      p: top(np.abs(w[p]), fall(k, t), masks[p]) for p, k in final.items()
    }

  half = np.random.default_rng(1).permutation(48).reshape(8, 6) < 24
  tx = sparsejax.gmp(
    SGD,
    0.75,
    begin=2,
    end=10,
    delta_t=2,
    initial_sparsity=0.5,
    scope=scope,
    masks=EVERYTHING | {"a": half} | ({"b": True} if dense else {}),
    **OPTIONS,
  )
  found = follow(tx, rule)
  assert nnz(found)[0] == (24 if dense else 48)
  assert nnz(found)[-1] == sum(final.values())


@pytest.mark.parametrize(
  "pattern", [None, "unstructured", patterns.unstructured()]
)
def test_best_by_one_threshold(pattern):
  """Ties go to the earlier leaf, budgets follow, one NaN holds all masks."""
  params = {"a": jnp.array([[3.0, 1, 2, 2]]), "b": jnp.array([[2.0, 0, 9, 0]])}
  update = updates.best(
    sparsity=0.5, score=scores.magnitude(), scope="global", pattern=pattern
  )
  state = update.init(KEY, params)
  np.testing.assert_array_equal(state.masks["a"], [[1, 0, 1, 1]])
  np.testing.assert_array_equal(state.masks["b"], [[0, 0, 1, 0]])
  assert jax.tree.map(int, state.budget) == {"a": 3, "b": 1}
  after = {"a": params["b"], "b": params["a"]}
  new = update.update(params, state, params, True, after=after)
  np.testing.assert_array_equal(new.masks["a"], [[1, 0, 1, 0]])
  np.testing.assert_array_equal(new.masks["b"], [[1, 0, 1, 0]])
  assert jax.tree.map(int, new.budget) == {"a": 2, "b": 2}
  after["b"] = after["b"].at[0, 1].set(jnp.nan)
  held = update.update(params, state, after, True)
  assert conformance.same(held, state._replace(refused=jnp.int32(1)))


@pytest.mark.parametrize(
  ("algorithm", "options", "message"),
  [
    ("ac_dc", {"phases": ()}, "wanted an odd number of steps"),
    ("ac_dc", {"phases": (3, 6)}, "wanted an odd number of steps"),
    ("ac_dc", {"phases": (6, 3, 9)}, "each after the one before"),
    ("granet", {"begin": 0, "end": 4000, "t_end": 4000}, "wanted a step after"),
    ("mest", {"t_end": 9, "delta_t": 2}, "wanted an end after the beginning"),
    ("srigl", {"t_end": 9}, "no never_ablate, wanted a predicate"),
    ("ac_dc", {"phases": (1,), "scope": "all"}, "scope='all', wanted 'layer'"),
    ("gmp", {"begin": 0, "end": 100, "scope": "all"}, "scope='all', wanted"),
    (
      "gmp",
      {"begin": 0, "end": 100, "scope": "global", "pattern": patterns.fan_in()},
      "scope='global' with a pattern",
    ),
  ],
)
def test_what_is_refused(algorithm, options, message):
  with pytest.raises(ValueError, match=message):
    getattr(sparsejax, algorithm)(SGD, 0.5, key=KEY, **options)


# Schedules, and programs.


def test_at_and_always():
  when = schedules.at(3, 8)
  assert [t for t in range(10) if when(t)] == [3, 8]
  assert when(np.int64(3)) is True
  assert when(4) is False
  assert np.flatnonzero(jax.vmap(when)(jnp.arange(10))).tolist() == [3, 8]
  assert not schedules.at()(jnp.int32(0))
  assert schedules.always(0) is True
  assert schedules.always(jnp.int32(5)) is True


def program(algorithm, *moves, **options):
  return algorithm(optax.adam(0.1), 0.75, **OPTIONS, **options), moves


PROGRAMS = {
  "ac_dc": program(sparsejax.ac_dc, 2, 4, 5, phases=(2, 4, 5)),
  "granet": program(
    sparsejax.granet, 1, 3, 5, 7, begin=1, end=5, t_end=8, delta_t=2
  ),
  "mest": program(sparsejax.mest, 3, 6, t_end=6, delta_t=3, surplus=0.5),
  "srigl": program(sparsejax.srigl, 2, 4, t_end=6, delta_t=2, ablation=0),
}


@pytest.mark.parametrize(
  "name", [slow("srigl"), slow("ac_dc"), "mest", slow("granet")]
)
def test_who_says_when_masks_move_changes_no_bit(name):
  """Nor a way through the host, as through a checkpoint."""
  tx, moves = PROGRAMS[name]
  steps = {
    now: jit(functools.partial(train_step, tx, update_masks=now))
    for now in (None, True, False)
  }
  params, state = mine = sparsejax.init(tx, W)
  for t in range(8):
    assert tx.moves(t) == (t in moves)
    params, state = steps[None](params, state, TARGETS[t])
    mine = steps[tx.moves(t)](*mine, TARGETS[t])
    assert conformance.same((params, state), mine)
    if t == 3:
      mine = jax.tree.map(np.array, mine)
