"""Iterative magnitude pruning: rounds, rewinding, random masks, the line."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import sparsejax
from sparsejax import distributions, keys, lottery, scores
from tests.conformance import table

pytestmark = pytest.mark.core

KEY = jax.random.key(0)
EVERYTHING = distributions.matching("")


def which(masks):
  """Where sparse leaves are active, as lists."""
  return jax.tree.map(
    lambda m: np.flatnonzero(m).tolist() if np.ndim(m) else True, masks
  )


def kept(masks):
  return sum(int(np.sum(m)) for m in jax.tree.leaves(masks) if np.ndim(m))


# Masks before the first round.


def test_full_masks_are_true_where_prunable_and_scalars_elsewhere():
  params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "n": jnp.ones((2, 2), int)}
  masks = lottery.full_masks(params)
  assert {p: m.shape for p, m in masks.items()} == {
    "w": (2, 3),
    "b": (),
    "n": (),
  }
  for mask in masks.values():
    assert mask.dtype == bool
    assert mask.all()
  picked = lottery.full_masks(params, distributions.matching("b"))
  assert {p: m.shape for p, m in picked.items()} == {
    "w": (),
    "b": (3,),
    "n": (),
  }


def test_full_masks_refuse_what_cannot_be_sparse():
  with pytest.raises(ValueError, match="no leaf is prunable among 1"):
    lottery.full_masks({"b": jnp.ones(3)})
  with pytest.raises(ValueError, match=r"^n: int32\[2\] is asked to be sparse"):
    lottery.full_masks({"n": jnp.ones(2, int)}, EVERYTHING)


# A round.

PARAMS = {
  "a": jnp.array([4.0, -3, 0.5, -2]),
  "b": jnp.array([[-1.0, 5], [0.25, -6]]),
  "c": jnp.array([0.0, 0.0]),
}
MASKS = {
  "a": jnp.ones(4, bool),
  "b": jnp.ones((2, 2), bool),
  "c": jnp.array(True),
}


def test_one_threshold_over_all_sparse_leaves():
  masks = lottery.prune_round(PARAMS, MASKS, 0.5)
  assert which(masks) == {"a": [0, 1], "b": [1, 3], "c": True}
  masks = lottery.prune_round(PARAMS, masks, 0.25)
  assert which(masks) == {"a": [0], "b": [1, 3], "c": True}


def test_each_layer_by_itself():
  masks = lottery.prune_round(PARAMS, MASKS, 0.25, scope="layer")
  assert which(masks) == {"a": [0, 1, 3], "b": [0, 1, 3], "c": True}
  masks = lottery.prune_round(PARAMS, masks, 0.2, scope="layer")
  # 3 x 0.8 = 2.4 are kept of each.
  assert which(masks) == {"a": [0, 1], "b": [1, 3], "c": True}


def test_inactive_weights_do_not_count_whatever_their_score():
  masks = {**MASKS, "b": jnp.array([[True, False], [True, False]])}
  params = {**PARAMS, "b": PARAMS["b"].at[0, 1].set(jnp.nan)}
  new = lottery.prune_round(params, masks, 0.5)
  assert which(new) == {"a": [0, 1, 3], "b": [], "c": True}


def test_ties_are_cut_by_leaf_and_index_where_a_threshold_prunes_them_all():
  """open_lth prunes what does not exceed the weight of rank ceil(0.2 n)."""
  params = [jnp.array([1.0, 1, 1, 2]), jnp.array([1.0, 1, 3, 1, 1, 1])]
  masks = [jnp.ones(4, bool), jnp.ones(6, bool)]
  ours = lottery.prune_round(params, masks, 0.2)
  assert which(ours) == [[0, 1, 2, 3], [0, 1, 2, 3]]
  flat = np.concatenate([np.abs(x) for x in params])
  threshold = np.sort(flat)[int(np.ceil(0.2 * flat.size))]
  assert np.sum(flat > threshold) == 2
  distinct = np.arange(10.0)
  assert np.sum(distinct > np.sort(distinct)[2]) == 7  # one more than ours


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.filterwarnings("ignore:.*may as well stack layers")
def test_budgets_are_exact_and_masks_nested_over_14_rounds(scope):
  params = {"k": jnp.ones((37, 11)), "l": jnp.ones((5, 3, 7)), "b": jnp.ones(9)}
  masks = lottery.full_masks(params)
  count = {p: m.size for p, m in masks.items() if m.ndim}
  prune = jax.jit(lambda p, m: lottery.prune_round(p, m, 0.2, scope=scope))

  def rounded(n):
    return int(n * Fraction(4, 5) + Fraction(1, 2))

  for level in range(14):
    noise = np.random.default_rng(level)
    params = {
      p: jnp.asarray(noise.normal(size=x.shape), "f") for p, x in params.items()
    }
    new = prune(params, masks)
    for path, mask in new.items():
      assert not (mask & ~masks[path]).any()
    if scope == "global":
      total = rounded(kept(masks))
      assert kept(new) == total
      ranked = np.concatenate(
        [np.abs(params[p])[np.asarray(masks[p])] for p in ("k", "l")]
      )
      lowest = min(np.abs(params[p])[np.asarray(new[p])].min() for p in count)
      assert np.sum(ranked >= lowest) == total
    else:
      count = {p: rounded(n) for p, n in count.items()}
      assert {p: int(new[p].sum()) for p in count} == count
    masks = new
  assert new["b"].shape == ()


@pytest.mark.parametrize(
  "rate", [0.0, 0.2, 0.5, 0.999, 1 / 3, 0.1234567890123456, 1e-9, 1 - 2**-40]
)
def test_the_share_is_exact_at_any_size_and_rate(rate):
  """As fractions tell; n times the rate's digits is beyond 64 bits."""
  keep = 1 - Fraction(repr(rate))
  sizes = np.random.default_rng(0).integers(0, 2**31, 200)
  sizes = np.append(sizes, [0, 1, 2, 3, 5, 9, 10, 2**24 + 1, 2**31 - 1])
  share = jax.jit(
    functools.partial(lottery._share, decimals=lottery._decimals(keep))
  )
  wanted = [int(int(n) * keep + Fraction(1, 2)) for n in sizes]
  np.testing.assert_array_equal(share(sizes.astype(np.int32)), wanted)


