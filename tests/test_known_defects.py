"""What went wrong in other sparse training code, and must not here.

Each test names the defect. Those of optimizers that were refused are the table
of test_conformance.py, and those of seeds and sizes are in test_rules.py.
"""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax
from sparsejax import distributions, keys, schedules, scores, select, updates
from tests.conformance import table as conformance

KEY = jax.random.key(0)
MOVING = ("set", "rigl", "snfs", "seft")


def _tx(name, inner=None, key=KEY):
  return conformance.ALGORITHMS[name](inner or optax.sgd(0.1), key)


def _step(tx, params, state, grads, **options):
  change, state = tx.update(grads, state, params, **options)
  return optax.apply_updates(params, change), state


def _masks(state):
  return jax.device_get(sparsejax.get_masks(state))


# JaxPruner


@pytest.mark.parametrize("name", [*MOVING, "static", "gmp"])
def test_a_bias_or_a_norm_comes_first_in_the_tree(name):
  """RigL and SET failed on any net with a bias: masks were None there."""
  params = {
    "a_scale": jnp.ones(()),
    "b_bias": jnp.ones(4),
    "c_count": jnp.zeros(3, jnp.int32),
    "kernel": jax.random.normal(KEY, (6, 8)),
  }
  tx = _tx(name, optax.masked(optax.sgd(0.1), _floating))
  params, state = sparsejax.init(tx, params)
  grads = {k: jnp.ones_like(p) for k, p in params.items()}
  grads["c_count"] = jnp.zeros(3, jnp.int32)
  for update_masks in (False, True):
    params, state = _step(tx, params, state, grads, update_masks=update_masks)
  masks = _masks(state)
  assert [masks[k].shape for k in params] == [(), (), (), (6, 8)]
  assert conformance.inactive_are_zero(params, masks)
  assert params["c_count"].dtype == jnp.int32


def _floating(tree):
  return jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), tree)


@pytest.mark.parametrize("name", [*MOVING, "static", "fixed"])
def test_masks_that_were_packed_move_as_well(name):
  """Masks of one bit a weight crashed for every method but pruning."""
  params, state = sparsejax.init(_tx(name), conformance.small_params())
  masks = sparsejax.get_masks(state)
  packed = sparsejax.masks.pack_bits(masks)
  assert packed["kernel"].nbytes == 6
  back = sparsejax.masks.unpack_bits(packed, masks)
  assert conformance.same(back, masks)
  mask_state = state.mask_state._replace(masks=back)
  grads = conformance.gradients(params, conformance.noise(params, 0))
  _, state = _step(
    _tx(name),
    params,
    state._replace(mask_state=mask_state),
    grads,
    update_masks=True,
  )
  moved = sparsejax.get_masks(state)
  assert conformance.same(masks, moved) == (name in ("static", "fixed"))


@pytest.mark.parametrize("name", MOVING)
def test_masks_do_move(name):
  """Drop and grow with one pattern did nothing, silently."""
  params, state = sparsejax.init(_tx(name), conformance.small_params())
  first = _masks(state)["kernel"]
  grads = conformance.gradients(params, conformance.noise(params, 0))
  for _ in range(2):
    _, state = _step(_tx(name), params, state, grads, update_masks=True)
  assert np.any(_masks(state)["kernel"] != first)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_fraction_of_zero_changes_no_bit(dtype, scale):
  """max(grow) + 1e-5 rounded to max(grow), which let others in."""
  rng = np.random.default_rng(0)
  params = jnp.asarray(rng.normal(size=(64, 64)), dtype)
  params = params.at[::3].set(0)  # Active weights may be zero.
  grads = jnp.asarray(scale * rng.normal(size=(64, 64)), dtype)
  for drop in (scores.magnitude(), scores.sensitivity()):
    for regrow in (True, False):
      update = updates.drop_and_grow(
        sparsity=0.5,
        drop=drop,
        grow=scores.gradient(),
        fraction=0.0,
        regrow=regrow,
      )
      state = update.init(KEY, params)
      after = update.update(grads, state, params, True)
      assert conformance.same(after.masks, state.masks)


