"""Every algorithm with every optimizer: what has to hold for all of them.

The default run has every algorithm, every optimizer with every mechanism, and
every pattern with algorithms of every kind; the tests marked slow add the
other pairs.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sparsejax
from tests.conformance import table as conformance

pytestmark = pytest.mark.core

PLACES = {
  "plain": lambda algorithm, inner: algorithm(inner),
  "inside_multi_steps": lambda algorithm, inner: optax.MultiSteps(
    algorithm(inner), 2
  ).gradient_transformation(),
  "around_multi_steps": lambda algorithm, inner: algorithm(
    optax.MultiSteps(inner, 2).gradient_transformation()
  ),
}
STEPS = {"plain": 8, "inside_multi_steps": 16, "around_multi_steps": 8}
COMBINATIONS = list(itertools.product((jnp.float32, jnp.bfloat16), PLACES))
OPTIMIZERS = conformance.OPTIMIZERS | conformance.MORE_OPTIMIZERS
# Compiling is most of what these tests cost, so nearly all of them do it with
# little optimization (see tests/conftest.py); these, as users do.
AS_USERS = {
  (name, "plain", jnp.float32): {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
  }
  for name in ("rigl", "gmp")
}


# What meets every optimizer in the default; the other mechanisms are slow.
DEFAULT = ("rigl", "ste")


def _mechanism_cases(names):
  for i, name in enumerate(conformance.MECHANISMS):
    for j, optimizer in enumerate(OPTIMIZERS):
      if name in names:
        yield name, optimizer, (i + j) % 6


def _quick_cases():
  """Names of an algorithm and an optimizer, and the number of a combination."""
  yield from _mechanism_cases(DEFAULT)
  for i, name in enumerate(conformance.ROWS):
    yield name, list(conformance.OPTIMIZERS)[(4 * i + i % 6) % 15], i % 6


def _more_cases():
  """Cases that hold every pair of algorithm, optimizer, and combination.

  All combinations for RigL and GMP; of the other core algorithms two for each
  optimizer; of the families and variants one for a third of the optimizers;
  and of each algorithm one of the other types or places than its quick case.
  """
  yield from _mechanism_cases(conformance.MECHANISMS)
  for i, name in enumerate(conformance.ROWS):
    k = (i + 3) % 6
    yield name, list(conformance.OPTIMIZERS)[(4 * i + k) % 15], k
    for j, optimizer in enumerate(conformance.OPTIMIZERS):
      first = (j // 3 - i - 2 * j) % 6
      if name in ("rigl", "gmp"):
        yield from ((name, optimizer, k) for k in range(6))
      elif name in conformance.CORE:
        yield from ((name, optimizer, (first + k) % 6) for k in (0, 3))
      elif (i + j) % 3 == 0:
        yield name, optimizer, first


QUICK = sorted(set(_quick_cases()))
MORE = sorted(set(_more_cases()) - set(QUICK))


@pytest.mark.parametrize(
  ("name", "optimizer", "combination"),
  [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_zeros_budget_compilation_and_round_trip(
  name, optimizer, combination, tmp_path
):
  row = conformance.ROWS[name]
  dtype, place = COMBINATIONS[combination]
  inner = OPTIMIZERS[optimizer]()
  tx = PLACES[place](row.make, inner)
  params, state = sparsejax.init(tx, conformance.small_params(dtype))
  first = jax.device_get(sparsejax.get_masks(state))
  seen = sparsejax.forward_params(params, state)
  assert conformance.inactive_are_zero(seen, first)

  def train_step(params, state, noise):
    grads = conformance.gradients(
      sparsejax.forward_params(params, state), noise
    )
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return params, state, sparsejax.forward_params(params, state)

  train_step = jax.jit(
    train_step, compiler_options=AS_USERS.get((name, place, dtype))
  )
  masks, compiled = first, []
  for step in range(STEPS[place]):
    old = masks
    params, state, seen = train_step(
      params, state, conformance.noise(params, step)
    )
    masks = jax.device_get(sparsejax.get_masks(state))
    assert conformance.inactive_are_zero(seen, masks)
    _assert_count(row.counts, old["kernel"], masks["kernel"], first["kernel"])
    compiled.append(train_step._cache_size())
  # Once; twice where the inner optimizer by itself changes types: optax makes
  # bfloat16 moments float32 by a float32 hyperparameter.
  mixed = hasattr(inner.init(params), "hyperparams") and dtype == jnp.bfloat16
  assert compiled[-1] == compiled[1] <= 1 + mixed
  _assert_last_count(row.counts, masks["kernel"])
  assert masks["bias"].shape == ()
  assert masks["bias"]
  if row.moves is not None:
    assert np.any(first["kernel"] != masks["kernel"]) == row.moves
  dense = jax.device_get(params)["kernel"].astype("f")
  assert np.all(dense != 0) == row.straight_through
  assert conformance.same(
    jax.tree.map(jnp.zeros_like, params),
    jax.tree.map(jnp.zeros_like, conformance.small_params(dtype)),
  )
  for leaf in jax.tree.leaves(jax.device_get(params)):
    assert np.isfinite(leaf.astype("f")).all()

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", state)
  assert conformance.same(restored, state)


def _assert_count(counts, old, mask, first):
  """Of 48 weights, after every step."""
  match counts:
    case "constant":
      assert mask.sum() == first.sum()
    case "nested":
      assert np.all(mask <= old)
    case "falling":
      assert 19 <= mask.sum() <= old.sum()
    case "phases":
      assert mask.sum() in (19, 48)
    case "fan_in":
      each = set(mask.sum(0)) - {0}
      assert len(each) == 1
      assert 19 - 8 < mask.sum() <= 19
    case "free":
      assert 0 < mask.sum() <= 48


def _assert_last_count(counts, mask):
  """After the last step: the budget, where there is one."""
  if counts == "free":
    assert 0 < mask.sum() < 48
  elif counts != "fan_in":
    assert mask.sum() == 19  # 40 % of 48, rounded


def test_cases_cover_every_pair():
  combinations = set(range(6))
  every = QUICK + MORE
  for cases, names in ((QUICK, DEFAULT), (every, conformance.MECHANISMS)):
    assert {(m, o) for m, o, _ in cases} >= set(
      itertools.product(names, OPTIMIZERS)
    )
    assert {n for n, _, _ in cases} == set(conformance.ROWS)
    for mechanism in names:
      assert {k for n, _, k in cases if n == mechanism} == combinations
  assert {(n, o) for n, o, _ in cases} >= set(
    itertools.product(conformance.CORE, conformance.OPTIMIZERS)
  )
  assert {(n, k) for n, _, k in cases} >= set(
    itertools.product(conformance.CORE, combinations)
  )
  assert {(o, k) for _, o, k in cases} >= set(
    itertools.product(conformance.OPTIMIZERS, combinations)
  )
  for name in conformance.ROWS:
    assert len({k for n, _, k in cases if n == name}) >= 3


def _pattern_cases():
  """Every pair of an algorithm and a pattern; in the default, each of a kind.

  RigL and GMP have every pattern there, others two of them.
  """
  rows = {n: r for n, r in conformance.ROWS.items() if r.patterned is not None}
  for i, name in enumerate(rows):
    for j, pattern in enumerate(conformance.PATTERNS):
      quick = name in ("rigl", "gmp") or (i + j) % 3 == 0
      marks = () if quick else pytest.mark.slow
      yield pytest.param(name, pattern, marks=marks)


@pytest.mark.parametrize(("name", "pattern"), [*_pattern_cases()])
def test_every_algorithm_with_every_pattern(name, pattern):
  """The pattern holds, bits move, and masks pack to bits."""
  shape, sparsity = conformance.PATTERNS[pattern]
  row = conformance.ROWS[name]
  tx = row.make(
    optax.sgd(0.1, 0.9), sparsity=sparsity, pattern=shape, **row.patterned
  )
  kernel = jax.ShapeDtypeStruct((8, 12), jnp.float32)
  params = {"bias": jnp.zeros(12), "kernel": conformance.noise(kernel, 0)}
  params, state = sparsejax.init(tx, jax.tree.map(jnp.asarray, params))

  def step(params, state, noise):
    grads = conformance.gradients(
      sparsejax.forward_params(params, state), noise
    )
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    seen = sparsejax.forward_params(params, state)
    masks = sparsejax.get_masks(state)
    packed = sparsejax.masks.pack_bits(masks)
    return params, state, seen, masks, packed, shape.holds(masks["kernel"])

  step = jax.jit(step)
  first = np.asarray(sparsejax.get_masks(state)["kernel"])
  assert shape.holds(first)
  counts, moved = [], 0
  old = first
  for t in range(8):
    noise = conformance.noise(params, t + 1)
    params, state, seen, masks, packed, holds = step(params, state, noise)
    assert holds
    assert conformance.inactive_are_zero(seen, masks)
    mask = np.asarray(masks["kernel"])
    unpacked = sparsejax.masks.unpack_bits(packed, masks)
    np.testing.assert_array_equal(unpacked["kernel"], mask)
    assert packed["kernel"].size == mask.size // 8
    counts.append(int(mask.sum()))
    moved += (mask != old).sum()
    old = mask
  assert counts[-1] == shape.budget(
    mask.shape, round(mask.size * (1 - sparsity))
  )
  if row.counts in ("nested", "falling"):
    assert counts == sorted(counts, reverse=True)
  elif row.counts == "phases":
    assert set(counts) == {counts[-1], mask.size}
  else:
    assert set(counts) == {counts[-1]}
  assert bool(moved) == (name != "static")