def test_the_rate_is_the_decimal_that_it_prints_as():
  """45 x (1 - 0.9) is 4.5, though 1 - 0.9 in binary is less than 0.1."""
  assert 45 * (1 - 0.9) < 4.5
  masks = lottery.prune_round([jnp.arange(45.0)], [jnp.ones(45, bool)], 0.9)
  assert kept(masks) == 5


def test_leaves_of_several_dtypes_share_a_threshold():
  params = [jnp.array([1, 4], jnp.bfloat16), jnp.array([2.0, 3.99])]
  masks = lottery.prune_round(params, [jnp.ones(2, bool)] * 2, 0.5)
  assert which(masks) == [[1], [1]]


def test_other_scores_are_given_gradients_and_keys():
  w, masks = [jnp.array([4.0, 3, 2, 1])], [jnp.ones(4, bool)]
  grads = [jnp.array([0.0, -1, 2, 3])]
  prune = functools.partial(lottery.prune_round, w, masks, 0.5)
  assert which(prune(score=scores.gradient(), grads=grads)) == [[2, 3]]
  assert which(prune(score=scores.sensitivity(), grads=grads)) == [[1, 2]]
  noise = keys.uniform_like(KEY, w)[0]
  wanted = sorted(np.argsort(-noise)[:2].tolist())
  assert which(prune(score=scores.random(), key=KEY)) == [wanted]
  with pytest.raises(ValueError, match="got grads=None, wanted gradients"):
    prune(score=scores.sensitivity())
  with pytest.raises(ValueError, match="got grads=None, wanted gradients"):
    jax.eval_shape(lambda: prune(score=optax.identity()))
  with pytest.raises(TypeError, match="argument: 'key'"):
    prune(score=scores.random())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scores_that_are_not_finite_prune_nothing(scope):
  # 0.25 as elsewhere: what is compiled once serves several tests.
  prune = functools.partial(lottery.prune_round, rate=0.25, scope=scope)
  traced = jax.jit(prune)
  for bad in (np.nan, np.inf):
    b = np.array([[-1, bad], [0.25, -6]], np.float32)
    params = {**PARAMS, "b": jnp.asarray(b)}
    with pytest.raises(ValueError, match=r"^b: scores of active weights are"):
      prune(params, MASKS)
    assert which(traced(params, MASKS)) == which(MASKS)