@pytest.mark.parametrize("name", conformance.ALGORITHMS)
def test_the_first_step_is_taken_on_sparse_params(name):
  """It ran on dense ones, unless the user masked them by hand."""
  params = conformance.small_params()
  sparse, state = sparsejax.init(_tx(name), params)
  assert conformance.inactive_are_zero(sparse, _masks(state))
  expected = 48 if name == "gmp" else 19
  assert np.count_nonzero(sparse["kernel"]) == expected
  # A moment that begins as a copy of the params is sparse too.
  inner = conformance.OPTIMIZERS["schedule_free"]()
  _, state = sparsejax.init(_tx(name, inner), params)
  z = state.inner_state.z
  assert conformance.inactive_are_zero(z, _masks(state))


@pytest.mark.parametrize("name", ["static", *MOVING])
def test_two_keys_give_two_masks_and_one_key_one(name):
  """A default seed gave "independent" runs the same masks."""
  params = conformance.params()
  a, b, c = (
    sparsejax.get_masks(_tx(name, key=jax.random.key(k)).init(params))
    for k in (1, 1, 2)
  )
  assert conformance.same(a, b)
  assert not conformance.same(a, c)


def test_given_masks_need_no_seed_and_stay_to_the_bit():
  """A hidden seed was there even where nothing was drawn."""
  tx = _tx("fixed")
  params, state = sparsejax.init(tx, conformance.small_params())
  assert state.mask_state.key is None
  masks = sparsejax.get_masks(state)
  _, state = _step(tx, params, state, params, update_masks=True)
  assert conformance.same(masks, sparsejax.get_masks(state))


def test_a_population_skips_selection_on_ordinary_steps():
  """Under vmap the cond became a select: every step sorted everything."""
  tx = _tx("rigl")
  one = conformance.small_params()
  many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), one)

  def begin(key, params):
    state = _tx("rigl", key=key).init(params)
    return sparsejax.apply_masks(params, sparsejax.get_masks(state)), state

  keys = jax.random.split(KEY, 3)
  many, states = jax.vmap(begin)(keys, many)
  single, state = begin(keys[1], jax.tree.map(lambda p: 2 * p, one))
  for i, update_masks in enumerate([False, True, False]):
    noise = conformance.noise(one, i)

    def step(params, state, m=update_masks, noise=noise):
      grads = conformance.gradients(params, noise)
      return _step(tx, params, state, grads, update_masks=m)

    mapped = jax.jit(jax.vmap(step))
    text = str(jax.make_jaxpr(mapped)(many, states))
    assert ("top_k_mask" in text) == update_masks
    many, states = mapped(many, states)
    single, state = jax.jit(step)(single, state)
  of_many = jax.tree.map(lambda x: x[1], sparsejax.get_masks(states))
  assert conformance.same(of_many, sparsejax.get_masks(state))


class _Module(eqx.Module):
  weight: jax.Array
  bias: jax.Array
  activation: str = eqx.field(static=True, default="tanh")


def _containers():
  w, v, b = jnp.ones((6, 8)), jnp.full((8, 4), 2.0), jnp.ones(8)
  return {
    "array": w,
    "tuple": (w, b),
    "lists": [[w, [b, v]], b],
    "none": {"a": None, "w": w},
    "nnx": nnx.state(nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.Param),
    "equinox": _Module(w, b),
    "empty": {"w": w, "none": {}},
  }


@pytest.mark.parametrize("container", _containers())
@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_any_container_of_params(container, name):
  """All but nested dicts failed."""
  params = _containers()[container]
  tx = _tx(name, optax.adam(0.1))
  params, state = sparsejax.init(tx, params)
  step = jax.jit(lambda p, s, g: _step(tx, p, s, g))
  for _ in range(8):
    params, state = step(params, state, jax.tree.map(jnp.cos, params))
  masks = sparsejax.get_masks(state)
  assert jax.tree.structure(masks) == jax.tree.structure(params)
  assert conformance.inactive_are_zero(params, masks)
  assert sparsejax.density(masks) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("update_masks", [None, True, False])
