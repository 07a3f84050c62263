"""Every algorithm with every optimizer: what has to hold for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sparsejax
from tests.conformance import table as conformance

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
# Compiling takes most of the time of these tests, so most do it with little
# optimization; the plain ones in float32 run what users run.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def _check(algorithm, name, inner, dtype, place, options, tmp_path):
  tx = PLACES[place](algorithm, inner)
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

  train_step = jax.jit(train_step, compiler_options=options)
  masks, compiled = first, []
  for step in range(STEPS[place]):
    old = masks
    params, state, seen = train_step(
      params, state, conformance.noise(params, step)
    )
    masks = jax.device_get(sparsejax.get_masks(state))
    assert conformance.inactive_are_zero(seen, masks)
    _check_count(name, old["kernel"], masks["kernel"], first["kernel"])
    compiled.append(train_step._cache_size())
  # Once; twice where the inner optimizer by itself changes types: optax makes
  # bfloat16 moments float32 by a float32 hyperparameter.
  mixed = hasattr(inner.init(params), "hyperparams") and dtype == jnp.bfloat16
  assert compiled[-1] == compiled[1] <= 1 + mixed
  _check_last(name, masks["kernel"])
  assert masks["bias"].shape == ()
  assert masks["bias"]
  moved = np.any(first["kernel"] != masks["kernel"])
  if name not in ("ste", "sr_ste", "top_kast"):  # a small rate may not do
    assert moved == (name not in ("static", "fixed"))
  dense = jax.device_get(params)["kernel"].astype("f")
  assert np.all(dense != 0) == (name in conformance.STRAIGHT)
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


def _check_count(name, old, mask, first):
  """After every step."""
  match name:
    case "gmp":
      assert np.all(mask <= old)
    case "mest_s" | "granet" | "ste_cubic" | "movement":
      assert 19 <= mask.sum() <= old.sum()
    case "ac_dc":
      assert mask.sum() in (19, 48)
    case "srigl":
      each = set(mask.sum(0)) - {0}
      assert len(each) == 1
      assert 16 - 8 < mask.sum() <= 16
    case "soft_movement" | "str":
      assert 0 < mask.sum() <= 48
    case _:
      assert mask.sum() == first.sum()


def _check_last(name, mask):
  """After the last step: the budget, where there is one."""
  if name in ("soft_movement", "str"):
    assert 0 < mask.sum() < 48
  elif name != "srigl":
    assert mask.sum() == 19  # 40 % of 48, rounded


_COMBINATIONS = [(d, p) for d in (jnp.float32, jnp.bfloat16) for p in PLACES]


def _covering():
  """Cases that hold every pair of algorithm, optimizer, and combination.

  All combinations for the algorithms with a mechanism of their own; of the
  others two or, among the families, one for some of the optimizers, another one
  for each.
  """
  rows = conformance.ALGORITHMS | conformance.FAMILIES
  for i, name in enumerate(rows):
    for j, optimizer in enumerate(conformance.OPTIMIZERS):
      for k in range(6):
        if name not in ("rigl", "gmp"):
          if name in conformance.FAMILIES and (i + j) % 3:
            continue
          shift = (i + j // 3 + j - k) % 6
          if shift % 6 and (shift != 3 or name in conformance.FAMILIES):
            continue
        yield name, optimizer, k


@pytest.mark.parametrize(
  ("name", "optimizer", "combination"), list(_covering())
)
def test_zeros_budget_compilation_and_round_trip(
  name, optimizer, combination, tmp_path
):
  dtype, place = _COMBINATIONS[combination]
  algorithm = (conformance.ALGORITHMS | conformance.FAMILIES)[name]
  inner = conformance.OPTIMIZERS[optimizer]()
  core = name in conformance.ALGORITHMS
  as_users = core and place == "plain" and dtype == jnp.float32
  options = None if as_users else QUICK
  _check(algorithm, name, inner, dtype, place, options, tmp_path)


def test_cases_cover_every_pair():
  cases = list(_covering())
  names = [*conformance.ALGORITHMS, *conformance.FAMILIES]
  assert {(n, k) for n, _, k in cases} >= {
    (n, k) for n in conformance.ALGORITHMS for k in range(6)
  }
  assert {n for n, _, _ in cases} == set(names)
  assert {(n, o) for n, o, _ in cases} >= {
    (n, o) for n in conformance.ALGORITHMS for o in conformance.OPTIMIZERS
  }
  assert {(o, k) for _, o, k in cases} == {
    (o, k) for o in conformance.OPTIMIZERS for k in range(6)
  }
  for name in conformance.FAMILIES:
    assert len({k for n, _, k in cases if n == name}) >= 3


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "nadamw"])
@pytest.mark.parametrize("name", conformance.VARIANTS)
def test_options_too(name, optimizer, tmp_path):
  optimizers = conformance.OPTIMIZERS | conformance.MORE_OPTIMIZERS
  _check(
    conformance.VARIANTS[name],
    name,
    optimizers[optimizer](),
    jnp.bfloat16,
    "plain",
    None,
    tmp_path,
  )


@pytest.mark.parametrize("name", ["rigl", "gmp"])
@pytest.mark.parametrize("optimizer", conformance.MORE_OPTIMIZERS)
def test_more_optimizers(name, optimizer, tmp_path):
  _check(
    conformance.ALGORITHMS[name],
    name,
    conformance.MORE_OPTIMIZERS[optimizer](),
    jnp.float32,
    "plain",
    QUICK,
    tmp_path,
  )


@pytest.mark.parametrize("pattern", conformance.PATTERNS)
@pytest.mark.parametrize("name", conformance.patterned(None, 0.5))
def test_every_algorithm_with_every_pattern(name, pattern):
  """The pattern holds, bits move, and masks pack to bits."""
  shape, sparsity = conformance.PATTERNS[pattern]
  tx = conformance.patterned(shape, sparsity)[name](optax.sgd(0.1, 0.9))
  params = {
    "bias": jnp.zeros(12),
    "kernel": conformance.noise(BIG, 0)["kernel"],
  }
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

  step = jax.jit(step, compiler_options=QUICK)
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
  if name in ("gmp", "granet", "movement"):
    assert counts == sorted(counts, reverse=True)
  elif name == "ac_dc":
    assert set(counts) == {counts[-1], mask.size}
  else:
    assert set(counts) == {counts[-1]}
  assert bool(moved) == (name != "static")


BIG = {"kernel": jax.ShapeDtypeStruct((8, 12), jnp.float32)}