def test_what_a_round_refuses():
  prune = lottery.prune_round
  with pytest.raises(
    ValueError, match=r"scope='leaf', wanted 'layer'.*'global'"
  ):
    prune(PARAMS, MASKS, 0.2, scope="leaf")
  for rate in (1.0, -0.1, float("nan")):
    with pytest.raises(ValueError, match=r"^rate: got .*in \[0, 1\)"):
      prune(PARAMS, MASKS, rate)
  with pytest.raises(ValueError, match="no leaf is sparse"):
    prune([jnp.ones(2)], [jnp.array(True)], 0.2)
  with pytest.raises(ValueError, match=r"^b: masks of shape \(4,\)"):
    prune(PARAMS, {**MASKS, "b": jnp.ones(4, bool)}, 0.2)
  with pytest.raises(TypeError, match=r"^a: got a mask of float32"):
    prune(PARAMS, {**MASKS, "a": jnp.ones(4)}, 0.2)


def test_a_round_may_be_mapped_and_masks_may_be_empty():
  params = [jnp.stack([jnp.arange(4.0), -jnp.arange(4.0)[::-1], jnp.ones(4)])]
  masks = [jnp.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)]
  prune = functools.partial(lottery.prune_round, rate=0.5)
  several = jax.jit(jax.vmap(prune))(params, masks)[0]
  np.testing.assert_array_equal(
    several, [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
  )


# Rewinding.

START = table.small_params()
STEP_K = 3
SCHEDULE = optax.cosine_decay_schedule(0.1, 10)
INNERS = {
  "momentum": lambda: optax.sgd(0.1, momentum=0.9),
  "cosine": lambda: optax.adam(SCHEDULE),
  "schedule_free": table.OPTIMIZERS["schedule_free"],
  "clip": table.OPTIMIZERS["clip"],
  "inject": table.OPTIMIZERS["inject"],
}


def stepper(tx):
  @jax.jit
  def step(params, state, i):
    grads = jax.tree.map(lambda p: jnp.cos(p + i), params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def train(step, params, state, begin, end):
  for i in range(begin, end):
    params, state = step(params, state, i)
  return params, state


@functools.cache
def trained(name):
  """A transformation, its step, and what it has at step k and at the end."""
  tx = sparsejax.fixed(INNERS[name](), lottery.full_masks(START))
  step = stepper(tx)
  saved = train(step, *sparsejax.init(tx, START), 0, STEP_K)
  return tx, step, saved, train(step, *saved, STEP_K, 5)


def ticket(params):
  return lottery.prune_round(params, lottery.full_masks(START), 0.5)


def count_of(state, kind):
  found = [
    s.count
    for s in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    if isinstance(s, kind)
  ]
  assert len(found) == 1
  return int(found[0])


@pytest.mark.parametrize("name", INNERS)
def test_moments_are_those_of_a_fresh_state_on_the_masked_params(name):
  tx, _, (params, saved), (last, _) = trained(name)
  masks = ticket(last)
  params, state = lottery.rewind(tx, params, saved, masks)
  assert table.inactive_are_zero(params, masks)
  begun = sparsejax.apply_masks(trained(name)[2][0], masks)
  assert table.same(params, begun)

  inner = INNERS[name]()
  fresh = inner.init(params)
  # What remains of the saved state: counters, and only in states of their own.
  remains = {
    jax.tree_util.keystr(path)
    for (path, x), y in zip(
      jax.tree_util.tree_leaves_with_path(state.inner_state),
      jax.tree.leaves(fresh),
      strict=True,
    )
    if not np.array_equal(x, y)
  }
  wanted = {
    "cosine": {"[1].count"},
    "inject": {
      ".count",
      ".hyperparams['learning_rate']",
      ".hyperparams_states['learning_rate'].count",
    },
  }
  assert remains == wanted.get(name, set())
  assert jax.tree.structure(state) == jax.tree.structure(saved)


def test_the_schedule_goes_on_from_step_k_while_adam_begins_anew():
  tx, step, (params, saved), (last, _) = trained("cosine")
  masks = ticket(last)
  params, state = lottery.rewind(tx, params, saved, masks)
  assert count_of(state, optax.ScaleByScheduleState) == STEP_K
  assert count_of(state, optax.ScaleByAdamState) == 0
  assert state.mask_state.count == STEP_K

  # The same step by hand: a fresh Adam, at the rate of step k.
  grads = jax.tree.map(lambda p: jnp.cos(p + STEP_K), params)
  inner = optax.adam(float(SCHEDULE(STEP_K)))
  grads = sparsejax.apply_masks(grads, masks)
  updates, _ = inner.update(grads, inner.init(params), params)
  stepped, _ = step(params, state, STEP_K)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    stepped,
    optax.apply_updates(params, updates),
  )
  assert table.inactive_are_zero(stepped, masks)


def test_learning_rate_rewinding_keeps_the_trained_weights():
  tx, _, (_, saved), (last, _) = trained("cosine")
  masks = ticket(last)
  params, state = lottery.rewind(tx, last, saved, masks)
  assert table.same(params, sparsejax.apply_masks(last, masks))
  assert count_of(state, optax.ScaleByScheduleState) == STEP_K


@pytest.mark.parametrize("name", ["momentum", "schedule_free"])
def test_from_step_0_it_is_training_with_these_masks_from_the_start(name):
  """The original lottery ticket, bit for bit."""
  tx, step, _, (last, _) = trained(name)
  masks = ticket(last)
  rewound = lottery.rewind(tx, *sparsejax.init(tx, START), masks)
  given = sparsejax.fixed(INNERS[name](), masks)
  begun = sparsejax.init(given, START)
  assert table.same(rewound, begun)
  assert table.same(train(step, *rewound, 0, 2), train(step, *begun, 0, 2))


def test_masks_and_budget_are_those_given_and_the_rest_is_as_saved():
  tx = sparsejax.rigl(
    contrib.schedule_free(optax.sgd(0.1), 0.1),
    0.6,
    key=KEY,
    t_end=100,
    delta_t=2,
  )
  _, saved = train(stepper(tx), *sparsejax.init(tx, START), 0, STEP_K)
  old = saved.mask_state
  saved = saved._replace(mask_state=old._replace(refused=jnp.int32(7)))
  # Weights that neither the masks at first nor those saved have active.
  kernel = ~(tx.init(START).mask_state.masks["kernel"] | old.masks["kernel"])
  masks = {"bias": jnp.array(True), "kernel": kernel}
  rewound, state = lottery.rewind(tx, START, saved, masks)
  new = state.mask_state
  assert table.same(new.masks, masks)
  assert jax.tree.map(int, new.budget) == {"bias": 8, "kernel": kernel.sum()}
  assert new.budget["kernel"].dtype == jnp.int32
  assert (int(new.count), int(new.refused)) == (STEP_K, 7)
  np.testing.assert_array_equal(new.key, old.key)
  assert table.same(rewound, sparsejax.apply_masks(START, masks))
  # An average of the params begins at the params under the masks given.
  assert table.same(state.inner_state.z, rewound)


def test_at_any_depth():
  """Chained, for a part of the params, and with a schedule around it."""
  full = {"bias": jnp.array(True), "kernel": jnp.ones((6, 8), bool)}
  labels = {"bias": "rest", "kernel": "sparse"}
  tx = optax.chain(
    optax.scale_by_schedule(lambda step: 1.0),
    optax.partition(
      {
        "sparse": sparsejax.gmp(
          optax.sgd(0.1, 0.9), 0.5, key=KEY, begin=1, end=9, delta_t=2
        ),
        "rest": optax.sgd(0.1, 0.9),
      },
      labels,
    ),
  )
  params, saved = train(stepper(tx), *sparsejax.init(tx, START), 0, STEP_K)
  masks = ticket(params)
  params, state = lottery.rewind(tx, params, saved, masks)
  got = sparsejax.get_masks(state)
  assert table.same(got, masks)
  assert table.inactive_are_zero(params, masks)
  assert count_of(state, optax.ScaleByScheduleState) == STEP_K
  traces = [
    s.trace
    for s in jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, optax.TraceState)
    )
    if isinstance(s, optax.TraceState)
  ]
  assert len(traces) == 2
  assert not any(x.any() for x in jax.tree.leaves(traces))
  with pytest.raises(ValueError, match=r"^bias: .* no sparse transformation"):
    lottery.rewind(tx, params, saved, {**full, "bias": jnp.ones(8, bool)})


