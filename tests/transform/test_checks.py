"""What is refused around, before and after a sparse transformation."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import sparsejax
from sparsejax import distributions, lottery
from tests.marks import few

KEY = jax.random.key(0)
PARAMS = {"b": jnp.ones(12), "w": jax.random.normal(KEY, (16, 12))}


def rigl(inner=None, sparsity=0.7):
  inner = optax.sgd(0.1) if inner is None else inner
  return sparsejax.rigl(inner, sparsity, key=KEY, t_end=100, delta_t=2)


def noise(step):
  return jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(step), p.shape), PARAMS
  )


def trained(tx, steps=4, **extra):
  params, state = sparsejax.init(tx, PARAMS)
  for step in range(steps):
    change, state = tx.update(noise(step), state, params, **extra)
    params = optax.apply_updates(params, change)
  return params, state


# What optax puts after, around and inside.


def plateau():
  return contrib.reduce_on_plateau(factor=0.5, patience=1)


def monitor():
  return optax.monitor({"norm": lambda updates, **_: optax.tree.norm(updates)})


NO_ZEROS_LOST = {
  "inside: adam": lambda: rigl(optax.adam(0.1)),
  "inside: clip": lambda: rigl(optax.chain(optax.clip(0.1), optax.sgd(0.1))),
  "inside: scale": lambda: rigl(optax.chain(optax.sgd(0.1), optax.scale(0.5))),
  "inside: plateau": lambda: rigl(optax.chain(optax.sgd(0.1), plateau())),
  "inside: sam": lambda: rigl(
    contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)
  ),
  "inside: mechanize": lambda: rigl(contrib.mechanize(optax.sgd(0.1))),
  "inside: schedule_free": lambda: rigl(
    contrib.schedule_free(optax.sgd(0.1), 0.1)
  ),
  "inside: multi_steps": lambda: rigl(optax.MultiSteps(optax.sgd(0.1), 2)),
  "inside: sm3": lambda: rigl(optax.sm3(0.1)),
  "inside: conditionally_transform": lambda: rigl(
    optax.conditionally_transform(optax.sgd(0.1), lambda step: step < 2)
  ),
  "around: multi_steps": lambda: optax.MultiSteps(rigl(), 2),
  "around: apply_if_finite": lambda: optax.apply_if_finite(rigl(), 2),
  "around: masked": lambda: optax.masked(rigl(), {"b": False, "w": True}),
  "around: partition": lambda: optax.partition(
    {"sparse": rigl(), "rest": optax.adam(0.1)}, {"b": "rest", "w": "sparse"}
  ),
  "around: partition, reversed": lambda: optax.partition(
    {"rest": optax.adam(0.1), "sparse": rigl()}, {"b": "rest", "w": "sparse"}
  ),
  "around: inject_hyperparams": lambda: optax.inject_hyperparams(
    lambda rate: rigl(optax.sgd(rate))
  )(rate=0.1),
  "around: conditionally_mask": lambda: optax.conditionally_mask(
    rigl(), lambda step: step < 2
  ),
  "around: split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(
    rigl()
  ),
  "around: selective_transform": lambda: optax.selective_transform(
    rigl(), freeze_mask={"b": True, "w": False}
  ),
  "before: clip": lambda: optax.chain(optax.clip(0.1), rigl()),
  "before: named": lambda: optax.named_chain(
    ("clip", optax.clip(0.1)), ("rigl", rigl())
  ),
  "before: nested": lambda: optax.chain(optax.chain(optax.trace(0.9), rigl())),
  "after: of other leaves": lambda: optax.chain(
    optax.masked(rigl(), {"b": False, "w": True}),
    optax.masked(optax.adam(0.1), {"b": True, "w": False}),
  ),
  "after: zero_nans": lambda: optax.chain(rigl(), optax.zero_nans()),
  "after: monitor": lambda: optax.chain(rigl(), monitor()),
}
LOST = {
  "around: lookahead": lambda: optax.lookahead(rigl(), 2, 0.5),
  "around: sam": lambda: contrib.sam(rigl(), optax.sgd(0.05), sync_period=2),
  "around: mechanize": lambda: contrib.mechanize(rigl()),
  "around: schedule_free": lambda: contrib.schedule_free(rigl(), 0.1),
  "around: conditionally_transform": lambda: optax.conditionally_transform(
    rigl(), lambda step: step < 2
  ),
  "after: plateau": lambda: optax.chain(rigl(), plateau()),
  "after: schedule": lambda: optax.chain(
    rigl(), optax.scale_by_schedule(lambda step: 0.5)
  ),
  "after: trace": lambda: optax.chain(rigl(), optax.trace(0.9)),
  "after: ema": lambda: optax.chain(rigl(), optax.ema(0.9)),
  "after: adam": lambda: optax.chain(rigl(), optax.scale_by_adam()),
  "after: noise": lambda: optax.chain(rigl(), optax.add_noise(0.1, 0.5, KEY)),
  "after: apply_every": lambda: optax.chain(rigl(), optax.apply_every(2)),
  "after: momo": lambda: optax.chain(rigl(), contrib.momo()),
  "after: conditionally_transform": lambda: optax.chain(
    rigl(),
    optax.conditionally_transform(optax.scale(0.5), lambda step: step < 2),
  ),
  "after: factored": lambda: optax.chain(rigl(), optax.scale_by_factored_rms()),
  "after: lbfgs": lambda: optax.chain(rigl(), optax.scale_by_lbfgs()),
  "after: several": lambda: optax.chain(
    optax.clip(0.1), rigl(), optax.zero_nans(), optax.scale_by_rms()
  ),
  "around: sam, as the adversary": lambda: contrib.sam(
    optax.sgd(0.1), rigl(), sync_period=2
  ),
  "around: partition of lookahead": lambda: optax.partition(
    {"sparse": optax.lookahead(rigl(), 2, 0.5), "rest": optax.adam(0.1)},
    {"b": "rest", "w": "sparse"},
  ),
  "after: nested": lambda: optax.chain(
    optax.chain(optax.clip(0.1), rigl()), optax.chain(optax.ema(0.9))
  ),
  "after: named": lambda: optax.named_chain(
    ("rigl", rigl()), ("ema", optax.ema(0.9))
  ),
}
UNKNOWN = {
  "after: scale": lambda: optax.chain(rigl(), optax.scale(0.5)),
  "after: decay": lambda: optax.chain(rigl(), optax.add_decayed_weights(0.1)),
  "after: sign": lambda: optax.chain(rigl(), optax.scale_by_sign()),
  "after: trust ratio": lambda: optax.chain(
    rigl(), optax.scale_by_trust_ratio()
  ),
  "after: freeze": lambda: optax.chain(rigl(), optax.freeze(True)),
  "after: masked": lambda: optax.chain(
    rigl(), optax.masked(optax.scale(0.5), {"b": False, "w": True})
  ),
  "after: normalize": lambda: optax.chain(rigl(), contrib.normalize()),
  "after: identity": lambda: optax.chain(rigl(), optax.identity()),
  "around: of a user's": lambda: counted(rigl()),
}


class Counted(tuple):
  """The state of a wrapper that is not optax's."""


