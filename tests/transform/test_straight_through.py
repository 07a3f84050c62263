"""Straight-through methods against loops in numpy, written from the papers."""

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
SHAPES = {"a": (8, 6), "b": (12, 4), "bias": (6,)}
W, *TARGETS = [
  {p: jnp.array(RNG.normal(size=s), "f") for p, s in SHAPES.items()}
  for _ in range(STEPS + 1)
]
KEPT = 12  # of the 48 weights of a leaf
SPARSE = {"sparsity": 0.75, "key": KEY, "distribution": distributions.uniform}
# Compiling takes most of the time of these tests. Optimized programs, too, may
# differ in a last bit where the same sum is part of another whole.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
jit = functools.partial(jax.jit, compiler_options=QUICK)


def train_step(tx, params, state, target, **options):
  """Of the loss |forward params - target|^2 / 2."""

  def loss(p):
    seen = sparsejax.forward_params(p, state)
    return sum(jnp.sum((seen[k] - target[k]) ** 2) / 2 for k in seen)

  change, state = tx.update(jax.grad(loss)(params), state, params, **options)
  return optax.apply_updates(params, change), state


def run(tx, steps=STEPS):
  """What every forward pass begins with, in one compilation."""
  params, state = sparsejax.init(tx, W)
  step = jit(functools.partial(train_step, tx))
  for target in TARGETS[:steps]:
    yield jax.device_get((params, state))
    params, state = step(params, state, target)
  assert step._cache_size() == 1


def follow(tx, reference):
  """Takes both through the same steps; how many weights have come back.

  `reference(w, sparse, targets)` is of one leaf, and yields what each forward
  pass begins with: weights and mask.
  """
  wanted = {
    p: reference(np.array(w, np.float64), w.ndim > 1, [t[p] for t in TARGETS])
    for p, w in W.items()
  }
  back, before = 0, sparsejax.get_masks(tx.init(W))
  for params, state in run(tx):
    masks = sparsejax.get_masks(state)
    for p, steps in wanted.items():
      w, mask = next(steps)
      np.testing.assert_array_equal(masks[p], mask)
      np.testing.assert_allclose(params[p], w, atol=1e-5)
      back += np.sum(masks[p] & ~before[p])
    before = masks
  return back


# What the references are made of.


def top(x, k):
  best = np.argsort(-x.ravel(), kind="stable")[:k]
  return np.isin(np.arange(x.size), best).reshape(x.shape)


def two_of_four(x):
  """Along the inputs, of [inputs, outputs]."""
  groups = x.reshape(-1, 4, x.shape[1])
  ranks = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1)
  return (ranks < 2).reshape(x.shape)


def rise(t, begin, end):
  return 1 - (1 - min(max((t - begin) / (end - begin), 0), 1)) ** 3


def sgd(rate, momentum=0.0, decay=0.0):
  m = 0.0

  def change(g, w):
    nonlocal m
    m = momentum * m + g + decay * w
    return -rate * m

  return change


def adam(rate):
  m = v = t = 0

  def change(g, w):
    nonlocal m, v, t
    m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, t + 1
    return -rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

  return change


def l2(rate, momentum, decay):
  inner = optax.sgd(rate, momentum=momentum)
  return optax.chain(optax.add_decayed_weights(decay), inner)


# STE and SR-STE.


@pytest.mark.parametrize(
  ("inner", "optimizer", "delta_t", "cubic"),
  [
    (l2(0.1, 0.9, 0.01), lambda: sgd(0.1, 0.9, 0.01), 1, None),
    (optax.adam(0.1), lambda: adam(0.1), 3, None),
    (optax.sgd(0.2), lambda: sgd(0.2), 2, (2, 10)),
  ],
)
def test_ste_is_its_reference(inner, optimizer, delta_t, cubic):
  def reference(w, sparse, targets):
    change, mask = optimizer(), np.True_
    for t, target in enumerate(targets):
      # From a quarter of zeros to three quarters of them.
      left = 1 - rise(t, *cubic) if cubic else 0
      if sparse and t % delta_t == 0:
        mask = top(np.abs(w), KEPT + int(left * (36 - KEPT)))
      yield w, mask
      w = w + change(w * mask - target, w)  # of all weights

  options = {"delta_t": delta_t}
  if cubic:
    options |= {"begin": 2, "end": 10, "initial_sparsity": 0.25}
  assert follow(sparsejax.ste(inner, **SPARSE, **options), reference) > 5


