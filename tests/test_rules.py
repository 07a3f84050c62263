"""The rules that make sparse training right, each with what breaks it."""

import collections
import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax
from sparsejax import distributions, schedules, scores, updates
from tests.conformance import table as conformance
from tests.marks import slow

pytestmark = pytest.mark.core

KEY = jax.random.key(0)


def _prescribed(*sequence):
  """A mask update that goes through given masks, one at every update."""
  start = updates.fixed(sequence[0])
  later = [updates.fixed(s).init(None, s).masks for s in sequence]

  def init(key, params):
    del key
    state = start.init(None, params)
    return state._replace(scores=jnp.zeros([], jnp.int32))

  def update(grads, state, params, now):
    del grads, params
    if not now:
      return state
    turn = state.scores + 1
    masks = jax.tree.map(lambda *ms: jnp.stack(ms)[turn], *later)
    return state._replace(masks=masks, scores=turn)

  return updates.MaskUpdate(init, update)


def _primitives(jaxpr, *, inside=True):
  """Names of the primitives of a jaxpr; `inside` those of its parts too."""
  names = []
  for eqn in jaxpr.eqns:
    names.append(eqn.primitive.name)
    if eqn.primitive.name == "cond" and not inside:
      continue
    for part in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      part = getattr(part, "jaxpr", part)
      if hasattr(part, "eqns"):
        names += _primitives(part, inside=inside)
  return names


def _conds(jaxpr):
  """The branches of outermost `cond`s, one for each kind of device."""
  for eqn in jaxpr.eqns:
    is_cond = eqn.primitive.name == "cond"
    branches = [b.jaxpr for b in eqn.params.get("branches", ()) if is_cond]
    if eqn.params.get("branches_platforms"):
      for branch in branches:
        yield from _conds(branch)
    elif is_cond:
      yield branches


def _step(tx, **options):
  def step(params, state, grads):
    change, state = tx.update(grads, state, params, **options)
    return optax.apply_updates(params, change), state

  return step


def _bools(*rows):
  return np.array(rows, bool)


