"""Layers that are stacked in one array are budgeted and pruned one by one.

The reference is always the same layers in arrays of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import distributions, initial, lottery, patterns, roles
from sparsejax.roles import Role
from tests.marks import slow

KEY = jax.random.key(0)
LAYERS = 5
STACK = {"layers": {"kernel": jax.random.normal(KEY, (LAYERS, 16, 12))}}
SINGLE = {f"w{i}": STACK["layers"]["kernel"][i] for i in range(LAYERS)}
GRADS = {
  "layers": {"kernel": jax.random.normal(jax.random.key(1), (LAYERS, 16, 12))}
}


def kernel(tree):
  return np.asarray(tree["layers"]["kernel"])


def apart(tree):
  return {f"w{i}": w for i, w in enumerate(tree["layers"]["kernel"])}


def together(tree):
  return np.stack([tree[f"w{i}"] for i in range(LAYERS)])


@pytest.mark.parametrize("name", ["uniform", "erdos_renyi", "erk"])
def test_a_stack_gets_what_its_layers_get(name):
  head = {"head": jnp.ones((64, 1000))}
  stack = {"layers": {"kernel": jnp.ones((24, 64, 256))}}
  single = {f"layer_{i}": jnp.ones((64, 256)) for i in range(24)}
  got = distributions.budgets(stack | head, 0.9, name)
  want = distributions.budgets(single | head, 0.9, name)
  assert abs(got["head"] - want["head"]) <= 1
  assert sum(got.values()) == sum(want.values())


def test_queries_get_what_their_matrix_gets():
  params = {
    "query": {"kernel": jnp.ones((64, 8, 32)), "bias": jnp.ones((8, 32))},
    "key": {"kernel": jnp.ones((64, 8, 32)), "bias": jnp.ones((8, 32))},
    "out": {"kernel": jnp.ones((8, 32, 64)), "bias": jnp.ones(64)},
    "w": jnp.ones((64, 1000)),
  }
  flat = {
    "query/kernel": jnp.ones((64, 256)),
    "key/kernel": jnp.ones((64, 256)),
    "out/kernel": jnp.ones((256, 64)),
    "w": jnp.ones((64, 1000)),
  }
  for name in ("uniform", "erdos_renyi", "erk"):
    got = distributions.budgets(params, 0.9, name)
    assert got == distributions.budgets(flat, 0.9, name)


@pytest.mark.slow
def test_features_of_equinox_are_found_wherever_they_are():
  """The last two axes are places of its kernels, [out, in, 3, 3]."""
  eqx = pytest.importorskip("equinox")
  conv = eqx.filter(eqx.nn.Conv2d(4, 32, 3, key=KEY), eqx.is_inexact_array)
  params = {"conv": conv, "w": jnp.ones((100, 100))}
  got = distributions.budgets(params, 0.9, "erdos_renyi")
  shapes = {"conv/weight": (3, 3, 4, 32), "w": (100, 100)}
  assert got == distributions.erdos_renyi(shapes, 0.9)
  n_of_m = patterns.n_of_m(2, 4)
  tx = sparsejax.static(optax.sgd(0.1), 0.5, key=KEY, pattern=n_of_m)
  mask = sparsejax.get_masks(tx.init(params))["conv"].weight
  assert (np.asarray(mask).sum(1) == 2).all()


def test_budgets_of_layers_differ_by_one_at_most_and_add_up():
  tx = sparsejax.static(optax.sgd(0.1), 0.777, key=KEY)
  state = tx.init(STACK).mask_state
  counts = kernel(state.masks).sum((1, 2))
  total = distributions.budgets(STACK, 0.777)["layers/kernel"]
  assert counts.sum() == total == round(LAYERS * 192 * 0.223)
  assert np.ptp(counts) <= 1
  assert state.budget["layers"]["kernel"].shape == (LAYERS, 1, 1)
  np.testing.assert_array_equal(kernel(state.budget).ravel(), counts)


def test_layers_that_are_to_keep_other_numbers_are_refused():
  def rising(shapes, sparsity):
    return {path: 10 * i for i, path in enumerate(shapes)}

  with pytest.raises(ValueError, match=r"layers/kernel: .* 5 layers from 0 to"):
    distributions.budgets(STACK, 0.5, rising)
  rules = distributions.by_path({"kernel$": 0.75})  # of all its layers
  assert distributions.budgets(STACK, 0.5, rules)["layers/kernel"] == 240


PATTERNS = {
  "unstructured": patterns.unstructured(),
  "fan_in": patterns.fan_in(),
  "channels": patterns.channels(),
  "heads": patterns.heads(3),
  "2:4": patterns.n_of_m(2, 4),
  "1:2 both": patterns.transposable_n_of_m(1, 2),
  "blocks": patterns.blocks((4, 3)),
}


def algorithms(pattern):
  make = {"key": KEY, "distribution": "uniform", "pattern": pattern}
  sgd = optax.sgd(0.1)
  yield sparsejax.rigl(sgd, 0.5, t_end=100, delta_t=1, **make)
  yield sparsejax.gmp(sgd, 0.5, begin=0, end=3, delta_t=1, **make)


@pytest.mark.parametrize(
  "name",
  [slow(p) if p in ("1:2 both", "2:4") else p for p in PATTERNS],
)
def test_masks_move_as_those_of_layers_apart(name):
  """Given the same masks to begin with, since draws are keyed by path."""
  for tx, alone in zip(
    algorithms(PATTERNS[name]), algorithms(PATTERNS[name]), strict=True
  ):
    state = tx.init(STACK)
    masks = sparsejax.get_masks(state)
    start = alone.init(SINGLE)
    old = start.mask_state
    start = start._replace(
      mask_state=old._replace(
        masks=jax.tree.map(jnp.asarray, apart(masks)),
        budget={
          path: kernel(state.mask_state.budget)[i, 0, 0]
          for i, path in enumerate(SINGLE)
        },
      )
    )
    for _ in range(4):
      _, state = tx.update(GRADS, state, STACK, update_masks=True)
      _, start = alone.update(apart(GRADS), start, SINGLE, update_masks=True)
      np.testing.assert_array_equal(
        kernel(sparsejax.get_masks(state)),
        together(sparsejax.get_masks(start)),
      )


def test_one_layer_that_is_not_finite_stays_and_the_others_move():
  tx = sparsejax.rigl(optax.sgd(0.1), 0.5, key=KEY, t_end=9, delta_t=1)
  state = tx.init(STACK)
  before = kernel(sparsejax.get_masks(state))
  grads = jax.tree.map(lambda g: g.at[2, 0, 0].set(jnp.nan), GRADS)
  _, state = tx.update(grads, state, STACK, update_masks=True)
  moved = (kernel(sparsejax.get_masks(state)) != before).any((1, 2))
  np.testing.assert_array_equal(moved, [True, True, False, True, True])
  assert int(state.mask_state.refused) == 1


def test_masks_that_are_given_keep_each_layer_its_number():
  given = jnp.abs(kernel(STACK)) > jnp.linspace(0.2, 1.5, LAYERS)[:, None, None]
  want = given.sum((1, 2))
  tx = sparsejax.rigl(
    *(optax.sgd(0.1), 0.5),
    key=KEY,
    t_end=9,
    delta_t=1,
    masks={"layers": {"kernel": given}},
  )
  state = tx.init(STACK)
  _, state = tx.update(GRADS, state, STACK, update_masks=True)
  mask = kernel(sparsejax.get_masks(state))
  assert (mask != np.asarray(given)).any()
  np.testing.assert_array_equal(mask.sum((1, 2)), want)


def test_ablation_of_neurons_by_layer():
  make = {"key": KEY, "t_end": 9, "delta_t": 1, "distribution": "uniform"}
  make["never_ablate"] = distributions.matching("^head")
  tx, alone = (sparsejax.srigl(optax.sgd(0.1), 0.5, **make) for _ in range(2))
  state, start = tx.init(STACK), alone.init(SINGLE)
  masks = sparsejax.get_masks(state)
  start = start._replace(
    mask_state=start.mask_state._replace(masks=apart(masks))
  )
  _, state = tx.update(GRADS, state, STACK, update_masks=True)
  _, start = alone.update(apart(GRADS), start, SINGLE, update_masks=True)
  np.testing.assert_array_equal(
    kernel(sparsejax.get_masks(state)), together(sparsejax.get_masks(start))
  )


def mask_of(pattern, part="query"):
  """Draws the mask of a query [16, 4, 3], or of what is behind it."""
  params = {
    "query": {"kernel": jax.random.normal(KEY, (16, 4, 3))},
    "out": {"kernel": jax.random.normal(KEY, (4, 3, 16))},
  }
  tx = sparsejax.static(
    *(optax.sgd(0.1), 0.5),
    key=KEY,
    distribution="uniform",
    prunable=distributions.matching(part),
    pattern=pattern,
  )
  masks = sparsejax.get_masks(tx.init(params))
  return np.asarray(masks[part]["kernel"])


def test_n_of_m_of_attention_is_along_what_products_sum_over():
  groups = mask_of("2:4").reshape(4, 4, 12)  # inputs
  assert (groups.sum(1) == 2).all()
  groups = mask_of("2:4", "out").reshape(3, 4, 16)  # heads x size
  assert (groups.sum(1) == 2).all()
  given = mask_of(patterns.n_of_m(2, 4, axis=1)).reshape(16, 4, 3)  # as asked
  assert (given.sum(1) == 2).all()


def test_patterns_of_queries_are_those_of_their_matrix():
  assert mask_of("channels").reshape(16, 12).any(0).sum() == 6
  assert mask_of(patterns.heads(4)).any((0, 2)).sum() == 2
  assert (mask_of("fan_in").reshape(16, 12).sum(0) == 8).all()
  tiles = mask_of("4x4").reshape(4, 4, 3, 4).sum((1, 3))
  assert set(tiles.ravel()) == {0, 16}


def test_thresholds_are_learned_by_layer():
  scale = jnp.arange(1.0, LAYERS + 1)[:, None, None]
  params = jax.tree.map(lambda w: w * scale, STACK)
  make = {"key": KEY, "initial": -1.0, "optimizer": optax.sgd(0.1)}
  tx = sparsejax.str_(optax.sgd(0.1), **make)
  alone = sparsejax.str_(optax.sgd(0.1), **make)
  state, start = tx.init(params), alone.init(apart(params))
  for _ in range(2):
    _, state = tx.update(GRADS, state, params)
    _, start = alone.update(apart(GRADS), start, apart(params))
  raw = kernel(state.mask_state.scores.raw)
  assert raw.shape == (LAYERS, 1, 1)
  np.testing.assert_allclose(
    raw.ravel(), together(start.mask_state.scores.raw), rtol=1e-6
  )
  got = sparsejax.forward_params(params, state)
  want = sparsejax.forward_params(apart(params), start)
  np.testing.assert_allclose(kernel(got), together(want), rtol=1e-6)


def test_rounds_of_the_lottery_by_layer():
  scale = jnp.logspace(0, -4, LAYERS)[:, None, None]
  params = jax.tree.map(lambda w: w * scale, STACK)
  masks, alone = (lottery.full_masks(x) for x in (params, apart(params)))
  for _ in range(3):
    masks = lottery.prune_round(params, masks, 0.3, scope="layer")
    alone = lottery.prune_round(apart(params), alone, 0.3, scope="layer")
  np.testing.assert_array_equal(kernel(masks), together(alone))
  shuffled = lottery.shuffle(masks, key=KEY)
  assert (kernel(shuffled) != kernel(masks)).any()
  counts = kernel(masks).sum((1, 2))
  np.testing.assert_array_equal(kernel(shuffled).sum((1, 2)), counts)
  masks = lottery.prune_round(params, masks, 0.5)  # global
  assert kernel(masks)[-1].sum() < kernel(masks)[0].sum()
  tx = sparsejax.fixed(optax.sgd(0.1), lottery.full_masks(params))
  _, saved = sparsejax.init(tx, params)
  _, state = lottery.rewind(tx, params, saved, masks)
  budget = state.mask_state.budget["layers"]["kernel"]
  np.testing.assert_array_equal(
    budget.ravel(), kernel(masks).sum((1, 2)), strict=False
  )


def test_masks_before_training_by_layer():
  def loss(params, batch):
    layers = params["layers"]["kernel"]
    return sum(jnp.sum(jnp.tanh(batch @ w) ** 2) for w in layers)

  def loss_apart(params, batch):
    return loss({"layers": {"kernel": jnp.stack(list(params.values()))}}, batch)

  batches = [jax.random.normal(KEY, (8, 16))]
  for method in (initial.snip, initial.force, initial.magnitude):
    masks, alone = (
      method(f, params, batches, 0.8, distribution="uniform")
      for f, params in ((loss, STACK), (loss_apart, SINGLE))
    )

    assert np.ptp(kernel(masks).sum((1, 2))) <= 1
    assert sparsejax.nnz(masks) == sparsejax.nnz(alone) == 192


def test_axes_that_are_said_to_be_stacked_may_lie_anywhere():
  w = jax.random.normal(KEY, (16, LAYERS, 12))
  said = roles.by_path({"w": Role("weight", stacked=(1,))})
  tx = sparsejax.static(
    *(optax.sgd(0.1), 0.5),
    key=KEY,
    distribution="uniform",
    prunable=said,
    pattern="fan_in",
  )
  mask = np.asarray(sparsejax.get_masks(tx.init({"w": w}))["w"])
  assert (mask.sum(0) == 8).all()
  full = lottery.full_masks({"w": w}, said)
  pruned = lottery.prune_round(
    {"w": w}, full, 0.25, scope="layer", prunable=said
  )
  np.testing.assert_array_equal(pruned["w"].sum((0, 2)), [144] * LAYERS)


@pytest.mark.slow
def test_two_stacked_axes():
  params = {"layers": {"experts": {"kernel": jnp.ones((3, 2, 8, 4))}}}
  tx = sparsejax.set_(
    *(optax.sgd(0.1), 0.5),
    key=KEY,
    t_end=9,
    delta_t=1,
    distribution="uniform",
    pattern="fan_in",
  )
  state = tx.init(params)
  _, state = tx.update(params, state, params, update_masks=True)
  mask = sparsejax.get_masks(state)["layers"]["experts"]["kernel"]
  assert (mask.sum(2) == 4).all()


def test_dead_units_of_each_layer():
  mask = np.ones((2, 3, 4), bool)
  mask[0, :, 1], mask[1, 2] = False, False
  dead = sparsejax.instruments.dead_units({"layers": {"kernel": mask}})
  found = dead["layers/kernel"]
  np.testing.assert_array_equal(found.outputs.nonzero(), [[0], [1]])
  np.testing.assert_array_equal(found.inputs.nonzero(), [[1], [2]])


def test_a_score_with_a_state_rates_by_layer():
  tx = sparsejax.snfs(optax.sgd(0.1), 0.5, key=KEY, t_end=9, delta_t=1)
  state = tx.init(STACK)
  for _ in range(3):
    _, state = tx.update(GRADS, state, STACK, update_masks=True)
  counts = kernel(sparsejax.get_masks(state)).sum((1, 2))
  np.testing.assert_array_equal(counts, [96] * LAYERS)