@pytest.mark.parametrize("pattern", [None, patterns.unstructured()])
def test_sr_ste_is_its_reference(pattern):
  """g + lambda (1 - m) w, then momentum and weight decay of all weights."""

  def reference(w, sparse, targets):
    change, mask = sgd(0.1, 0.9, 0.03), np.True_
    for target in targets:
      if sparse:
        mask = top(np.abs(w), KEPT) if pattern else two_of_four(np.abs(w))
      yield w, mask
      g = w * mask - target
      w = w + change(g + 0.2 * (1 - mask) * w, w)

  sparse = SPARSE if pattern else SPARSE | {"sparsity": 0.5}
  tx = sparsejax.sr_ste(
    l2(0.1, 0.9, 0.03), pattern=pattern, decay=0.2, **sparse
  )
  assert follow(tx, reference) > 5


@pytest.mark.slow
def test_sr_ste_decays_gradients_by_2e_4_where_nothing_is_said():
  tx = sparsejax.sr_ste(optax.identity(), 0.5, key=KEY)
  params, state = sparsejax.init(tx, W)
  seen, _ = tx.update(TARGETS[0], state, params)
  for p, mask in sparsejax.get_masks(state).items():
    extra = jnp.where(mask, 0, jnp.float32(2e-4) * W[p])
    np.testing.assert_array_equal(seen[p], TARGETS[0][p] + extra)


# Top-KAST: a quarter is seen, half is trained, D = M = 1 / 4.


def top_kast(inner, delta_t, t_end):
  return sparsejax.top_kast(
    inner,
    backward_sparsity=0.5,
    delta_t=delta_t,
    t_end=t_end,
    penalty=0.05,
    **SPARSE,
  )


@pytest.mark.parametrize(("delta_t", "t_end"), [(1, None), (3, 6)])
def test_top_kast_is_its_reference(delta_t, t_end):
  def reference(w, sparse, targets):
    a, b, m = np.True_, np.True_, np.zeros(w.shape)
    for t, target in enumerate(targets):
      if sparse and t % delta_t == 0 and t <= (t_end or t):
        a = top(np.abs(w), KEPT)
        b = a if t == t_end else top(np.abs(w), 2 * KEPT)
        m = np.where(b, m, 0)
      yield w, a
      penalty = 0.05 * np.where(a, w, w / 0.25) if sparse else 0
      m = np.where(b, 0.9 * m + w * a - target + penalty + 0.02 * w, 0)
      w = w - 0.1 * m

  tx = top_kast(l2(0.1, 0.9, 0.02), delta_t, t_end)
  assert follow(tx, reference) > 5


@pytest.mark.parametrize(
  ("inner", "delta_t", "t_end"),
  [(l2(0.1, 0.9, 0.05), 1, 20), (optax.adamw(0.1, weight_decay=0.1), 2, 8)],
)
def test_top_kast_trains_nothing_outside_its_larger_set(inner, delta_t, t_end):
  entered = 0
  steps = enumerate(itertools.pairwise(run(top_kast(inner, delta_t, t_end))))
  for t, ((w, state), (after, later)) in steps:
    a = sparsejax.get_masks(state)
    b, new = (s.mask_state.scores.backward for s in (state, later))
    for p in "ab":
      assert a[p].sum() == KEPT
      assert b[p].sum() == (2 * KEPT if t < t_end else KEPT)
      assert b[p][a[p]].all()
      assert after[p][~b[p]].tobytes() == w[p][~b[p]].tobytes()
      assert (after[p][b[p]] != w[p][b[p]]).all()
      entered += (new[p] & ~b[p]).sum()
      moments = jax.tree.leaves(later.inner_state)
      moments = [m for m in moments if np.shape(m) == SHAPES[p]]
      assert moments
      # None of those outside, and none yet of those that enter.
      assert all(np.array_equal(m != 0, new[p] & b[p]) for m in moments)
    if t >= t_end:
      assert conformance.same(a, sparsejax.get_masks(later))
  assert entered > 5