# Rule 1: zeros are enforced through the update.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("wide", [False, True])
def test_rule_1_whatever_the_value_the_update_lands_on_zero(dtype, wide):
  # All finite values of 16 bits, or as many of 32.
  bits = np.arange(2**16, dtype=np.uint16)
  if dtype == jnp.float32:
    values = (bits.astype(np.uint32) * 65537).view(np.float32)
  else:
    values = bits.view(dtype)
  values = values[np.isfinite(values.astype("f"))]
  values = jnp.asarray(values[: len(values) // 2 * 2].reshape(2, -1))
  mask = np.arange(values.size).reshape(values.shape) % 3 == 0
  # Some optimizers give updates wider than the params.
  inner = optax.stateless(
    lambda g, p: jax.tree.map(lambda x: x.astype(jnp.float32) if wide else x, g)
  )
  tx = sparsejax.fixed(inner, mask)
  state = tx.init(values)  # Not applied yet: all weights are off zero.
  grads = jnp.full_like(values, 0.37)
  for step in (_step(tx), jax.jit(_step(tx))):
    params, _ = step(values, state, grads)
    assert params.dtype == dtype
    inactive = np.asarray(params)[~mask]
    assert not inactive.view(f"u{inactive.itemsize}").any()  # +0.0, all bits


def test_rule_1_the_gradient_of_the_zeros_is_the_dense_one():
  tx = sparsejax.static(optax.sgd(0.1), 0.5, key=KEY)
  params, state = sparsejax.init(tx, jnp.ones((4, 6)))
  assert sparsejax.forward_params(params, state) is params
  x = jnp.arange(1.0, 5.0)

  def loss(params):
    return jnp.sum(x @ sparsejax.forward_params(params, state))

  grads = jax.grad(loss)(params)
  np.testing.assert_array_equal(grads, jnp.tile(x[:, None], (1, 6)))


def test_rule_1_zeros_outlive_gradients_that_are_not_finite():
  tx = sparsejax.static(optax.adam(0.1), 0.5, key=KEY)
  params, state = sparsejax.init(tx, jnp.ones((4, 6)))
  grads = jnp.full_like(params, jnp.nan)
  params, state = jax.jit(_step(tx))(params, state, grads)
  mask = np.asarray(sparsejax.get_masks(state))
  assert (np.asarray(params)[~mask] == 0).all()


# Rule 2: the inner optimizer sees masked gradients only.


@pytest.mark.parametrize("update_masks", [False, True])
def test_rule_2_a_clipping_norm_counts_active_weights_only(update_masks):
  mask = _bools([1, 1, 0], [0, 0, 0])
  params = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
  grads = jnp.array([[0.6, 0.8, 100.0], [100.0, 0.0, 7.0]])
  tx = sparsejax.sparsify(
    optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
    updates.fixed(mask),
    when=schedules.never,
    key=None,
    step_on_update=True,
  )
  params, _ = _step(tx, update_masks=update_masks)(
    params, tx.init(params), grads
  )
  np.testing.assert_allclose(params[0], [0.4, 1.2, 0.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "lamb", "lion", "sgd"])
def test_rule_2_moments_of_inactive_weights_are_zero(name):
  inner = conformance.OPTIMIZERS[name]()
  tx = sparsejax.static(inner, 0.6, key=KEY)
  params, state = sparsejax.init(tx, conformance.params())
  masks = sparsejax.get_masks(state)
  step = jax.jit(_step(tx))
  for i in range(3):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = step(params, state, grads)

  def outside(moment, mask):
    return np.asarray(moment)[~np.broadcast_to(mask, moment.shape)]

  seen = optax.tree.map_params(
    inner,
    outside,
    state.inner_state,
    masks,
    transform_non_params=lambda x: np.zeros(0),
  )
  seen = jax.tree.leaves(seen)
  assert sum(x.size for x in seen)
  assert not any(x.any() for x in seen)


def test_rule_2_a_trust_ratio_counts_active_weights_only():
  """LAMB on a sparse layer steps as LAMB on the active weights alone."""
  mask = _bools([1, 0, 1, 0], [0, 1, 0, 0])
  rng = np.random.default_rng(0)
  params = jnp.asarray(np.where(mask, rng.normal(size=(2, 4)), 0), "f")
  tx = sparsejax.fixed(optax.lamb(0.1), mask)
  alone = optax.lamb(0.1)
  few = params[mask]
  state, few_state = tx.init(params), alone.init(few)
  for _ in range(4):
    grads = jnp.asarray(rng.normal(size=(2, 4)), "f")
    params, state = _step(tx)(params, state, grads)
    few, few_state = _step(alone)(few, few_state, grads[mask])
  np.testing.assert_allclose(params[mask], few, rtol=1e-5)


# Rule 3: moments are zeroed at newly grown weights, and kept elsewhere.

BEFORE = _bools([1, 1, 0, 0], [1, 0, 1, 0])
AFTER = _bools([1, 0, 1, 0], [0, 0, 1, 1])
KEPT = BEFORE & AFTER


def _moved(inner, params=None, tree=lambda x: x):
  """The inner states around a mask update; all moments were 1 before it."""
  params = jnp.full((2, 4), 3.0) if params is None else params
  tx = sparsejax.sparsify(
    inner,
    _prescribed(tree(BEFORE), tree(AFTER)),
    when=schedules.never,
    key=None,
  )
  params, state = sparsejax.init(tx, params)
  old = jax.tree.map(
    lambda x: jnp.ones_like(x) if x.ndim else x, state.inner_state
  )
  state = state._replace(inner_state=old)
  grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
  _, state = _step(tx, update_masks=True)(params, state, grads)
  return old, state.inner_state


def test_rule_3_moments_start_anew_where_weights_grow():
  for inner in (optax.sgd(0.1, momentum=0.9), optax.adam(0.1), optax.lion(0.1)):
    _, state = _moved(inner)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (2, 4)]
    assert moments
    for moment in moments:
      np.testing.assert_array_equal(moment, KEPT)


def _moved_in_tree(inner):
  params = {"bias": jnp.ones(4), "kernel": jnp.full((2, 4), 3.0)}
  return _moved(inner, params, lambda m: {"bias": True, "kernel": m})


@pytest.mark.parametrize("name", ["masked", "partition"])
def test_rule_3_holes_of_masked_and_partitioned_moments_stay(name):
  old, new = _moved_in_tree(conformance.OPTIMIZERS[name]())
  assert jax.tree.structure(old) == jax.tree.structure(new)
  kernels = [x for x in jax.tree.leaves(new) if x.shape == (2, 4)]
  assert kernels
  for moment in kernels:
    np.testing.assert_array_equal(moment, KEPT)
  for moment in (x for x in jax.tree.leaves(new) if x.shape == (4,)):
    np.testing.assert_array_equal(moment, jnp.ones(4))


def test_rule_3_factored_moments_stay_as_they_are():
  inner = optax.adafactor(0.1, min_dim_size_to_factor=2)
  old, new = _moved_in_tree(inner)
  shapes = {x.shape for x in jax.tree.leaves(new)}
  assert (2,) in shapes  # There are factored moments.
  for x, y in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
    if x.ndim == 1:
      np.testing.assert_array_equal(x, y)


def test_rule_3_dropped_and_regrown_at_once_is_kept():
  params = jnp.array([[4.0, 3.0, 0.1, 2.0]] * 2)
  tx = sparsejax.rigl(
    optax.adam(0.01), 0.0, key=KEY, t_end=100, delta_t=1, fraction=0.3
  )
  params, state = sparsejax.init(tx, params)  # All eight are active.
  grads = jnp.array([[1.0, 2.0, 3.0, 4.0]] * 2)
  params, state = _step(tx, update_masks=False)(params, state, grads)
  before = state.inner_state[0]
  # The two of 0.1 are dropped, and grow back, being all that is left.
  after, state = _step(tx, update_masks=True)(params, state, grads)
  np.testing.assert_array_equal(after, params)
  np.testing.assert_array_equal(state.inner_state[0].mu, before.mu)
  np.testing.assert_array_equal(state.inner_state[0].nu, before.nu)
  assert (np.asarray(before.mu) != 0).all()


def test_rule_3_grown_moments_may_begin_with_the_gradient():
  tx = sparsejax.sparsify(
    optax.sgd(0.1, momentum=0.9),
    _prescribed(BEFORE, AFTER),
    when=schedules.never,
    key=None,
    grown_moments=lambda moment, grad: 0.5 * grad,
  )
  params, state = sparsejax.init(tx, jnp.ones((2, 4)))
  grads = jnp.full((2, 4), 8.0)
  _, state = _step(tx, update_masks=True)(params, state, grads)
  np.testing.assert_array_equal(
    state.inner_state[0].trace, np.where(AFTER & ~BEFORE, 4.0, 0.0)
  )


# Rule 4: a mask update replaces the gradient step; the learning rate goes on.


@pytest.mark.parametrize("name", conformance.OPTIMIZERS)
def test_rule_4_no_kept_weight_and_no_moment_moves(name):
  inner = conformance.OPTIMIZERS[name]()
  tx = sparsejax.rigl(inner, 0.6, key=KEY, delta_t=2, t_end=100)
  params, state = sparsejax.init(tx, conformance.params())
  for i in range(2):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = _step(tx, update_masks=False)(params, state, grads)
  grads = conformance.gradients(params, conformance.noise(params, 9))
  moved, after = _step(tx, update_masks=True)(params, state, grads)
  old, new = sparsejax.get_masks(state), sparsejax.get_masks(after)
  assert any(np.any(a != b) for a, b in _leaves(old, new))
  for p, q, a, b in _leaves(params, moved, old, new):
    np.testing.assert_array_equal(q, np.where(a & b, p, 0))

  def both(x, a, b):
    if sparsejax.masks.is_hole(x) or x.shape != a.shape:
      return x
    return jnp.where(a & b, x, 0)

  # Counters are those of the tests below.
  kept = [
    optax.tree.map_params(
      inner,
      both,
      s.inner_state,
      old,
      new,
      transform_non_params=lambda x: 0,
      is_leaf=sparsejax.masks.is_hole,
    )
    for s in (state, after)
  ]
  assert conformance.same(*kept)


def _leaves(*trees):
  return zip(*map(jax.tree.leaves, jax.device_get(trees)), strict=True)


def _lr(step):
  return 2.0 ** -jnp.asarray(step, jnp.float32)


def test_rule_4_the_learning_rate_follows_the_global_step():
  for inner in (
    optax.sgd(_lr),
    optax.inject_hyperparams(optax.sgd)(learning_rate=_lr),
    optax.chain(optax.identity(), optax.masked(optax.sgd(_lr), True)),
    optax.apply_if_finite(optax.sgd(_lr), 3),
  ):
    tx = sparsejax.rigl(inner, 0.5, key=KEY, delta_t=2, t_end=100)
    params, state = sparsejax.init(tx, jnp.ones((4, 4)))
    step = jax.jit(_step(tx))
    for t in range(8):
      before = params
      params, state = step(params, state, jnp.ones((4, 4)))
      mask = np.asarray(sparsejax.get_masks(state))
      change = np.asarray(before - params)[mask]
      expected = 0.0 if t in (2, 4, 6) else 2.0**-t
      np.testing.assert_array_equal(change, expected)


def test_rule_4_adams_own_count_goes_with_its_moments():
  tx = sparsejax.rigl(optax.adamw(_lr), 0.5, key=KEY, delta_t=2, t_end=100)
  params, state = sparsejax.init(tx, jnp.ones((4, 4)))
  step = jax.jit(_step(tx))
  for _ in range(8):  # Updates at 2, 4 and 6.
    params, state = step(params, state, jnp.ones((4, 4)))
  adam, _, schedule = state.inner_state
  assert int(adam.count) == 5
  assert int(schedule.count) == 8
  assert int(state.mask_state.count) == 8


def test_rule_4_inject_hyperparams_counts_every_step():
  inner = optax.inject_hyperparams(optax.adamw)(learning_rate=_lr)
  tx = sparsejax.rigl(inner, 0.5, key=KEY, delta_t=2, t_end=100)
  params, state = sparsejax.init(tx, jnp.ones((4, 4)))
  step = jax.jit(_step(tx))
  for t in range(7):
    params, state = step(params, state, jnp.ones((4, 4)))
    lr = state.inner_state.hyperparams["learning_rate"]
    assert float(lr) == 2.0**-t
  assert int(state.inner_state.count) == 7
  assert int(state.inner_state.inner_state[0].count) == 4


def test_rule_4_with_step_on_update_weights_do_move():
  tx = sparsejax.rigl(
    optax.sgd(0.5), 0.5, key=KEY, delta_t=2, t_end=9, step_on_update=True
  )
  params, state = sparsejax.init(tx, jnp.ones((4, 4)))
  moved, state = _step(tx, update_masks=True)(params, state, jnp.ones((4, 4)))
  mask = np.asarray(sparsejax.get_masks(state))
  np.testing.assert_array_equal(moved, np.where(mask, params - 0.5, 0))


# Rule 5: budgets are integers, met exactly at any size.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rule_5_more_weights_than_float32_counts(dtype):
  shape = (4097, 4099)  # 2**24 + 16587, odd
  tx = sparsejax.rigl(
    optax.identity(), 0.3, key=KEY, t_end=10, delta_t=1, fraction=0.3
  )
  # Of few values: more ties than any threshold separates.
  rows = jnp.arange(1, 4098, dtype=dtype)[:, None]
  params = jnp.broadcast_to(rows, shape)
  params, state = sparsejax.init(tx, params)
  wanted = 11755522  # 0.7 x 4097 x 4099 = 11755522.1
  first = sparsejax.get_masks(state)
  assert int(state.mask_state.budget) == wanted
  assert np.count_nonzero(first) == wanted
  grads = jnp.broadcast_to(rows[::-1], shape)
  move = jax.jit(_step(tx, update_masks=True))
  params, state = move(params, state, grads)
  masks = sparsejax.get_masks(state)
  assert np.count_nonzero(masks) == wanted
  assert sparsejax.nnz(masks) == wanted
  assert np.any(masks != first)


def test_rule_5_budgets_of_shapes_larger_than_memory():
  shape = jax.ShapeDtypeStruct((12_347, 50_021), jnp.bfloat16)
  size = 12_347 * 50_021
  for sparsity, kept in ((0.9, 61760929), (0.5, 308804644), (0.0, size)):
    assert abs(size * (1 - sparsity) - kept) <= 0.5
    for name in ("uniform", "erdos_renyi", "erdos_renyi_kernel"):
      distribution = getattr(distributions, name)
      got = distributions.budgets({"w": shape}, sparsity, distribution)
      assert got == {"w": kept}


def test_rule_5_many_updates_keep_the_budget_of_every_leaf():
  tx = sparsejax.set_(optax.sgd(0.1), 0.77, key=KEY, delta_t=1, t_end=50)
  params, state = sparsejax.init(tx, conformance.params())
  budget = jax.device_get(state.mask_state.budget)
  step = jax.jit(_step(tx))
  for i in range(50):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = step(params, state, grads)
    for mask, n in _leaves(sparsejax.get_masks(state), budget):
      assert mask.ndim == 0 or np.count_nonzero(mask) == n


# Rule 6: the mask of a leaf that stays dense is the scalar True.


@pytest.mark.parametrize("name", [*conformance.ALGORITHMS, "dense"])
def test_rule_6_masks_have_the_treedef_of_the_params(name):
  if name == "dense":
    tx = sparsejax.dense(optax.adam(0.1))
  else:
    tx = conformance.ALGORITHMS[name](optax.adam(0.1))
  params = conformance.small_params()
  masks = sparsejax.get_masks(tx.init(params))
  assert jax.tree.structure(masks) == jax.tree.structure(params)
  for mask, p in _leaves(masks, params):
    assert mask.dtype == bool
    assert mask.shape == (p.shape if p.ndim > 1 and name != "dense" else ())
    assert mask.ndim or mask


def test_rule_6_also_below_masked_and_partition():
  def sparse(tree):
    return jax.tree.map(lambda x: x.ndim > 1, tree)

  tx = optax.masked(sparsejax.static(optax.adam(0.1), 0.5, key=KEY), sparse)
  params = conformance.params()
  masks = sparsejax.get_masks(tx.init(params))
  assert jax.tree.structure(masks) == jax.tree.structure(params)
  assert masks["dense"]["bias"].shape == ()
  assert masks["dense"]["bias"]


# Rule 7: keys are explicit; draws go by key, leaf path and count.

ALGORITHMS = ("static", "set", "rigl")


def _digest(masks):
  return hashlib.sha256(
    b"".join(np.asarray(m).tobytes() for m in jax.tree.leaves(masks))
  ).hexdigest()


def _run(params, name="set", steps=5, key=KEY):
  tx = conformance.ALGORITHMS[name](optax.sgd(0.1), key)
  params, state = sparsejax.init(tx, params)
  step = jax.jit(_step(tx))
  for i in range(steps):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = step(params, state, grads)
  return params, state


def test_rule_7_no_algorithm_draws_without_a_key():
  inner = optax.sgd(0.1)
  for algorithm in (sparsejax.rigl, sparsejax.set_, sparsejax.snfs):
    with pytest.raises(TypeError, match="key"):
      algorithm(inner, 0.9, t_end=100)
  with pytest.raises(TypeError, match="key"):
    sparsejax.static(inner, 0.9)
  with pytest.raises(TypeError, match="key"):
    sparsejax.gmp(inner, 0.9, begin=0, end=100)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rule_7_another_order_of_the_leaves_gives_the_same_masks(name):
  leaves = conformance.params()["dense"] | {"b2": jnp.ones((8, 5))}
  found = {}
  for order in (["kernel", "bias", "b2"], ["b2", "kernel", "bias"]):
    tree = collections.OrderedDict((k, leaves[k]) for k in order)
    tx = conformance.ALGORITHMS[name](optax.sgd(0.1))
    params, state = sparsejax.init(tx, tree)
    assert [p.shape for p in jax.tree.leaves(params)] == [
      leaves[k].shape for k in order
    ]
    for _ in range(4):
      grads = jax.tree.map(lambda p: p + 1, params)
      params, state = _step(tx)(params, state, grads)
    masks = sparsejax.get_masks(state)
    found[order[0]] = {k: np.asarray(masks[k]) for k in leaves}
  for k in leaves:
    np.testing.assert_array_equal(found["kernel"][k], found["b2"][k])
  # Two leaves of one shape do not share their draws.
  assert np.any(found["b2"]["kernel"] != found["b2"]["b2"])


def test_rule_7_another_process_gives_the_same_masks():
  code = (
    "from tests import test_rules as t;"
    "from tests.conformance import table as c;"
    "p, s = t._run(c.small_params());"
    "print(t._digest(t.sparsejax.get_masks(s)))"
  )
  env = os.environ | {
    "PYTHONHASHSEED": "12345",
    "PYTHONPATH": os.pathsep.join(sys.path),
  }
  out = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True
  )
  assert out.returncode == 0, out.stderr
  _, state = _run(conformance.small_params())
  assert out.stdout.strip() == _digest(sparsejax.get_masks(state))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rule_7_keys_alone_decide(name):
  params = conformance.small_params()
  digests = [
    _digest(sparsejax.get_masks(_run(params, name, 3, key)[1]))
    for key in (jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(4))
  ]
  assert digests[0] == digests[1]
  assert digests[0] != digests[2]