jax.tree_util.register_pytree_node(
  Counted, lambda x: (tuple(x), None), lambda _, x: Counted(x)
)


def counted(tx):
  def update(grads, state, params=None, **extra):
    change, inner = tx.update(grads, state[0], params, **extra)
    return change, Counted((inner, state[1] + 1))

  return optax.GradientTransformationExtraArgs(
    lambda params: Counted((tx.init(params), 0)), update
  )


@pytest.mark.parametrize("name", few(NO_ZEROS_LOST, [*NO_ZEROS_LOST][::3]))
def test_what_keeps_zeros_runs_without_a_word(name):
  extra = {"value": 1.0} if "plateau" in name else {}
  params, state = trained(NO_ZEROS_LOST[name](), **extra)
  sparsejax.check(params, state)
  assert sparsejax.nnz(sparsejax.get_masks(state)) == 58  # of 192: 57.6


@pytest.mark.parametrize("name", LOST)
def test_what_loses_zeros_is_refused(name):
  where = name.partition(":")[0]
  with pytest.raises(ValueError, match=f"{where} the sparse .* inside"):
    sparsejax.init(LOST[name](), PARAMS)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_warns_and_is_checked(name):
  with pytest.warns(UserWarning, match="the sparse transformation.* inside"):
    params, state = trained(UNKNOWN[name]())
  if "identity" in name or "user" in name:
    sparsejax.check(params, state)
  else:
    with pytest.raises(ValueError, match=r"^w: \d+ of 192 weights are not 0"):
      sparsejax.check(params, state)