# Movement pruning.


@pytest.mark.parametrize(
  ("momentum", "optimizer", "score_optimizer", "delta_t"),
  [
    (0.0, optax.sgd(0.3), lambda: sgd(0.3), 1),
    (0.9, None, lambda: adam(0.01), 2),
  ],
)
def test_movement_is_its_reference(
  momentum, optimizer, score_optimizer, delta_t
):
  """S by w dL/dw of the old weights, kept by S itself and not by |S|."""

  def reference(w, sparse, targets):
    change, learn = sgd(0.1, momentum), score_optimizer()
    s, mask = np.zeros(w.shape), np.True_
    for t, target in enumerate(targets):
      if sparse and t % delta_t == 0:
        mask = top(s, KEPT + int((1 - rise(t, 2, 8)) * (48 - KEPT)))
      yield w, mask
      g = w * mask - target
      s = s + learn(g * w, s)
      w = w + change(g * mask, w)

  tx = sparsejax.movement(
    optax.sgd(0.1, momentum=momentum),
    begin=2,
    end=8,
    delta_t=delta_t,
    optimizer=optimizer,
    **SPARSE,
  )
  assert follow(tx, reference) > 5


@pytest.mark.parametrize(("least", "delta_t"), [(0.0, 1), (0.1, 2)])
def test_soft_movement_is_its_reference(least, delta_t):
  """Two sparse leaves: the penalty is the mean over them of sigmoid(S)."""
  kept = []

  def reference(w, sparse, targets):
    s, mask, floor = np.zeros(w.shape), np.True_, int(np.ceil(least * w.size))
    for t, target in enumerate(targets):
      sigmoid = 1 / (1 + np.exp(-s))
      if sparse and t % delta_t == 0:
        mask = sigmoid > 0.2 * rise(t, 1, 9)
        mask = top(s, floor) if mask.sum() < floor else mask
        kept.append(mask.sum())
      yield w, mask
      g = w * mask - target
      slope = 300 * rise(t, 1, 9) * sigmoid * (1 - sigmoid) / w.size / 2
      s = s - 0.4 * (g * w + slope)
      w = w - 0.1 * g * mask

  tx = sparsejax.soft_movement(
    optax.sgd(0.1),
    key=KEY,
    begin=1,
    end=9,
    threshold=0.2,
    penalty=300.0,
    least=least,
    delta_t=delta_t,
    optimizer=optax.sgd(0.4),
  )
  follow(tx, reference)
  assert kept[0] == 48
  assert min(kept) == (5 if least else 0)


# STR.


def test_str_is_the_explicit_reparameterisation():
  """The gradients of sign(w) relu(|w| - sigmoid(s)) by w and by s."""

  def net(seen, x):
    hidden = jnp.tanh(x @ seen["a"] + seen["bias"])
    return jnp.sum((hidden @ seen["c"]) ** 2 - hidden[:, :3])

  def explicit(both, x):
    def leaf(w, s):
      return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))

    seen = {p: leaf(both["w"][p], s) for p, s in both["s"].items()}
    return net(both["w"] | seen, x)

  @jit
  def wanted(both, moments, x):
    grads = jax.grad(explicit)(both, x)
    moments = jax.tree.map(
      lambda m, g, p: 0.8 * m + g + 0.02 * p, moments, grads, both
    )
    return jax.tree.map(lambda p, m: p - 0.05 * m, both, moments), moments

  @jit
  def step(params, state, x):
    grads = jax.grad(lambda p: net(sparsejax.forward_params(p, state), x))
    change, state = tx.update(grads(params), state, params)
    return optax.apply_updates(params, change), state

  inner = l2(0.05, 0.8, 0.02)
  tx = sparsejax.str_(inner, key=KEY, optimizer=inner, initial=-2.0)
  first = {"a": W["a"], "bias": W["bias"], "c": W["b"][:6, :3] / 2}
  params, state = sparsejax.init(tx, first)
  both = {"w": first, "s": {p: jnp.float32(-2) for p in "ac"}}
  moments, nnz = jax.tree.map(jnp.zeros_like, both), []
  for t in range(8):
    masks, raw = sparsejax.get_masks(state), state.mask_state.scores.raw
    nnz.append(sparsejax.nnz(masks))
    for forward in (
      sparsejax.forward_params,
      jax.jit(sparsejax.forward_params),
    ):
      seen = forward(params, state)
      for p in "ac":
        w, limit = np.array(params[p]), np.array(jax.nn.sigmoid(raw[p]))
        exact = np.sign(w) * np.maximum(np.abs(w) - limit, 0)
        np.testing.assert_array_equal(seen[p], exact)
        np.testing.assert_array_equal(masks[p], exact != 0)
      assert conformance.same(seen["bias"], params["bias"])
    x = jnp.asarray(np.random.default_rng(t).normal(size=(5, 8)), "f")
    params, state = step(params, state, x)
    both, moments = wanted(both, moments, x)
    for p, w in both["w"].items():
      np.testing.assert_allclose(params[p], w, atol=2e-6)
    for p, s in both["s"].items():
      np.testing.assert_allclose(state.mask_state.scores.raw[p], s, atol=2e-6)
      assert abs(s + 2) > 0.01
  assert len(set(nnz)) > 2