def test_rule_7_growth_differs_from_update_to_update():
  score = scores.random()
  update = updates.drop_and_grow(
    sparsity=0.5, drop=scores.magnitude(), grow=score, fraction=0.5
  )
  params = jnp.ones((16, 16))
  state = update.init(KEY, params)
  grown = [
    update.update(params, state._replace(count=jnp.int32(i)), params, True)
    for i in (1, 1, 2)
  ]
  a, b, c = (_digest(s.masks) for s in grown)
  assert a == b != c


def test_rule_7_a_resumed_run_goes_on_as_if_never_stopped():
  tx = conformance.ALGORITHMS["set"](optax.sgd(0.1))
  params, state = _run(conformance.small_params(), steps=3)
  # A fresh transformation: nothing may be held outside of the state.
  params, state = jax.tree.map(jnp.array, jax.device_get((params, state)))
  for i in range(3, 7):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = jax.jit(_step(tx))(params, state, grads)
  whole = _run(conformance.small_params(), steps=7)
  assert conformance.same((params, state), whole)


# Rule 8: a Python bool is settled at trace time.


def _lowered(tx, params, **options):
  state = jax.eval_shape(tx.init, params)
  step = _step(tx, **options)
  return jax.make_jaxpr(step)(params, state, params).jaxpr, jax.jit(step).lower(
    params, state, params
  ).compile().as_text()


