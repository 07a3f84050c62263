"""Updates computed by hand, and RigL's whole loop written again in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import distributions, scores

KEY = jax.random.key(0)
ACTIVE = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]], bool)


def _begin(tx, params, mask):
  """The state with a given mask in place of the random one."""
  state = tx.init(jnp.asarray(params))
  assert int(state.mask_state.budget) == mask.sum()
  mask_state = state.mask_state._replace(masks=jnp.asarray(mask))
  return jnp.asarray(params), state._replace(mask_state=mask_state)


def _step(tx, params, state, grads):
  change, state = tx.update(jnp.asarray(grads), state, params)
  return optax.apply_updates(params, change), state


def test_rigl_by_hand():
  # Ten weights, five active, at linear indices 0, 1, 3, 6 and 7.
  params = np.array([[0.5, -0.1, 0, 0.1, 0], [0, 0.1, -0.9, 0, 0]], "f")
  # Updates at step 2 only. alpha = 0.9, so f = 0.9 / 2 (1 + cos(pi 2 / 4)) =
  # 0.45, and trunc(0.45 x 5) = trunc(2.25) = 2 weights move.
  tx = sparsejax.rigl(
    optax.sgd(0.25, momentum=0.5),
    0.5,
    key=KEY,
    t_end=4,
    delta_t=2,
    fraction=0.9,
  )
  params, state = _begin(tx, params, ACTIVE)

  # Steps 0 and 1 with gradients of 0 at first, then 1: momentum 0, then 1 at
  # active weights, which take off 0.25.
  params, state = _step(tx, params, state, np.zeros((2, 5), "f"))
  params, state = _step(tx, params, state, np.ones((2, 5), "f"))
  np.testing.assert_array_equal(state.inner_state[0].trace, ACTIVE)
  w = np.array([[0.25, -0.35, 0, -0.15, 0], [0, -0.15, -1.15, 0, 0]], "f")
  np.testing.assert_allclose(params, w, atol=1e-7)
  # Rounded values for exact ties: |w| is .25 .375 .125 .125 1.125 by index.
  params = jnp.array(
    [[0.25, -0.375, 0, -0.125, 0], [0, 0.125, -1.125, 0, 0]], "f"
  )

  # Step 2. Three of five are kept: 7 (1.125), 1 (.375), 0 (.25). Dropped are
  # 3 and 6, the two of .125. Candidates to grow are all others, the dropped
  # ones too: |g| is 5 at 3, then 2 at 2 and at 5, a tie, which the lower index
  # wins. So 3 grows back at once, 2 is new, 6 is gone.
  # Those of the kept ones, small or large, do not matter, nor does that of 6.
  grads = np.array([[0.1, 0.1, 2, -5, 1], [-2, 0.5, 9, 0, 1]], "f")
  before = params
  params, state = _step(tx, params, state, grads)
  now = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)
  # No gradient step: kept and regrown weights are as they were, the new one
  # is 0 and the dropped one has become so.
  np.testing.assert_array_equal(params, np.where(now, before, 0))
  # Momentum stays 1 at 0, 1, 3 and 7, and begins at 0 at 2; 6 has none left.
  trace = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]], "f")
  np.testing.assert_array_equal(state.inner_state[0].trace, trace)

  # Step 3, gradients of 2: momentum 0.5 x 1 + 2 = 2.5, and 2 at the new one;
  # off come 0.625 and 0.5.
  params, state = _step(tx, params, state, np.full((2, 5), 2, "f"))
  np.testing.assert_array_equal(
    params,
    np.array([[-0.375, -1, -0.5, -0.75, 0], [0, 0, -1.75, 0, 0]], "f"),
  )
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)
  # Step 4 = T_end moves no mask.
  _, state = _step(tx, params, state, grads)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)


def test_rigl_without_regrowing_by_hand():
  # The same, but what was dropped may not grow back: after 3 and 6, the
  # largest |g| are those of 2 and 5.
  params = np.array(
    [[0.25, -0.375, 0, -0.125, 0], [0, 0.125, -1.125, 0, 0]], "f"
  )
  tx = sparsejax.rigl(
    optax.sgd(0.25),
    0.5,
    key=KEY,
    t_end=100,
    delta_t=1,
    fraction=0.45,
    regrow=False,
  )
  params, state = _begin(tx, params, ACTIVE)
  state = state._replace(mask_state=state.mask_state._replace(count=1))
  grads = np.array([[0.1, 0.1, 2, -5, 1], [-2, 0.5, 9, 0, 1]], "f")
  params, state = _step(tx, params, state, grads)
  now = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 0]], bool)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)


def test_seft_by_hand():
  # One weight in five moves: f = 0.25, trunc(0.25 x 5) = 1, at every step.
  params = np.array([[0.5, -0.1, 0, 2.0, 0], [0, 0.1, -0.9, 0, 0]], "f")
  grads = np.array([[1, -9, 3, 0.01, 1], [-3, 2, 1, 4, 1]], "f")
  tx = sparsejax.seft(
    optax.sgd(0.1),
    0.5,
    key=KEY,
    t_end=10**6,
    delta_t=1,
    fraction=0.25,
  )
  params, state = _begin(tx, params, ACTIVE)
  state = state._replace(mask_state=state.mask_state._replace(count=1))
  # Grows index 8, whose |g| = 4 is the largest of the inactive ones. |w g| of
  # the active ones: .5, .9, .02, .2, .9. So index 3 goes, the largest |w| of
  # all; the new one has |w g| = 0 and is exempt.
  after, state = _step(tx, params, state, grads)
  now = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], bool)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)
  np.testing.assert_array_equal(after, np.where(now, params, 0))
  # Next step, same gradients: |w g| = .5, .9, .2, .9 and 0 at index 8, which
  # is not new any more, and so goes. |g| of inactive ones: 3 at index 2 and 5,
  # the lower one grows. What has just been dropped does not count.
  after, state = _step(tx, after, state, grads)
  now = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0]], bool)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)


def test_seft_smooths_sensitivity_by_hand():
  params = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]], "f")
  tx = sparsejax.seft(
    optax.sgd(0.0),
    0.5,
    key=KEY,
    t_end=10**6,
    delta_t=2,
    fraction=0.25,
    smoothing=0.5,
  )
  params, state = _begin(tx, params, ACTIVE)
  # Sensitivities are |g|. Averages after three steps, of weights 1/8, 1/4 and
  # 1/2: index 0: 8/8 + 0 + 1/2 = 1.5; index 1: 4/2 = 2; index 3: 2/2 = 1;
  # index 6: 0 + 8/4 + 0 = 2; index 7: 4/4 + .25/2 = 1.125.
  history = [
    [[8, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    [[0, 0, 0, 0, 0], [0, 8, 4, 0, 0]],
    [[1, 4, 0, 2, 0], [0, 0, 0.25, 0, 3]],
  ]
  for grads in history:
    params, state = _step(tx, params, state, np.array(grads, "f"))
  # Index 3 goes, although in this batch 6 has the least: 0. Index 9 comes.
  now = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 1]], bool)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)


def test_snfs_by_hand():
  params = np.array([[0.5, -0.2, 0, 0.3, 0], [0, 0.1, -0.9, 0, 0]], "f")
  tx = sparsejax.snfs(
    optax.sgd(0.0),
    0.5,
    key=KEY,
    t_end=10**6,
    delta_t=2,
    fraction=0.25,
    decay=0.5,
  )
  params, state = _begin(tx, params, ACTIVE)
  # The average of dense gradients, signed: of weights 1/8, 1/4 and 1/2.
  # Index 2: 8/8 + 8/4 + 0 = 3. Index 4: 8/8 - 8/4 + 2/2 = 0. Index 5: 4/2 = 2.
  history = [
    [[0, 0, 8, 0, 8], [0, 0, 0, 0, 0]],
    [[0, 0, 8, 0, -8], [0, 0, 0, 0, 0]],
    [[0, 0, 0, 0, 2], [4, 0, 0, 0, 0]],
  ]
  for grads in history:
    params, state = _step(tx, params, state, np.array(grads, "f"))
  # |w| = .1 at index 6 goes. Index 2 comes, where this batch's gradient is 0.
  now = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
  np.testing.assert_array_equal(sparsejax.get_masks(state), now)


def test_set_by_hand():
  # Of five active weights, .5, -.1, .3, .1 and -.9, the three largest stay:
  # indices 0, 3 and 7. Two of the other seven come, at random.
  params = np.array([[0.5, -0.1, 0, 0.3, 0], [0, 0.1, -0.9, 0, 0]], "f")
  stay = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], bool)
  grads = np.full((2, 5), np.arange(5), "f")
  seen = np.zeros((2, 5), int)
  for seed in range(20):
    tx = sparsejax.set_(
      optax.sgd(0.1),
      0.5,
      key=jax.random.key(seed),
      t_end=10**6,
      delta_t=1,
      fraction=0.45,
    )
    begin, state = _begin(tx, params, ACTIVE)
    state = state._replace(mask_state=state.mask_state._replace(count=1))
    after, state = _step(tx, begin, state, grads)
    mask = np.asarray(sparsejax.get_masks(state))
    assert mask.sum() == 5
    assert mask[stay].all()
    np.testing.assert_array_equal(after, np.where(mask & ACTIVE, params, 0))
    seen += mask
  assert (seen[stay] == 20).all()
  assert (seen[~stay] > 0).all()  # Any may come: chance of a miss < 1 %.
  assert (seen[~stay] < 20).all()


@pytest.mark.parametrize(
  ("initial_sparsity", "kept"),
  # s_t = s_f + (s_i - s_f) (1 - t / 4)^3, with s_f = 0.8, of 100 weights.
  # s_i = 0:   0, 0.4625, 0.7, 0.7875, 0.8: 100 - 46.25 = 53.75, so 53, ...
  # s_i = 0.4: 0.4, 0.63125, 0.75, 0.79375, 0.8.
  [(0.0, [100, 53, 30, 21, 20, 20]), (0.4, [60, 36, 25, 20, 20, 20])],
)
def test_gmp_by_hand(initial_sparsity, kept):
  tx = sparsejax.gmp(
    optax.sgd(0.5),
    0.8,
    key=KEY,
    begin=0,
    end=4,
    delta_t=1,
    initial_sparsity=initial_sparsity,
  )
  params = jnp.asarray(np.random.default_rng(0).permutation(100) - 50.0, "f")
  params = params.reshape(10, 10) + 0.25  # No two of one size.
  params, state = sparsejax.init(tx, params)
  assert sparsejax.nnz(sparsejax.get_masks(state)) == 100
  for n in kept:
    before = np.asarray(params)
    params, state = _step(tx, params, state, np.ones((10, 10), "f"))
    mask = np.asarray(sparsejax.get_masks(state))
    assert mask.sum() == n
    # Those of the largest |w| stay, and take their gradient step as well.
    least = np.sort(np.abs(before).ravel())[-n]
    np.testing.assert_array_equal(mask, np.abs(before) >= least)
    np.testing.assert_array_equal(params, np.where(mask, before - 0.5, 0))


def test_gmp_between_updates_and_before_the_first():
  tx = sparsejax.gmp(optax.sgd(0.1), 0.8, key=KEY, begin=3, end=9, delta_t=3)
  params, state = sparsejax.init(tx, jax.random.normal(KEY, (10, 10)))
  kept = []
  for _ in range(12):
    params, state = _step(tx, params, state, np.ones((10, 10), "f"))
    kept.append(sparsejax.nnz(sparsejax.get_masks(state)))
  # At t = 3 still nothing; at 6, half-way, 1 - 0.8 x 7 / 8 = 0.3; at 9, 0.2.
  assert kept == [100] * 6 + [30] * 3 + [20] * 3


# RigL's algorithm 1 once more, in float64 and with sorts.


def _loss(params, x, y):
  hidden = jnp.tanh(x @ params["one"]["kernel"] + params["one"]["bias"])
  return jnp.mean((hidden @ params["two"]["kernel"] - y) ** 2)


def _reference_grads(w1, b, w2, x, y):
  hidden = np.tanh(x @ w1 + b)
  error = 2 * (hidden @ w2 - y) / y.size
  inner = (error @ w2.T) * (1 - hidden**2)
  return x.T @ inner, inner.sum(0), hidden.T @ error


def _reference_rigl(w, mask, g, fraction):
  """Which weights are active next, and which of them are new."""
  n = mask.sum()
  k = int(fraction * n)
  size = np.where(mask, np.abs(w), -1).ravel()
  keep = np.zeros(w.size, bool)
  keep[np.argsort(-size, kind="stable")[: n - k]] = True
  rate = np.where(keep, -1, np.abs(g).ravel())
  new = keep.copy()
  new[np.argsort(-rate, kind="stable")[:k]] = True
  return new.reshape(w.shape)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_rigl_is_its_reference_for_sixty_steps(sparsity):
  rng = np.random.default_rng(0)
  # No fraction x n is near an integer: float32 might be on its other side.
  t_end, delta_t, alpha, beta = 53, 5, 0.3, 0.9
  params = {
    "one": {"kernel": rng.normal(size=(20, 30)) / 4, "bias": np.zeros(30)},
    "two": {"kernel": rng.normal(size=(30, 10)) / 5},
  }
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
  tx = sparsejax.rigl(
    optax.sgd(optax.exponential_decay(0.1, 10, 0.7), momentum=beta),
    sparsity,
    key=KEY,
    t_end=t_end,
    delta_t=delta_t,
    fraction=alpha,
    distribution=distributions.erdos_renyi,
  )
  params, state = sparsejax.init(tx, params)

  @jax.jit
  def train_step(params, state, x, y):
    change, state = tx.update(jax.grad(_loss)(params, x, y), state, params)
    return optax.apply_updates(params, change), state

  host = jax.device_get(params)
  w = [host["one"]["kernel"], host["one"]["bias"], host["two"]["kernel"]]
  w = [np.array(x, np.float64) for x in w]
  masks = jax.device_get(sparsejax.get_masks(state))
  masks = [masks["one"]["kernel"], None, masks["two"]["kernel"]]
  v = [np.zeros_like(x) for x in w]
  moved = regrown = 0
  for t in range(60):
    x, y = rng.normal(size=(32, 20)), rng.normal(size=(32, 10))
    params, state = train_step(params, state, x.astype("f"), y.astype("f"))
    g = _reference_grads(*w, x, y)
    if t % delta_t == 0 and 0 < t < t_end:
      fraction = alpha / 2 * (1 + np.cos(np.pi * t / t_end))
      for i in (0, 2):
        new = _reference_rigl(w[i], masks[i], g[i], fraction)
        moved += (new & ~masks[i]).sum()
        regrown += int(fraction * new.sum()) - (new & ~masks[i]).sum()
        v[i] = np.where(new & masks[i], v[i], 0)
        w[i] = np.where(new & masks[i], w[i], 0)
        masks[i] = new
    else:
      for i in range(3):
        masked = g[i] if masks[i] is None else np.where(masks[i], g[i], 0)
        v[i] = beta * v[i] + masked
        w[i] = w[i] - 0.1 * 0.7 ** (t / 10) * v[i]
    got = jax.device_get(sparsejax.get_masks(state))
    np.testing.assert_array_equal(got["one"]["kernel"], masks[0])
    np.testing.assert_array_equal(got["two"]["kernel"], masks[2])
    np.testing.assert_allclose(params["one"]["kernel"], w[0], atol=1e-5)
    np.testing.assert_allclose(params["one"]["bias"], w[1], atol=1e-5)
    np.testing.assert_allclose(params["two"]["kernel"], w[2], atol=1e-5)
  assert moved > 50
  assert regrown > 0


def test_accumulated_growth_is_that_of_the_mean_gradient():
  # The last two of three gradients before the update at step 3 are averaged:
  # index 2 has (4 + 4) / 2 = 4, index 4 (7 + 0) / 2 = 3.5, index 5 first had
  # 100, which is too long ago.
  score = scores.accumulated(scores.gradient(), 2, period=3)
  params = jnp.zeros(6)
  state = score.init(params)
  history = [
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 100],
    [0, 0, 4, 0, 7, 0],
    [0, 0, 4, 0, 0, 1],
  ]
  for grads in history:
    rated, state = score.update(jnp.array(grads, "f"), state, params)
  np.testing.assert_array_equal(rated, [0, 0, 4, 0, 3.5, 0.5])