def test_str_thresholds_far_below_move_by_weight_decay_alone():
  tx = sparsejax.str_(
    optax.sgd(0.1), key=KEY, optimizer=l2(1.0, 0.0, 0.5), initial=-3200.0
  )
  for t, (params, state) in enumerate(run(tx, 4)):
    assert state.mask_state.scores.raw["a"] == -3200 * 0.5**t
    seen = sparsejax.forward_params(params, state)
    assert conformance.same(seen, jax.tree.map(jnp.asarray, params))


# `forward_params`, and `straight_through` itself.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forward_params_are_masked_exactly_with_the_identity_as_gradient(dtype):
  """At any magnitude: nothing is lost in a difference of large numbers."""
  scale = 10.0 ** np.arange(-24, 24).reshape(8, 6)
  params = {"a": jnp.asarray(W["a"] * scale, dtype), "bias": W["bias"]}
  weights = {"a": TARGETS[0]["a"].astype(dtype), "bias": TARGETS[0]["bias"]}
  params, state = sparsejax.init(
    sparsejax.ste(optax.sgd(0.1), 0.5, key=KEY), params
  )
  mask = top(np.abs(np.asarray(params["a"], "f")), 24)
  wanted = params | {"a": jnp.where(mask, params["a"], 0)}
  for forward in (sparsejax.forward_params, jax.jit(sparsejax.forward_params)):
    seen, back = jax.vjp(lambda p, f=forward: f(p, state), params)
    assert conformance.same(seen, wanted)
    assert conformance.same(back(weights)[0], weights)


def labels(tree):
  return {p: {"a": "one", "b": "two"}.get(p, "rest") for p in tree}


def test_forward_params_through_wrappers():
  soft = sparsejax.str_(
    optax.sgd(0.1), key=KEY, optimizer=optax.sgd(0.1), initial=-1.0
  )
  ste = sparsejax.ste(optax.sgd(0.1), **SPARSE)
  parts = {"one": ste, "two": soft, "rest": optax.sgd(0.1)}
  tx = optax.chain(optax.clip(1.0), optax.partition(parts, labels))
  tx = optax.MultiSteps(tx, 2).gradient_transformation()
  params, state = sparsejax.init(tx, W)
  assert conformance.same(params, W)
  seen = sparsejax.forward_params(params, state)
  w, limit = np.array(W["b"]), np.array(jax.nn.sigmoid(jnp.float32(-1)))
  np.testing.assert_array_equal(
    seen["a"], np.where(top(np.abs(W["a"]), KEPT), W["a"], 0)
  )
  np.testing.assert_array_equal(
    seen["b"], np.sign(w) * np.maximum(np.abs(w) - limit, 0)
  )
  assert conformance.same(seen["bias"], W["bias"])


def test_zeros_are_enforced_in_one_part_and_only_seen_in_another():
  make = {"one": sparsejax.ste, "two": sparsejax.static}
  parts = {name: f(optax.sgd(0.1), **SPARSE) for name, f in make.items()}
  parts["rest"] = optax.sgd(0.1)
  params, state = sparsejax.init(optax.partition(parts, labels), W)
  masks = sparsejax.get_masks(state)
  assert conformance.same(params["a"], W["a"])
  np.testing.assert_array_equal(params["b"] != 0, masks["b"])
  assert sparsejax.nnz(masks) == 2 * KEPT


