"""Training on packed arrays: the masks and weights of masked mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import (
  finetune,
  kernels,
  modes,
  packed,
  patterns,
  schedules,
  scores,
)
from tests import bits
from tests.marks import few, slow

pytestmark = pytest.mark.core

# A GPU rounds the two modes apart, until a mask moves otherwise.
STEPS = 200 if jax.default_backend() == "cpu" else 25
KEY = jax.random.key(1)
# Where params take a gradient step as masks move, the compiler may round a sum
# of two products otherwise than in masked mode; not one of powers of two.
EXACT = optax.sgd(2**-6, momentum=0.5)

ALGORITHMS = {
  "static": lambda: sparsejax.static(
    optax.adam(optax.cosine_decay_schedule(1e-2, STEPS)), 0.8, key=KEY
  ),
  "set": lambda: sparsejax.set_(
    optax.sgd(1e-2, momentum=0.9), 0.8, key=KEY, t_end=180, delta_t=10
  ),
  "rigl": lambda: sparsejax.rigl(
    optax.chain(
      optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=1e-2)
    ),
    0.8,
    key=KEY,
    t_end=180,
    delta_t=10,
  ),
  "gmp": lambda: sparsejax.gmp(
    optax.adam(1e-2), 0.8, key=KEY, begin=20, end=160, delta_t=20
  ),
  "seft": lambda: sparsejax.seft(
    optax.lamb(1e-2), 0.8, key=KEY, t_end=180, delta_t=10
  ),
  "mest": lambda: sparsejax.mest(
    EXACT, 0.8, key=KEY, t_end=160, delta_t=20, surplus=0.5
  ),
  "srigl": lambda: sparsejax.srigl(
    EXACT,
    0.8,
    key=KEY,
    t_end=180,
    delta_t=10,
    never_ablate=lambda path, leaf: path == "out/kernel",
  ),
  "rigl 2:4": lambda: sparsejax.rigl(
    optax.adam(1e-2),
    0.5,
    key=KEY,
    t_end=180,
    delta_t=10,
    pattern=patterns.n_of_m(2, 4),
  ),
  "rigl fan-in": lambda: sparsejax.rigl(
    optax.adam(1e-2),
    0.8,
    key=KEY,
    t_end=180,
    delta_t=10,
    pattern=patterns.fan_in(),
  ),
  "rigl, values and moments of its own": lambda: sparsejax.rigl(
    EXACT,
    0.8,
    key=KEY,
    t_end=180,
    delta_t=10,
    grown_values=jax.nn.initializers.normal(0.125),
    grown_moments=lambda moment, grad: 0.125 * grad,
    step_on_update=True,
    restart=schedules.every(40, start=40),
  ),
}


def exploring():
  """RigL with a bonus for inactive weights, whose masks move in a row."""

  def update(grads, state, params=None, *, masks, step, **extra):
    del params, extra
    by = jax.tree.map(lambda g, m: jnp.abs(g) + 1e-4 * step * ~m, grads, masks)
    return by, state

  rule = sparsejax.updates.drop_and_grow(
    sparsity=0.8,
    drop=scores.magnitude(),
    grow=optax.GradientTransformationExtraArgs(
      lambda params: optax.EmptyState(), update
    ),
    fraction=0.3,
  )
  when = schedules.every(1, start=10, stop=30)
  return sparsejax.sparsify(optax.adam(1e-2), rule, when=when, key=KEY)


ALGORITHMS["rigl, exploring"] = exploring


def params():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, jnp.float32)

  return {
    "conv": {"kernel": normal(3, 1, 8)},
    "hidden": {"kernel": normal(80, 64), "bias": jnp.zeros(64)},
    "out": {"kernel": normal(64, 12)},
  }


def loss(params, x):
  # A kernel that is no matrix is made dense.
  kernel = params["conv"]["kernel"]
  kernel = kernel.unpack() if packed.is_packed(kernel) else kernel
  h = jax.lax.conv_general_dilated(
    x[:, :10, None],
    kernel,
    (1,),
    "SAME",
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  h = jax.nn.relu(h).reshape(len(x), -1)
  h = sparsejax.matmul(h, params["hidden"]["kernel"])
  h = jax.nn.relu(h + params["hidden"]["bias"])
  y = sparsejax.matmul(h, params["out"]["kernel"])
  return jnp.mean((y - jnp.sin(3 * x)) ** 2)


def batch(step):
  return jax.random.normal(jax.random.key(step), (32, 12))


def stepper(tx):
  value_and_grad = sparsejax.value_and_grad(loss, tx)

  @functools.partial(jax.jit, static_argnums=3)
  def step(params, state, x, now):
    _, grads = value_and_grad(params, state, x, update_masks=now)
    updates, state = tx.update(grads, state, params, update_masks=now)
    return optax.apply_updates(params, updates), state

  return step


@functools.cache
def trained(name, mode, steps=STEPS):
  """What a run ends with, and the masks after each move."""
  tx = mode(ALGORITHMS[name]())
  step = stepper(tx)
  values, state = sparsejax.init(tx, params())
  masks = [sparsejax.get_masks(state)]
  for i in range(steps):
    now = tx.moves(i)
    values, state = step(values, state, batch(i), now)
    if now:
      masks.append(sparsejax.get_masks(state))
  return values, state, masks


def masked(tx):
  return tx


EACH = few(ALGORITHMS, ["static", "rigl"])


@pytest.mark.parametrize("name", EACH)
def test_packed_masks_are_those_of_masked_mode_to_the_bit(name):
  values, state, masks = trained(name, modes.packed)
  wanted, dense_state, wanted_masks = trained(name, masked)
  assert (
    len(masks)
    == len(wanted_masks)
    == 1 + sum(bool(ALGORITHMS[name]().moves(i)) for i in range(STEPS))
  )
  if name != "static":
    assert any(
      not jax.tree.all(jax.tree.map(jnp.array_equal, a, masks[0]))
      for a in masks
    )
  for got, want in zip(masks, wanted_masks, strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)
  tx = modes.packed(ALGORITHMS[name]())
  unpacked, unpacked_state = tx.unpack(values, state)
  assert jax.tree.structure(unpacked_state.inner_state) == jax.tree.structure(
    dense_state.inner_state
  )
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path((unpacked, unpacked_state)),
    jax.tree.leaves((wanted, dense_state)),
    strict=True,
  ):
    where = jax.tree_util.keystr(path)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=where)
  assert int(state.mask_state.refused) == int(dense_state.mask_state.refused)


# With the flags of tests: XLA at its best fuses each program its own way, and
# then the last bits of weights differ; those of masks do not.
@pytest.mark.cpu
@pytest.mark.parametrize(
  "name", ["static", slow("set"), "rigl", slow("rigl 2:4")]
)
def test_packed_weights_are_those_of_masked_mode_to_the_bit(name):
  values, state, _ = trained(name, modes.packed)
  tx = modes.packed(ALGORITHMS[name]())
  unpacked, _ = tx.unpack(values, state)
  bits.assert_same(unpacked, trained(name, masked)[0])


@pytest.mark.skipif(
  not kernels.available(quiet=True), reason="there is no C++ compiler"
)
@pytest.mark.parametrize("name", ["rigl", "gmp", "static"])
@pytest.mark.slow
def test_kernels_train_as_well(name):
  values, state, _ = trained(name, modes.kernels)
  masks = sparsejax.get_masks(state)
  wanted, _, wanted_masks = trained(name, masked)
  assert sparsejax.nnz(masks) == sparsejax.nnz(wanted_masks[-1])
  dense, _ = modes.kernels(ALGORITHMS[name]()).unpack(values, state)
  for one in (dense, wanted):
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(one))
  x = jax.random.normal(jax.random.key(10**6), (500, 12))
  before = loss(params(), x)
  got, want = loss(dense, x), loss(wanted, x)
  assert want < 0.8 * before
  assert abs(got - want) < 0.1 * (before - want)


@pytest.mark.slow
def test_optimizer_state_and_gradients_are_of_the_non_zeros():
  tx = modes.packed(ALGORITHMS["rigl"]())
  values, state = sparsejax.init(tx, params())
  masks = sparsejax.get_masks(state)
  count = sparsejax.nnz(masks)
  sizes = [x.size for x in jax.tree.leaves(values)]
  assert sum(sizes) <= count + 64 + 3 * 8
  adam = optax.tree.get(state.inner_state, "mu")
  assert [x.size for x in jax.tree.leaves(adam)] == sizes
  # As many axes as the dense array has, for rules that ask.
  assert [x.ndim for x in jax.tree.leaves(adam)] == [3, 1, 2, 2]
  _, grads = sparsejax.value_and_grad(loss, tx)(values, state, batch(0))
  assert [x.size for x in jax.tree.leaves(grads)] == sizes


@pytest.mark.slow
def test_checkpoints_move_between_modes():
  masked_tx = ALGORITHMS["rigl"]()
  packed_tx = modes.packed(masked_tx)
  wanted = trained("rigl", masked)
  for first, second, back in (
    (packed_tx, masked_tx, packed_tx.unpack),
    (masked_tx, packed_tx, packed_tx.pack),
  ):
    values, state = sparsejax.init(first, params())
    for tx, steps in ((first, range(0, 75)), (second, range(75, STEPS))):
      if tx is second:
        values, state = back(values, state)
      step = stepper(tx)
      for i in steps:
        values, state = step(values, state, batch(i), tx.moves(i))
    if second is packed_tx:
      values, _ = packed_tx.unpack(values, state)
    jax.tree.map(np.testing.assert_array_equal, values, wanted[0])


@pytest.mark.slow
def test_trimmed_slots_are_freed_and_training_goes_on():
  tx = modes.packed(ALGORITHMS["gmp"]())
  step = stepper(tx)
  values, state = sparsejax.init(tx, params())
  sizes = []
  for i in range(STEPS):
    now = tx.moves(i)
    values, state = step(values, state, batch(i), now)
    if now:
      values, state = modes.trimmed(tx, values, state)
      sizes.append(values["hidden"]["kernel"].size)
  assert sizes == sorted(sizes, reverse=True)
  assert sizes[0] > 4 * sizes[-1]
  _, untrimmed, _ = trained("gmp", modes.packed)
  assert untrimmed.mask_state.masks["hidden"]["kernel"].inputs.shape == (5120,)
  masks = sparsejax.get_masks(state)
  assert values["hidden"]["kernel"].size < masks["hidden"]["kernel"].sum() + 8
  assert len(set(sizes)) < len(sizes)  # In steps: not at every move.
  again, _ = tx.pack(*tx.unpack(values, state))
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, values)
  jax.tree.map(
    np.testing.assert_array_equal, masks, sparsejax.get_masks(untrimmed)
  )


def test_gradients_that_are_not_finite_leave_masks_alone():
  tx = modes.packed(ALGORITHMS["rigl"]())
  values, state = sparsejax.init(tx, params())
  before = sparsejax.get_masks(state)
  _, state = stepper(tx)(values, state, batch(0) * jnp.nan, True)
  jax.tree.map(
    np.testing.assert_array_equal, before, sparsejax.get_masks(state)
  )
  assert int(state.mask_state.refused) == 3


@pytest.mark.slow
def test_a_plain_loss_and_masked_gradients_serve_masked_mode():
  tx = ALGORITHMS["rigl"]()
  p, state = sparsejax.init(tx, params())
  value, grads = sparsejax.value_and_grad(loss, tx)(
    p, state, batch(0), update_masks=True
  )
  wanted = jax.value_and_grad(loss)(p, batch(0))
  np.testing.assert_array_equal(value, wanted[0])
  jax.tree.map(np.testing.assert_array_equal, grads, wanted[1])


def test_what_cannot_be_packed_is_refused_in_words():
  adam = optax.adam(1e-3)
  with pytest.raises(ValueError, match="masked mode"):
    modes.packed(sparsejax.ste(adam, 0.5, key=KEY))
  with pytest.raises(ValueError, match="wanted an algorithm"):
    modes.packed(optax.chain(ALGORITHMS["rigl"]()))
  span = {"key": KEY, "begin": 0, "end": 2, "delta_t": 1}
  for tx in (
    sparsejax.gmp(adam, 0.5, **span, scope="global"),
    sparsejax.granet(adam, 0.5, **span, t_end=4),
    sparsejax.ac_dc(adam, 0.5, key=KEY, phases=(2, 4, 6)),
  ):
    with pytest.raises(ValueError, match="scope='global'"):
      modes.packed(tx)
  snfs = modes.packed(sparsejax.snfs(adam, 0.5, key=KEY, t_end=10))
  with pytest.raises(ValueError, match="remember dense arrays"):
    sparsejax.init(snfs, params())
  factored = modes.packed(
    sparsejax.static(
      optax.adafactor(1e-3, min_dim_size_to_factor=1), 0.5, key=KEY
    )
  )
  with pytest.raises(ValueError, match="elementwise"):
    sparsejax.init(factored, params())
  tx = modes.packed(ALGORITHMS["rigl"]())
  for around in (
    optax.chain(optax.clip(1.0), tx),
    optax.MultiSteps(tx, 2).gradient_transformation(),
    optax.apply_if_finite(tx, 3),
    optax.chain(finetune.fixed(adam, key=KEY)),
  ):
    with pytest.raises(ValueError, match=r"outermost.*summable=True"):
      sparsejax.init(around, params())
  values, state = sparsejax.init(tx, params())
  grads = jax.tree.map(jnp.ones_like, values)
  with pytest.raises(ValueError, match="Python bool"):
    tx.update(grads, state, values)
  with pytest.raises(ValueError, match=r"conv/kernel: .*value_and_grad"):
    tx.update(grads, state, values, update_masks=True)
  with pytest.raises(ValueError, match="params=None"):
    tx.update(grads, state, update_masks=False)