SELECTION = {"top_k_mask", "cond", "while", "sort", "scan", "random_bits"}
SELECTION |= {"threefry2x32"}


@pytest.mark.parametrize("name", ["set", "rigl", "snfs", "seft", "gmp"])
def test_rule_8_the_ordinary_step_holds_no_selection(name):
  tx = conformance.ALGORITHMS[name](optax.adam(0.1))
  params = conformance.small_params()
  jaxpr, hlo = _lowered(tx, params, update_masks=False)
  assert not SELECTION & set(_primitives(jaxpr))
  assert " while(" not in hlo
  assert " conditional(" not in hlo
  # The same for a population.
  state = jax.eval_shape(tx.init, params)
  many = jax.tree.map(
    lambda x: jnp.zeros((3, *x.shape), x.dtype), (params, state)
  )
  step = jax.vmap(_step(tx, update_masks=np.bool_(False)))
  jaxpr = jax.make_jaxpr(step)(*many, many[0]).jaxpr
  assert not SELECTION & set(_primitives(jaxpr))


def test_rule_8_none_asks_the_schedule_inside_a_cond():
  tx = conformance.ALGORITHMS["rigl"](optax.adam(0.1))
  jaxpr, _ = _lowered(tx, conformance.small_params())
  assert "cond" in _primitives(jaxpr, inside=False)
  assert "top_k_mask" not in _primitives(jaxpr, inside=False)
  assert "top_k_mask" in _primitives(jaxpr)