def test_optimizers_whose_moments_cannot_be_told_apart_are_refused():
  for inner in (optax.flatten(optax.adam(0.1)), optax.lbfgs()):
    with pytest.raises(ValueError, match=r"inner: .*optax\.flatten"):
      trained(rigl(inner))
  # Masks that stay reset nothing.
  tx = sparsejax.static(optax.flatten(optax.adam(0.1)), 0.7, key=KEY)
  sparsejax.check(*trained(tx))


def test_sm3_resets_the_momentum_of_weights_that_move():
  params, state = trained(rigl(optax.sm3(0.1, momentum=0.9)), steps=2)
  old = sparsejax.get_masks(state)["w"]
  _, state = rigl(optax.sm3(0.1, momentum=0.9)).update(
    noise(9), state, params, update_masks=True
  )
  grown = sparsejax.get_masks(state)["w"] & ~old
  momentum = state.inner_state[0].nu["w"]
  assert grown.any()
  assert not momentum[grown].any()
  assert momentum[old & ~grown].any()


# The check.


def test_check_counts_what_is_outside_the_masks():
  params, state = sparsejax.init(rigl(), PARAMS)
  sparsejax.check(params, state)
  mask = np.asarray(sparsejax.get_masks(state)["w"])
  bad = np.array(params["w"])
  bad[np.nonzero(~mask)[0][:3], np.nonzero(~mask)[1][:3]] = 1e-30
  with pytest.raises(ValueError, match=r"^w: 3 of 192 .*apply_masks"):
    sparsejax.check({**params, "w": jnp.asarray(bad)}, state)
  for value in (np.nan, np.inf):
    with pytest.raises(ValueError, match=r"^b: .* NaN or infinity"):
      sparsejax.check({**params, "b": params["b"].at[1].set(value)}, state)
  with pytest.raises(ValueError, match=r"^w: masks .*shape"):
    sparsejax.check({**params, "w": jnp.zeros((4, 4))}, state)
  with pytest.raises(TypeError, match=r"outside of jax\.jit"):
    jax.jit(sparsejax.check)(params, state)
  with pytest.raises(TypeError, match=r"^tx: got a MultiSteps"):
    sparsejax.check(params, state, optax.MultiSteps(rigl(), 2))


def test_check_of_masks_that_are_not_the_transformations():
  params, state = sparsejax.init(rigl(), PARAMS)
  masks = sparsejax.get_masks(state)
  masks["w"] = masks["w"].at[0].set(True)
  other = state._replace(mask_state=state.mask_state._replace(masks=masks))
  sparsejax.check(params, other)
  with pytest.raises(ValueError, match=r"^w: .* keeps \d+ weights, wanted 58"):
    sparsejax.check(params, other, rigl())


def test_check_reads_moments_of_averages():
  """An average of params is not sparse once masks have moved."""
  params, state = sparsejax.init(rigl(), PARAMS)
  average = params
  for step in range(4):
    change, state = rigl().update(noise(step), state, params)
    params = optax.apply_updates(params, change)
    average = optax.incremental_update(params, average, 0.1)
  with pytest.raises(ValueError, match="an average of params"):
    sparsejax.check(average, state)
  masks = sparsejax.get_masks(state)
  sparsejax.check(sparsejax.apply_masks(average, masks), state)