def test_params_that_only_the_forward_pass_masks_stay_whole():
  tx = sparsejax.sparsify(
    optax.sgd(0.1, 0.9),
    sparsejax.updates.fixed(lottery.full_masks(START)),
    when=sparsejax.schedules.never,
    key=None,
    enforce=False,
  )
  params, saved = sparsejax.init(tx, START)
  masks = ticket(START)
  params, state = lottery.rewind(tx, params, saved, masks)
  assert table.same(params, START)
  forward = sparsejax.forward_params(params, state)
  assert table.inactive_are_zero(forward, masks)


def test_under_jit_and_with_what_was_saved_left_alone():
  tx, _, (params, saved), (last, _) = trained("cosine")
  masks = ticket(last)
  rewind = jax.jit(functools.partial(lottery.rewind, tx))
  plain = lottery.rewind(tx, params, saved, masks)
  assert table.same(rewind(params, saved, masks), plain)
  before = jax.device_get((params, saved, masks))
  for begun in (plain, rewind(params, saved, masks)):
    for x in jax.tree.leaves(begun):
      x.delete()  # as donating it does
  assert table.same(jax.device_get((params, saved, masks)), before)


def test_what_rewinding_refuses():
  tx, _, (params, saved), _ = trained("momentum")
  masks = lottery.full_masks(START)
  with pytest.raises(ValueError, match="with 0 mask states, wanted one"):
    lottery.rewind(tx, params, saved.inner_state, masks)
  with pytest.raises(ValueError, match="wanted a state of this transformation"):
    lottery.rewind(trained("cosine")[0], params, saved, ticket(params))
  with pytest.raises(ValueError, match=r"^kernel: masks of shape \(8,\)"):
    lottery.rewind(tx, params, saved, {**masks, "kernel": jnp.ones(8, bool)})
  with pytest.raises(TypeError, match=r"^kernel: got a mask of float32"):
    lottery.rewind(tx, params, saved, {**masks, "kernel": jnp.ones((6, 8))})
  # An error on the way leaves nothing behind.
  assert table.same(tx.init(START).mask_state.masks, masks)