@pytest.mark.parametrize("given", [{}, {"step_on_update": True}])
def test_sparsify_without_zeros_is_straight_through(given):
  """Masks for steps 2 and 4 are chosen in steps 1 and 3."""
  inner = optax.adam(optax.exponential_decay(0.1, 1, 0.5))
  update = updates.best(sparsity=0.5, score=scores.magnitude())
  options = {"when": schedules.at(2, 4), "key": KEY}
  tx = sparsejax.sparsify(inner, update, enforce=False, **options, **given)
  options["step_on_update"] = bool(given)
  other = sparsejax.straight_through(inner, update, **options)
  for one in (tx, other):
    assert [t for t in range(9) if one.moves(t)] == [1, 3]
  steps = list(run(tx, 6))
  assert all(map(conformance.same, steps, run(other, 6)))
  moved = set()
  for t, (now, after) in enumerate(itertools.pairwise(steps)):
    stays = t in (1, 3) and not given
    assert conformance.same(now[0], after[0]) == stays
    if not conformance.same(*(sparsejax.get_masks(s) for _, s in (now, after))):
      moved.add(t)
    moments, schedule = after[1].inner_state
    assert schedule.count == t + 1
    assert moments.count == t + 1 - (0 if given else (t >= 1) + (t >= 3))
  assert moved
  assert moved <= {1, 3}


@pytest.mark.parametrize(
  ("algorithm", "options", "message"),
  [
    ("ste", {"begin": 3}, "begin=3, end=None: wanted both steps"),
    ("top_kast", {"backward_sparsity": 0.8}, "wanted at most 0.5"),
    (
      "top_kast",
      {"backward_sparsity": 0.2, "delta_t": 2, "t_end": 7},
      "wanted an end after the beginning",
    ),
    ("sr_ste", {"sparsity": 0.75}, "sparsity"),
  ],
)
def test_what_is_refused(algorithm, options, message):
  options = {"sparsity": 0.5, "key": KEY} | options
  with pytest.raises(ValueError, match=message):
    getattr(sparsejax, algorithm)(optax.sgd(0.1), **options).init(W)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_soft_movement_refuses_a_threshold_that_is_none(threshold):
  with pytest.raises(ValueError, match=r"wanted one in \(0, 1\)"):
    sparsejax.soft_movement(
      optax.sgd(0.1), key=KEY, begin=0, end=1, threshold=threshold
    )


PROGRAMS = {
  "ste": (sparsejax.ste(optax.adam(0.1), delta_t=2, **SPARSE), [1, 3, 5, 7]),
  "top_kast": (top_kast(optax.adam(0.1), 3, 6), [2, 5]),
  "soft_movement": (
    sparsejax.soft_movement(
      optax.adam(0.1), key=KEY, begin=0, end=4, delta_t=2
    ),
    [1, 3, 5, 7],
  ),
}


@pytest.mark.parametrize(
  "name", ["top_kast", slow("ste"), slow("soft_movement")]
)
def test_who_says_when_masks_move_changes_no_bit(name):
  """Nor a way through the host, as through a checkpoint; and in a scan."""
  tx, moves = PROGRAMS[name]
  steps = {
    now: jit(functools.partial(train_step, tx, update_masks=now))
    for now in (None, True, False)
  }
  first = params, state = mine = sparsejax.init(tx, W)
  for t in range(8):
    assert tx.moves(t) == (t in moves)
    params, state = steps[None](params, state, TARGETS[t])
    mine = steps[tx.moves(t)](*mine, TARGETS[t])
    assert conformance.same((params, state), mine)
    if t == 4:
      mine = jax.tree.map(np.array, mine)
  targets = jax.tree.map(lambda *x: jnp.stack(x), *TARGETS[:8])
  mine, _ = jit(
    lambda first: jax.lax.scan(
      lambda now, target: (train_step(tx, *now, target), None), first, targets
    )
  )(first)
  assert conformance.same((params, state), mine)