def test_check_tells_that_the_forward_pass_is_what_is_masked():
  params, state = sparsejax.init(
    sparsejax.ste(optax.sgd(0.1), 0.7, key=KEY), PARAMS
  )
  sparsejax.check(sparsejax.forward_params(params, state), state)
  with pytest.raises(ValueError, match=r"134 of 192 .*forward_params"):
    sparsejax.check(params, state)


def test_check_of_packed_params():
  tx = sparsejax.modes.packed(rigl(optax.adam(0.1)))
  values, state = sparsejax.init(tx, PARAMS)
  sparsejax.check(values, state, tx)
  sparsejax.check(sparsejax.forward_params(values, state), state)
  other = sparsejax.modes.packed(rigl(optax.adam(0.1), 0.9))
  with pytest.raises(ValueError, match=r"^w: .*budget of 58 .*asks for 19"):
    sparsejax.check(sparsejax.forward_params(values, state), state, other)
  with pytest.raises(ValueError, match="NaN"):
    sparsejax.check({**values, "w": values["w"] * jnp.nan}, state)


# A state of another sparsity.

SPAN = {"begin": 0, "end": 8, "delta_t": 2}
MOVING = {"t_end": 100, "delta_t": 2}
ALGORITHMS = {
  "static": (sparsejax.static, {}),
  "rigl": (sparsejax.rigl, MOVING),
  "set_": (sparsejax.set_, MOVING),
  "snfs": (sparsejax.snfs, MOVING),
  "seft": (sparsejax.seft, MOVING),
  "dst_ee": (sparsejax.dst_ee, MOVING),
  "mest": (sparsejax.mest, MOVING),
  "srigl": (sparsejax.srigl, MOVING | {"ablation": 0.0}),
  "gmp": (sparsejax.gmp, SPAN),
  "gmp, global": (sparsejax.gmp, SPAN | {"scope": "global"}),
  "granet": (sparsejax.granet, SPAN | {"t_end": 20}),
  "granet, layer": (sparsejax.granet, SPAN | {"t_end": 20, "scope": "layer"}),
  "ac_dc": (sparsejax.ac_dc, {"phases": (2, 6, 10)}),
  "ste": (sparsejax.ste, SPAN),
  "ste, global": (sparsejax.ste, SPAN | {"scope": "global"}),
  "top_kast": (sparsejax.top_kast, {"backward_sparsity": 0.5}),
  "movement": (sparsejax.movement, SPAN),
}
SAMPLE = ("static", "rigl", "gmp, global", "granet", "ac_dc", "ste, global")


def of_sparsity(name, sparsity):
  algorithm, keywords = ALGORITHMS[name]
  return algorithm(optax.sgd(0.1), sparsity, key=KEY, **keywords)


def test_budgets_are_shared_out_once_for_many_steps():
  calls = []

  def distribution(shapes, sparsity):
    calls.append(sparsity)
    return distributions.uniform(shapes, sparsity)

  tx = sparsejax.static(optax.sgd(0.1), 0.7, key=KEY, distribution=distribution)
  params, state = sparsejax.init(tx, PARAMS)
  drawn = len(calls)
  for step in range(3):
    _, state = tx.update(noise(step), state, params)
  assert len(calls) == drawn + 1
  other = {"w": jnp.ones((8, 8))}
  with pytest.raises(ValueError, match="masks in the optimizer state"):
    tx.update(other, state, other)


@pytest.mark.parametrize("name", few(ALGORITHMS, SAMPLE))
def test_a_state_of_another_sparsity_is_refused(name):
  """Also half-way through a schedule, whose masks keep more than the budget."""
  params, state = sparsejax.init(of_sparsity(name, 0.7), PARAMS)
  for step in range(2):
    change, state = of_sparsity(name, 0.7).update(noise(step), state, params)
    params = optax.apply_updates(params, change)
  other = of_sparsity(name, 0.9)
  with pytest.raises(ValueError, match=r"sparsity of 0\.[67].* 0\.[89]"):
    other.update(noise(2), state, params)
  seen = sparsejax.forward_params(params, state)
  with pytest.raises(ValueError, match=r"budget.*asks for \d+, 0\.[89]"):
    sparsejax.check(seen, state, other)
  sparsejax.check(seen, state, of_sparsity(name, 0.7))