def test_rule_8_static_masks_need_no_cond():
  for name in ("static", "fixed"):
    tx = conformance.ALGORITHMS[name](optax.adam(0.1))
    jaxpr, _ = _lowered(tx, conformance.small_params())
    assert not SELECTION & set(_primitives(jaxpr))


def test_rule_8_the_bool_wins_over_the_schedule():
  tx = conformance.ALGORITHMS["rigl"](optax.sgd(0.1))
  params, state = _run(conformance.small_params(), "rigl", steps=2)
  grads = conformance.gradients(params, conformance.noise(params, 2))
  none, yes, no = (
    _step(tx, update_masks=m)(params, state, grads) for m in (None, True, False)
  )
  assert conformance.same(none, yes)  # Step 2 is one that updates.
  before = sparsejax.get_masks(state)
  assert conformance.same(sparsejax.get_masks(no[1]), before)
  assert not conformance.same(sparsejax.get_masks(yes[1]), before)


# Rule 9: stateless scores are computed inside the update branch.


def _marked(calls):
  """|w| with a primitive that nothing else has; counts its traces."""

  def update(g, p):
    calls.append(1)
    return jax.tree.map(lambda w: jnp.abs(jnp.arctan(w)), p)

  return optax.stateless(update)


def _scored_by(score):
  update = updates.drop_and_grow(
    sparsity=0.5, drop=score, grow=scores.gradient(), fraction=0.3
  )
  when = schedules.every(2, start=2)
  return sparsejax.sparsify(optax.sgd(0.1), update, when=when, key=KEY)