@pytest.mark.parametrize("name", conformance.ALGORITHMS)
def test_no_step_calls_the_host(name, update_masks):
  """A debug print that was left in called the host on every step."""
  tx = _tx(name, optax.adam(0.1))
  params = conformance.small_params()
  state = jax.eval_shape(tx.init, params)
  text = str(
    jax.make_jaxpr(lambda p, s: _step(tx, p, s, p, update_masks=update_masks))(
      params, state
    )
  )
  assert "callback" not in text
  assert "debug" not in text


def test_counts_do_not_pass_through_float32():
  """Densities in float32 drifted by 14 weights at 617 million."""
  shape = jax.ShapeDtypeStruct((617, 1_000_003), jnp.float32)
  kept = distributions.budgets(shape, 0.9, distributions.uniform)
  assert kept == {"": 61_700_185}  # 61700185.1


def test_two_layers_of_one_shape_do_not_share_their_noise():
  """Keys were folded with the count alone."""
  params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
  masks = sparsejax.get_masks(
    sparsejax.static(
      optax.sgd(0.1), 0.5, key=KEY, distribution=distributions.uniform
    ).init(params)
  )
  assert np.any(masks["a"] != masks["b"])
  noise = keys.uniform_like(KEY, params)
  assert np.any(noise["a"] != noise["b"])


@pytest.mark.parametrize("name", conformance.ALGORITHMS)
def test_the_state_is_arrays_only_and_keeps_its_types(name):
  """Python floats in the state came back from a checkpoint as arrays."""
  tx = _tx(name, optax.adam(0.1))
  params, state = sparsejax.init(tx, conformance.small_params())
  step = jax.jit(lambda p, s: _step(tx, p, s, p))
  _, after = step(params, state)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
    assert isinstance(x, jax.Array)
    assert x.aval == y.aval  # Weak types too.
  assert jax.tree.structure(state) == jax.tree.structure(after)
  assert sum(sparsejax.get_masks(state)["kernel"].shape) == 14
  assert sparsejax.get_masks(after)["kernel"].dtype == bool