@pytest.mark.parametrize("name", few(ALGORITHMS, SAMPLE))
def test_where_a_state_cannot_be_seen_its_budgets_hold(name):
  params, state = sparsejax.init(of_sparsity(name, 0.7), PARAMS)
  steps = [jax.jit(of_sparsity(name, s).update) for s in (0.7, 0.9)]
  for t in range(12):
    change, state = steps[t >= 3](noise(t), state, params)
    params = optax.apply_updates(params, change)
  kept = sparsejax.nnz(sparsejax.get_masks(state))
  assert kept == (60 if name == "srigl" else 58)  # a fan-in of 5


def test_budgets_of_stacked_layers_are_compared_one_by_one():
  stacked = {"layers": {"kernel": jax.random.normal(KEY, (3, 8, 16))}}
  params, state = sparsejax.init(rigl(), stacked)
  sparsejax.check(params, state, rigl())
  with pytest.raises(
    ValueError, match=r"budget of \[39, 38, 38\].*asks for \[13, 13, 12\]"
  ):
    sparsejax.check(params, state, rigl(sparsity=0.9))


def test_masks_that_are_given_or_taken_over_have_no_budget_but_their_own():
  params, state = trained(rigl())
  few = jax.tree.map(jnp.array, sparsejax.get_masks(state))
  few["w"] = few["w"] & (jnp.arange(12) < 6)
  given = sparsejax.rigl(
    optax.sgd(0.1), 0.2, key=KEY, t_end=100, delta_t=2, masks=few
  )
  params, state = sparsejax.init(given, PARAMS)
  given.update(noise(0), state, params)
  sparsejax.check(params, state, given)
  tx = sparsejax.static(optax.sgd(0.1), 0.0, key=KEY)
  params, saved = sparsejax.init(tx, PARAMS)
  params, state = lottery.rewind(tx, params, saved, few)
  tx.update(noise(0), state, params)
  sparsejax.check(params, state, tx)


# What is handed over is of another type.


def as_dict(x):
  if hasattr(x, "_asdict"):
    return {k: as_dict(v) for k, v in x._asdict().items()}
  return [as_dict(v) for v in x] if isinstance(x, tuple | list) else x


def as_float(x, kinds):
  return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, kinds) else x


@pytest.mark.parametrize("make", [rigl, lambda: of_sparsity("ste", 0.7)])
def test_a_state_that_came_back_in_another_form(make):
  tx = make()
  params, state = sparsejax.init(tx, PARAMS)
  cases = {
    r"got a dict, .*order; restore": as_dict(state),
    r"got a list, .*restore": state._replace(mask_state=[state.mask_state]),
    r"^w: got a mask of float32": jax.tree.map(
      lambda x: as_float(x, jnp.bool_), state
    ),
    r"^budget .*float32, wanted int32.*restore": jax.tree.map(
      lambda x: as_float(x, jnp.signedinteger), state
    ),
  }
  for words, restored in cases.items():
    for now in (None, False, True):
      with pytest.raises(TypeError, match=words):
        tx.update(noise(0), restored, params, update_masks=now)


def test_a_state_that_came_back_as_a_dict_does_not_run_the_model_dense():
  for tx in (of_sparsity("ste", 0.7), sparsejax.modes.packed(rigl())):
    params, state = sparsejax.init(tx, PARAMS)
    for restored in (as_dict(state), {"inner": [{}, as_dict(state)]}):
      with pytest.raises(TypeError, match="got a dict with a mask_state"):
        sparsejax.forward_params(params, restored)


def test_what_init_returns_and_takes_is_swapped():
  state, params = reversed(sparsejax.init(rigl(), PARAMS))
  with pytest.raises(TypeError, match=r"got a dict, .*params and state"):
    rigl().update(noise(0), params, state)
  with pytest.raises(TypeError, match="params: got a SparseState"):
    sparsejax.value_and_grad(lambda p: p["w"].sum(), rigl())(state, params)
  with pytest.raises(ValueError, match=r"no masks .*params, opt_state ="):
    sparsejax.get_masks(params)
  with pytest.raises(TypeError, match=r"^tx: got "):
    sparsejax.init(PARAMS, rigl())