def test_rule_9_stateless_scores_cost_nothing_on_other_steps():
  calls = []
  tx = _scored_by(_marked(calls))
  params = conformance.small_params()
  jaxpr, _ = _lowered(tx, params, update_masks=False)
  assert not calls
  jaxpr, _ = _lowered(tx, params)
  assert calls
  assert "atan" not in _primitives(jaxpr, inside=False)
  branches = [[_primitives(b) for b in bs] for bs in _conds(jaxpr)]
  assert branches
  for ordinary, moving in branches:
    assert "atan" not in ordinary
    assert "atan" in moving


def test_rule_9_scores_with_a_state_follow_every_step():
  tx = _scored_by(scores.smoothed(_marked([]), 0.5))
  jaxpr, _ = _lowered(tx, conformance.small_params(), update_masks=False)
  assert "atan" in _primitives(jaxpr)


# Rule 10: what is not finite never enters a mask.


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", ["rigl", "snfs", "seft"])
def test_rule_10_a_leaf_with_bad_scores_stays_and_is_counted(name, bad):
  tx = conformance.ALGORITHMS[name](optax.adam(0.1))
  params, state = sparsejax.init(tx, conformance.params())
  before = jax.device_get(sparsejax.get_masks(state))
  grads = conformance.gradients(params, conformance.noise(params, 0))
  # One inactive weight's gradient: nothing else would notice it.
  where = tuple(np.argwhere(~before["conv"])[0])
  bad_grads = grads | {"conv": grads["conv"].at[where].set(bad)}
  step = jax.jit(_step(tx, update_masks=True))
  moved, state = step(params, state, bad_grads)
  masks = jax.device_get(sparsejax.get_masks(state))
  np.testing.assert_array_equal(masks["conv"], before["conv"])
  np.testing.assert_array_equal(moved["conv"], params["conv"])
  assert np.any(masks["dense"]["kernel"] != before["dense"]["kernel"])
  assert int(state.mask_state.refused) == 1
  for leaf in jax.tree.leaves((moved, state.inner_state)):
    assert np.isfinite(leaf).all()
  if name == "rigl":  # Its scores have no memory: the next one is good.
    _, state = step(moved, state, grads)
    assert int(state.mask_state.refused) == 1
    masks = sparsejax.get_masks(state)
    assert np.any(masks["conv"] != before["conv"])