def test_schedules_can_be_traced_without_noise(caplog):
  """The sparsity schedule logged a tracer whenever it was traced."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    got = jax.jit(schedules.cubic(0, 4))(jnp.int32(2))
  assert float(got) == 0.875
  assert not caplog.records


def test_replicas_agree_without_being_told_to():
  """Replicas that each drew or scored for themselves drifted apart."""
  from jax.sharding import NamedSharding, PartitionSpec

  mesh = jax.make_mesh((8,), ("data",))
  tx = _tx("rigl", optax.sgd(0.1))
  params, state = sparsejax.init(tx, conformance.small_params())
  whole = NamedSharding(mesh, PartitionSpec())
  params, state = jax.device_put((params, state), whole)
  x = jax.random.normal(KEY, (16, 6))
  x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

  @jax.jit
  def step(params, state, x):
    def loss(p):
      return jnp.mean(jnp.tanh(x @ p["kernel"] + p["bias"]) ** 2)

    return _step(tx, params, state, jax.grad(loss)(params), update_masks=True)

  for _ in range(3):
    params, state = step(params, state, x)
  mask = sparsejax.get_masks(state)["kernel"]
  copies = [np.asarray(s.data) for s in mask.addressable_shards]
  assert len(copies) == 8
  assert all((c == copies[0]).all() for c in copies)
  assert copies[0].sum() == 19


def test_a_sparsity_of_zero_keeps_everything():
  """A density of 1 did not pass the solver of the distribution."""
  params = conformance.params()
  for name in ("uniform", "erdos_renyi", "erdos_renyi_kernel"):
    tx = sparsejax.rigl(
      optax.sgd(0.1),
      0.0,
      key=KEY,
      t_end=100,
      delta_t=1,
      distribution=getattr(distributions, name),
    )
    sparse, state = sparsejax.init(tx, params)
    assert conformance.same(sparse, params)
    _, state = _step(tx, sparse, state, params, update_masks=True)
    assert sparsejax.density(sparsejax.get_masks(state)) == 1


def test_all_leaves_may_be_set_by_hand():
  """With a sparsity for every leaf there was nothing left to solve for."""
  rules = {"conv": 0.5, "dense": 0.9}
  kept = distributions.budgets(
    conformance.params(), 0.7, distributions.by_path(rules)
  )
  assert kept == {"conv": 24, "dense/kernel": 4}


# google-research/rigl


def test_ties_are_not_broken_by_noise():
  """Noise of 1e-5 on the scores decided between weights of less."""
  params = jnp.arange(1.0, 49.0).reshape(6, 8) * 1e-9
  # No mask is drawn where all are active: the rest is settled by the scores.
  masks = []
  for seed in range(2):
    tx = sparsejax.gmp(
      optax.sgd(0.0),
      0.5,
      key=jax.random.key(seed),
      begin=0,
      end=1,
      delta_t=1,
    )
    _, state = sparsejax.init(tx, params)
    for _ in range(2):
      _, state = _step(tx, params, state, params)
    masks.append(_masks(state))
  np.testing.assert_array_equal(masks[0], np.arange(48).reshape(6, 8) >= 24)
  np.testing.assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("name", conformance.ALGORITHMS)
def test_masks_are_bools(name):
  """Masks of float32 took four bytes a weight."""
  _, state = sparsejax.init(_tx(name), conformance.small_params())
  mask = sparsejax.get_masks(state)["kernel"]
  assert mask.dtype == bool
  assert mask.nbytes == 48


def test_selection_does_not_sort():
  """Two full sorts and a scatter, for every layer and update."""
  text = str(
    jax.make_jaxpr(select.top_k_mask)(jnp.ones((64, 64)), jnp.int32(7))
  )
  assert not any(f" {op}[" in text for op in ("sort", "scatter", "gather"))


# open_lth


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ties_at_the_threshold_prune_no_more(dtype):
  """A strict comparison with the threshold pruned all that equal it."""
  tx = sparsejax.gmp(optax.sgd(0.0), 0.75, key=KEY, begin=0, end=1, delta_t=1)
  params, state = sparsejax.init(tx, jnp.ones((8, 8), dtype))
  for _ in range(2):
    params, state = _step(tx, params, state, jnp.zeros((8, 8), dtype))
  assert np.count_nonzero(params) == 16
  np.testing.assert_array_equal(params[:2], 1)  # The lower indices stay.


def test_pruning_to_the_last_weight():
  """A pruning fraction of 1 indexed out of range."""
  top = select.top_k_mask
  x = jnp.arange(6.0).reshape(2, 3)
  assert not top(x, 0).any()
  assert top(x, 6).all()
  assert top(x, 7).all()
  tx = sparsejax.gmp(optax.sgd(0.0), 0.98, key=KEY, begin=0, end=1, delta_t=1)
  params, state = sparsejax.init(tx, conformance.small_params())
  for _ in range(2):
    params, state = _step(tx, params, state, params)
  assert np.count_nonzero(params["kernel"]) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "amsgrad"])
def test_what_is_pruned_has_no_moments_left(optimizer):
  """Masks on params alone left momentum and weight decay at work."""
  inner = conformance.OPTIMIZERS[optimizer]()
  tx = sparsejax.gmp(inner, 0.5, key=KEY, begin=3, end=4, delta_t=1)
  params, state = sparsejax.init(tx, conformance.small_params())
  step = jax.jit(lambda p, s, g: _step(tx, p, s, g))
  for i in range(5):
    grads = conformance.gradients(params, conformance.noise(params, i))
    params, state = step(params, state, grads)
  mask = _masks(state)["kernel"]
  assert mask.sum() == 24
  moments = [x for x in jax.tree.leaves(state.inner_state) if x.shape == (6, 8)]
  assert moments
  for moment in moments:
    assert not np.asarray(moment)[~mask].any()
    assert np.asarray(moment)[mask].all()