def test_states_of_other_modes_are_told_apart():
  packed = sparsejax.modes.packed(rigl(optax.adam(0.1)))
  values, state = sparsejax.init(packed, PARAMS)
  with pytest.raises(TypeError, match="got a PackedState, wanted the SparseS"):
    rigl().update(noise(0), state, PARAMS)
  dense, masked = sparsejax.init(rigl(optax.adam(0.1)), PARAMS)
  with pytest.raises(TypeError, match="got a SparseState, wanted the PackedS"):
    packed.update(values, masked, values, update_masks=False)
  with pytest.raises(TypeError, match="wanted the ForwardMaskedState"):
    of_sparsity("ste", 0.7).update(noise(0), masked, dense)


@pytest.mark.parametrize("inner", [1e-3, optax.adam, "adam", None])
def test_an_optimizer_that_is_none(inner):
  for make in (
    lambda: sparsejax.static(inner, 0.5, key=KEY),
    lambda: sparsejax.ste(inner, 0.5, key=KEY),
    lambda: sparsejax.fixed(inner, True),
    lambda: sparsejax.init(inner, PARAMS),
  ):
    with pytest.raises(TypeError, match=r"^(inner|tx): got .*optax\.adam"):
      make()
  if inner is not None:
    with pytest.raises(TypeError, match=r"^optimizer: got "):
      sparsejax.movement(
        optax.sgd(0.1), 0.5, key=KEY, begin=1, end=2, optimizer=inner
      )
  with pytest.raises(TypeError, match=r"^optimizer: got "):
    sparsejax.str_(optax.sgd(0.1), key=KEY, optimizer=inner)
  with pytest.raises(TypeError, match=r"^inner: got "):
    sparsejax.finetune.lora(inner, key=KEY, rank=2)


def test_a_score_that_is_none():
  for score in ("magnitude", sparsejax.scores.magnitude):
    with pytest.raises(TypeError, match=r"^score: got "):
      sparsejax.ste(optax.sgd(0.1), 0.5, key=KEY, score=score)


def test_a_state_of_fine_tuning_that_came_back_as_a_dict():
  tx = sparsejax.finetune.lora(optax.sgd(0.1), key=KEY, rank=2)
  values, state = sparsejax.init(tx, {"w": PARAMS["w"]})
  with pytest.raises(TypeError, match=r"got a dict, wanted the FineTuneState"):
    tx.update(values, as_dict(state), values, update_masks=False)


def test_params_that_are_not_arrays_on_the_device():
  model = eqx.nn.MLP(4, 4, 8, 1, key=KEY)
  with pytest.raises(TypeError, match=r"^activation: .*eqx\.filter"):
    sparsejax.init(rigl(), model)
  params, state = sparsejax.init(rigl(), eqx.filter(model, eqx.is_array))
  sparsejax.check(params, state)
  with pytest.raises(TypeError, match=r"^name: got 'net', a str"):
    sparsejax.init(rigl(), {**PARAMS, "name": "net"})
  sharding = jax.sharding.SingleDeviceSharding(
    jax.devices()[0], memory_kind="pinned_host"
  )
  host = {**PARAMS, "w": jax.device_put(PARAMS["w"], sharding)}
  with pytest.raises(ValueError, match=r"^w: .*pinned_host memory, wanted"):
    sparsejax.init(rigl(), host)
  params, state = sparsejax.init(rigl(), PARAMS)
  with pytest.raises(TypeError, match=r"^got update_masks='grow'"):
    rigl().update(noise(0), state, params, update_masks="grow")


def test_a_wrapper_says_nothing_of_a_dense_optimizer():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sparsejax.transform.checks.check_surroundings(
      optax.chain(optax.sgd(0.1), optax.scale(2.0)).init(PARAMS)
    )