def test_rule_10_pruning_waits_too():
  update = updates.prune(
    sparsity=0.5,
    score=scores.sensitivity(),
    progress=schedules.cubic(0, 1),
  )
  params = jnp.ones((4, 4))
  state = update.init(KEY, params)._replace(count=jnp.int32(1))
  bad = jnp.ones((4, 4)).at[0, 0].set(jnp.nan)
  state = update.update(bad, state, params, True)
  assert int(state.refused) == 1
  assert sparsejax.nnz(state.masks) == 16
  state = update.update(params, state, params, True)
  assert int(state.refused) == 1
  assert sparsejax.nnz(state.masks) == 8


# Rule 11: masks have their parameter's sharding, and selection only counts.

COMMUNICATION = (
  "all-gather",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
  " sort(",
  " gather(",
)


@pytest.mark.mesh
@pytest.mark.parametrize("axis_type", [AxisType.Auto, slow(AxisType.Explicit)])
@pytest.mark.parametrize(
  "name", [slow("set"), "rigl", slow("seft"), slow("gmp")]
)
def test_rule_11_sharded_masks_without_gathering(name, axis_type):
  assert jax.device_count() == 8
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
  specs = {"bias": P("y"), "both": P("x", "y"), "one": P(None, "x")}
  shapes = {"bias": (8,), "both": (8, 16), "one": (6, 8)}
  params = {
    k: jax.random.normal(jax.random.key(i), s)
    for i, (k, s) in enumerate(shapes.items())
  }
  sharded = {
    k: jax.device_put(p, NamedSharding(mesh, specs[k]))
    for k, p in params.items()
  }
  tx = conformance.ALGORITHMS[name](optax.adam(0.1))
  with jax.set_mesh(mesh):
    got, state = sparsejax.init(tx, sharded)
    step = jax.jit(_step(tx, update_masks=True))
    text = step.lower(got, state, sharded).compile().as_text()
    assert not [c for c in COMMUNICATION if c in text]
    assert "all-reduce" in text
    for _ in range(4):
      got, state = step(got, state, jax.tree.map(jnp.cos, got))
    masks = sparsejax.get_masks(state)
  for k, mask in masks.items():
    if mask.ndim:
      assert mask.sharding.is_equivalent_to(sharded[k].sharding, mask.ndim)
  # And they are the masks of one device.
  alone, state = sparsejax.init(tx, params)
  step = jax.jit(_step(tx, update_masks=True))
  for _ in range(4):
    alone, state = step(alone, state, jax.tree.map(jnp.cos, alone))
  assert conformance.same(masks, sparsejax.get_masks(state))


