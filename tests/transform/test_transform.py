"""Bad input to `sparsify` and its algorithms, and the options of a step."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import sparsejax
from sparsejax import xla

pytestmark = pytest.mark.core

KEY = jax.random.key(0)
PARAMS = {"a": {"w": jnp.ones((4, 4))}, "b": jnp.ones(4)}


def make(algorithm=sparsejax.rigl, inner=None, sparsity=0.5, **options):
  options = {"key": KEY, "t_end": 10, "delta_t": 3} | options
  return algorithm(inner or optax.adam(0.1), sparsity, **options)


gmp = functools.partial(sparsejax.gmp, optax.sgd(0.1), 0.5, key=KEY)


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.0, 90, float("nan")])
@pytest.mark.parametrize(
  "algorithm", [sparsejax.rigl, sparsejax.set_, sparsejax.snfs, sparsejax.seft]
)
def test_a_sparsity_is_refused_when_the_algorithm_is_made(algorithm, sparsity):
  with pytest.raises(ValueError, match=r"sparsity: got .*wanted the share of"):
    make(algorithm, sparsity=sparsity)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: make(delta_t=0), "got 0 steps between updates, wanted at least 1"),
    (lambda: make(delta_t=-5), "got -5 steps between"),
    (lambda: make(sparsejax.set_, delta_t=-5), "period=-5 .*wanted a period"),
    (lambda: make(t_end=0), "got t_end=0, wanted the step from which masks"),
    (lambda: make(t_end=-3), "got t_end=-3"),
    (lambda: make(fraction=1.5), r"fraction=1.5, wanted .* in \[0, 1\]"),
    (lambda: make(fraction=-0.1), r"fraction=-0.1"),
    (lambda: make(accumulate=4), "got 4 gradients to average, wanted 1 to 3"),
    (lambda: make(sparsejax.snfs, decay=1.0), r"decay=1.0, wanted .*\[0, 1\)"),
    (lambda: make(sparsejax.seft, smoothing=-1), r"decay=-1, wanted one in"),
    (lambda: gmp(begin=5, end=5), "begin=5, end=5.*wanted an end after"),
    (lambda: gmp(begin=0, end=25, delta_t=10), "by a multiple of delta_t"),
    (lambda: gmp(begin=0, end=20, delta_t=-10), "delta_t=-10: wanted"),
    (lambda: gmp(begin=-10, end=20, delta_t=10), "start=-10, wanted"),
    (lambda: sparsejax.static(optax.sgd(0.1), 1.2, key=KEY), "got 1.2"),
    (
      lambda: sparsejax.gmp(optax.sgd(0.1), 1.2, key=KEY, begin=0, end=100),
      "got 1.2",
    ),
  ],
)
def test_numbers_out_of_range_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_distribution_that_cannot_be_met():
  params = {"a": jnp.ones((3, 3)), "c": jnp.ones((2, 2))}
  tx = make(sparsity=0.9)
  with pytest.raises(ValueError, match=r"1 weights .* \(a, c\): lower the spa"):
    sparsejax.init(tx, params)


@pytest.mark.parametrize("key", [None, 0])
def test_a_key_is_wanted(key):
  for tx in (make(key=key), gmp(begin=0, end=100, key=key)):
    with pytest.raises(TypeError, match=f"got key={key}, wanted a PRNG key"):
      sparsejax.init(tx, PARAMS)


def test_old_and_new_keys_draw_the_same_masks():
  _, new = sparsejax.init(make(key=jax.random.key(7)), PARAMS)
  _, old = sparsejax.init(make(key=jax.random.PRNGKey(7)), PARAMS)
  np.testing.assert_array_equal(
    sparsejax.get_masks(new)["a"]["w"], sparsejax.get_masks(old)["a"]["w"]
  )


W, B = PARAMS["a"]["w"], PARAMS["b"]


@pytest.mark.parametrize(
  ("grads", "message"),
  [
    ({"a": {"w": W}}, "^b: gradients lack a leaf that the params have"),
    ({"a": {"w": None}, "b": B}, "^a/w: gradients lack a leaf"),
    ({"a": {"w": W, "x": B}, "b": B}, "^a/x: gradients have a leaf that the"),
    (
      {"a": {"w": jnp.ones((4, 3))}, "b": B},
      r"^a/w: gradients of shape \(4, 3\), wanted \(4, 4\).*same structure",
    ),
    ((W, B), "^0: gradients have a leaf that the params lack"),
  ],
)
@pytest.mark.parametrize("update_masks", [None, True, False])
def test_gradients_that_do_not_fit(grads, message, update_masks):
  tx = make()
  params, state = sparsejax.init(tx, PARAMS)
  with pytest.raises(ValueError, match=message):
    tx.update(grads, state, params, update_masks=update_masks)


def test_gradients_in_another_order():
  """As OrderedDicts may be; leaf by leaf they would be mixed up."""
  tx = make()
  params, state = sparsejax.init(tx, {"a": W, "b": W})
  grads = collections.OrderedDict(b=W, a=W)
  with pytest.raises(
    ValueError, match=r"order \['b', 'a'\], wanted \['a', 'b'"
  ):
    tx.update(grads, state, params)


def test_params_are_needed():
  tx = make()
  _, state = sparsejax.init(tx, PARAMS)
  with pytest.raises(
    ValueError, match=r"params=None, wanted the params.*tx.up"
  ):
    tx.update(PARAMS, state)


@pytest.mark.parametrize(
  ("mask", "error", "message"),
  [
    (
      jnp.ones((4, 5), bool),
      ValueError,
      r"^a/w: masks .*state of shape \(4, 5",
    ),
    (jnp.ones((4, 4)), TypeError, "^a/w: got a mask of float32, wanted bool"),
  ],
)
def test_masks_in_the_state_that_do_not_fit(mask, error, message):
  tx = make()
  params, state = sparsejax.init(tx, PARAMS)
  masks = {"a": {"w": mask}, "b": jnp.array(True)}
  state = state._replace(mask_state=state.mask_state._replace(masks=masks))
  with pytest.raises(error, match=message):
    tx.update(params, state, params, update_masks=False)


def test_a_state_of_other_params():
  tx = make()
  _, state = sparsejax.init(tx, PARAMS)
  other = {"c": W}
  with pytest.raises(ValueError, match=r"^a/w: masks in the optimizer state"):
    tx.update(other, state, other)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_params_that_are_not_finite(bad):
  params = {"a": {"w": W.at[1, 2].set(bad)}, "b": B, "n": jnp.arange(3)}
  with pytest.raises(ValueError, match=r"^a/w: \(4, 4\) params hold NaN or"):
    sparsejax.init(make(), params)
  with pytest.raises(ValueError, match=r"^the array: "):
    sparsejax.init(make(), params["a"]["w"])


def test_params_of_eight_bits_are_refused():
  tx = sparsejax.static(optax.sgd(0.1), 0.5, key=jax.random.key(0))
  with pytest.raises(TypeError, match="w: got params of float8_e4m3fn"):
    sparsejax.init(tx, {"w": jnp.ones((4, 4), jnp.float8_e4m3fn)})


def test_no_masks_in_a_plain_state():
  wanted = "no masks in this optimizer state, a tuple: make it with an algo"
  with pytest.raises(ValueError, match=wanted):
    sparsejax.get_masks(optax.adam(0.1).init(PARAMS))
  with pytest.raises(ValueError, match=wanted):
    sparsejax.init(optax.adam(0.1), PARAMS)
  with pytest.raises(ValueError, match="state, a dict"):
    sparsejax.get_masks(PARAMS)


@pytest.mark.parametrize(
  "tx",
  [
    optax.chain(make(), sparsejax.static(optax.identity(), 0.5, key=KEY)),
    make(inner=make()),
  ],
)
def test_two_sparse_transformations(tx):
  with pytest.raises(
    ValueError, match=r"^a/w: 2 masks for one leaf, .*chain on"
  ):
    sparsejax.init(tx, PARAMS)


# The options of a step.


def primitives(f, *arguments):
  """The names of all primitives, those of inner jaxprs included."""

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      yield equation.primitive.name
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from walk(inner)

  return list(walk(jax.make_jaxpr(f)(*arguments).jaxpr))


def test_update_masks_overrides_the_schedule():
  tx = make(delta_t=3, fraction=1.0)
  grads = jax.random.normal(KEY, (4, 4))
  params, first = sparsejax.init(tx, jax.random.normal(KEY, (4, 4)))

  def moved(count, update_masks):
    mask_state = first.mask_state._replace(count=jnp.int32(count))
    state = first._replace(mask_state=mask_state)
    _, state = tx.update(grads, state, params, update_masks=update_masks)
    assert state.mask_state.count == count + 1
    old = sparsejax.get_masks(first)
    return bool((sparsejax.get_masks(state) != old).any())

  assert [moved(t, None) for t in (0, 1, 3, 4, 6, 12)] == [0, 0, 1, 0, 1, 0]
  for flag in (True, np.True_, jnp.array(True)):
    assert moved(1, flag)
  for flag in (False, np.False_, jnp.array(False)):
    assert not moved(3, flag)


def test_a_python_bool_is_settled_at_trace_time():
  tx = make()
  params, state = sparsejax.init(tx, PARAMS)

  def names(update_masks):
    return primitives(
      lambda g, s, p: tx.update(g, s, p, update_masks=update_masks),
      *(params, state, params),
    )

  assert "top_k_mask" in names(None)
  assert "cond" in names(None)
  assert "top_k_mask" in names(True)
  selecting = {"top_k_mask", "reduce_sum", "cond", "while", "scan"}
  assert not selecting & set(names(False))


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("update_masks", [True, False])
def test_all_three_ways_give_the_same_bits(
  update_masks, accelerator, monkeypatch
):
  if accelerator:
    monkeypatch.setattr(xla, "cond_of_changes", xla._by_changes)
  # Adafactor's second moments are not 0 outside the mask.
  tx = make(delta_t=1, inner=optax.adafactor(0.1))
  params, state = sparsejax.init(tx, PARAMS)
  grads = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape), params)
  _, state = tx.update(grads, state, params, update_masks=False)
  count = jnp.int32(1 if update_masks else 0)
  state = state._replace(mask_state=state.mask_state._replace(count=count))
  update = jax.jit(tx.update)
  static = jax.jit(tx.update, static_argnames="update_masks")
  ways = [
    update(grads, state, params),
    update(grads, state, params, update_masks=jnp.array(update_masks)),
    static(grads, state, params, update_masks=update_masks),
  ]
  for other in ways[1:]:
    jax.tree.map(np.testing.assert_array_equal, ways[0], other)


def test_extra_arguments_reach_the_inner_optimizer():
  seen = []

  def update(updates, state, params=None, *, value, temperature, **extra):
    seen.append((float(value), temperature, sorted(extra)))
    return updates, state

  probe = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
  tx = make(inner=optax.chain(optax.sgd(0.1), probe))
  params, state = sparsejax.init(tx, PARAMS)
  for update_masks in (False, True):
    tx.update(
      params,
      state,
      params,
      update_masks=update_masks,
      value=2.0,
      temperature="hot",
      epoch=3,
    )
  assert seen == [(2.0, "hot", ["epoch"])] * 2


def test_reduce_on_plateau_gets_its_value():
  plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
  tx = make(inner=optax.chain(optax.sgd(0.1), plateau))
  params, state = sparsejax.init(tx, PARAMS)
  for _ in range(5):
    updates, state = tx.update(params, state, params, value=1.0)
    params = optax.apply_updates(params, updates)
  assert optax.tree.get(state, "scale") < 1


def test_masks_are_asked_of_nodes_that_stand_for_them():
  """And a module that happens to have a `mask` is a part of the tree."""

  @functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "weight"],
    meta_fields=[],
  )
  @dataclasses.dataclass
  class Module:
    mask: Any
    weight: Any

  @functools.partial(
    jax.tree_util.register_dataclass, data_fields=["places"], meta_fields=[]
  )
  @dataclasses.dataclass
  class Places:
    places: Any

    def __sparsejax_mask__(self):
      return jnp.zeros(4, bool).at[self.places].set(True)

  params = Module(jnp.ones(4), jnp.ones(4))
  _, state = sparsejax.init(sparsejax.dense(optax.sgd(0.1)), params)
  masks = Module(jnp.array(True), Places(jnp.array([1, 3])))
  state = state._replace(mask_state=state.mask_state._replace(masks=masks))
  found = sparsejax.get_masks(state)
  assert found.mask.ndim == 0
  np.testing.assert_array_equal(found.weight, [False, True, False, True])