# Random masks of the same budget.


def test_shuffled_masks_keep_their_budget_and_nest():
  order = np.random.default_rng(0).permutation(60).reshape(6, 10)
  few = {"k": jnp.asarray(order < 9), "b": jnp.array(True)}
  many = {"k": jnp.asarray(order < 30), "b": jnp.array(True)}
  a, b = (lottery.shuffle(m, key=KEY) for m in (few, many))
  for old, new in ((few, a), (many, b)):
    assert kept(new) == kept(old)
    assert new["b"].shape == ()
    assert (new["k"] != old["k"]).any()
  assert not (a["k"] & ~b["k"]).any()
  other = lottery.shuffle(few, key=jax.random.key(1))
  assert (other["k"] != a["k"]).any()


def test_a_draw_depends_on_the_path_and_on_nothing_else():
  mask = jnp.arange(60).reshape(6, 10) < 30
  both = lottery.shuffle({"a": mask, "b": mask}, key=KEY)
  assert (both["a"] != both["b"]).any()
  shuffle = jax.jit(lambda m, key: lottery.shuffle(m, key=key))
  alone = shuffle({"b": mask, "other": {"a": jnp.array(True)}}, KEY)
  np.testing.assert_array_equal(alone["b"], both["b"])


# The line between two networks.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_line_has_exact_ends(dtype):
  a = {"w": jnp.array([1, -0.0, 3], dtype), "n": jnp.array([1, 2])}
  b = {"w": jnp.array([2, 5, jnp.inf], dtype), "n": jnp.array([7, 8])}
  line = jax.jit(lottery.interpolate)
  assert table.same(line(a, b, 0.0), a)
  assert table.same(line(a, b, 1.0), {"w": b["w"], "n": a["n"]})
  middle = lottery.interpolate(a, b, 0.25)
  assert middle["w"].dtype == dtype
  np.testing.assert_array_equal(middle["w"].astype("f"), [1.25, 1.25, np.inf])


def test_half_precision_is_computed_in_float32():
  a, b = jnp.array(256, jnp.bfloat16), jnp.array(-256, jnp.bfloat16)
  weight = 0.501  # which bfloat16 rounds to 0.5
  point = lottery.interpolate(a, b, weight)
  assert point == jnp.asarray(256 * (1 - 2 * weight), jnp.bfloat16)


def test_only_alike_networks_have_a_line():
  with pytest.raises(ValueError, match=r"^w: ends of the line of shape \(\)"):
    lottery.interpolate({"w": jnp.ones(2)}, {"w": jnp.array(1.0)}, 0.5)


def test_a_barrier_is_the_rise_over_the_mean_of_the_ends():
  assert lottery.barrier([0.1, 0.3, 0.4, 0.2]) == pytest.approx(0.25)
  assert lottery.barrier(np.float32([0.5, 0.5])) == 0
  assert lottery.barrier([0.5, 0.25, 0.5]) == 0
  for bad in ([], [0.1], [0.1, np.nan, 0.2], [[0.1, 0.2]]):
    with pytest.raises(ValueError, match="wanted at least two finite ones"):
      lottery.barrier(bad)