@pytest.mark.mesh
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_rule_11_first_masks_are_sharded_as_their_params(axis_type):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
  sharding = NamedSharding(mesh, P("x", None))
  params = jax.device_put(jnp.ones((16, 4)), sharding)
  tx = sparsejax.static(optax.adam(0.1), 0.5, key=KEY)
  params, state = sparsejax.init(tx, params)
  mask = sparsejax.get_masks(state)
  assert mask.sharding.is_equivalent_to(sharding, 2)
  assert params.sharding.is_equivalent_to(sharding, 2)


# Rule 12: methods that keep dense weights mask in the forward pass.


def test_rule_12_dense_weights_stay_and_learn_straight_through():
  tx = sparsejax.sparsify(
    optax.sgd(0.5, momentum=0.9),
    updates.static(sparsity=0.5),
    when=schedules.never,
    key=KEY,
    enforce=False,
  )
  dense = jnp.arange(1.0, 17.0).reshape(4, 4)
  params, state = sparsejax.init(tx, dense)
  np.testing.assert_array_equal(params, dense)
  mask = np.asarray(sparsejax.get_masks(state))
  assert mask.sum() == 8

  def loss(params):
    return jnp.sum(sparsejax.forward_params(params, state) * dense)

  forward = sparsejax.forward_params(params, state)
  np.testing.assert_array_equal(forward, np.where(mask, dense, 0))
  assert float(loss(params)) == float(np.sum(np.asarray(dense)[mask] ** 2))
  grads = jax.grad(loss)(params)
  np.testing.assert_array_equal(grads, dense)  # Reaches what is masked too.
  params, state = _step(tx)(params, state, grads)
  np.testing.assert_array_equal(params, dense - 0.5 * dense)
  assert (np.asarray(state.inner_state[0].trace) != 0).all()


def test_rule_12_moving_masks_touch_no_weight():
  params = jnp.arange(1.0, 17.0).reshape(4, 4)
  update = updates.drop_and_grow(
    sparsity=0.5,
    drop=scores.magnitude(),
    grow=scores.magnitude(),
    fraction=0.5,
  )
  tx = sparsejax.sparsify(
    optax.sgd(0.5), update, when=schedules.never, key=KEY, enforce=False
  )
  params, state = sparsejax.init(tx, params)
  after, moved = _step(tx, update_masks=True)(params, state, params)
  np.testing.assert_array_equal(after, params)
  assert not conformance.same(
    sparsejax.get_masks(state), sparsejax.get_masks(moved)
  )
  forward = np.asarray(sparsejax.forward_params(after, moved))
  np.testing.assert_array_equal(forward != 0, sparsejax.get_masks(moved))


# Rule 13: an average of params is not sparse after masks moved.


def test_rule_13_an_average_is_masked_at_evaluation():
  tx = conformance.ALGORITHMS["rigl"](optax.sgd(0.1))
  params, state = sparsejax.init(tx, conformance.small_params())
  ema = optax.ema(0.9)
  average = ema.init(params)
  step = jax.jit(_step(tx))
  for i in range(7):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = step(params, state, grads)
    mean, average = ema.update(params, average)
  masks = sparsejax.get_masks(state)
  assert not conformance.inactive_are_zero(mean, masks)
  sparse = sparsejax.apply_masks(mean, masks)
  assert conformance.inactive_are_zero(sparse, masks)
  for x, y, mask in _leaves(sparse, mean, masks):
    inside = np.broadcast_to(mask, x.shape)
    np.testing.assert_array_equal(x[inside], y[inside])
