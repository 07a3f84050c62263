"""INT8 against integers and floats of NumPy, written from the formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import finetune, kernels, modes, packed, quantize
from sparsejax.roles import Role, by_path
from tests.conformance import table as conformance
from tests.marks import few, slow

kernels.available(quiet=True)  # compiles them, before a test's time counts
SHAPE = (12, 7)
INVERSE = np.float32(1 / 127)


def kernel(seed=0, shape=SHAPE, sparsity=0.5):
  rng = np.random.default_rng(seed)
  w = rng.normal(size=shape).astype("f")
  return np.where(rng.random(shape) < sparsity, 0, w).astype("f")


def activations(seed=1, shape=(2, 3, 12)):
  return np.random.default_rng(seed).normal(size=shape).astype("f")


def integers(w, group):
  """Integers [in, out] and scales [out, groups], by a loop in NumPy."""
  inputs, outputs = w.shape
  values = np.zeros(w.shape, np.int64)
  scales = np.zeros((outputs, inputs // group), "f")
  for o in range(outputs):
    for g in range(inputs // group):
      part = w[g * group : (g + 1) * group, o]
      scale = np.abs(part).max() * INVERSE
      scales[o, g] = scale = scale if scale else np.float32(1)
      for i, x in enumerate(part):
        values[g * group + i, o] = int(np.rint(np.float32(x) / scale))
  return values, scales


@pytest.mark.parametrize("group", [None, 4, 1])
def test_integers_are_the_nearest(group):
  w = kernel()
  w[:, 2] = 0  # an output of nothing
  values, scales = integers(w, group or len(w))
  found = quantize.matrix(w, group=group)
  np.testing.assert_array_equal(found.values.T, values)
  np.testing.assert_array_equal(found.scales, scales)
  assert found.shape == w.shape
  assert found.values.dtype == jnp.int8
  assert np.abs(values).max() == 127
  wanted = values * scales.T.repeat(len(w) // scales.shape[1], 0)
  np.testing.assert_allclose(found.dequantize(), wanted, rtol=1e-7)
  assert np.all(np.asarray(found.dequantize())[w == 0] == 0)


def test_stacked_matrices_are_rounded_one_by_one():
  w = np.stack([kernel(0), 9 * kernel(1)])
  found = quantize.matrix(w, group=6)
  assert found.shape == w.shape
  for i in range(2):
    jax.tree.map(
      np.testing.assert_array_equal,
      jax.tree.map(lambda x, i=i: x[i], found),
      quantize.matrix(w[i], group=6),
    )

  def turn(x, w):
    return x, sparsejax.matmul(x, w)

  x = activations()
  _, y = jax.lax.scan(turn, x, found)
  np.testing.assert_allclose(y[1], x @ found.dequantize()[1], rtol=1e-4)


def test_a_mask_is_kept_where_small_weights_would_be_zero():
  w = kernel() + np.where(kernel(2) == 0, 0, 1e-4).astype("f")
  mask = w != 0
  plain, kept = (quantize.matrix(w, nonzero=n) for n in (False, True))
  assert np.sum(np.asarray(plain.values) != 0) < mask.sum()
  np.testing.assert_array_equal(np.asarray(kept.values).T != 0, mask)
  changed = np.asarray(plain.values != kept.values)
  assert set(np.asarray(kept.values)[changed]) <= {-1, 1}
  signs = np.sign(np.asarray(kept.values).T)
  np.testing.assert_array_equal(signs[mask], np.sign(w[mask]))
  rounded = quantize.fake_quantize(w, nonzero=True)
  np.testing.assert_array_equal(rounded != 0, mask)


@pytest.mark.parametrize("group", [None, 3])
def test_products_are_those_of_floats(group):
  w, x = quantize.matrix(kernel(), group=group), activations()
  wide = np.asarray(w.dequantize(), np.float64)
  y = sparsejax.matmul(x, w)
  np.testing.assert_allclose(y, x @ wide, rtol=1e-5, atol=1e-5)
  half = sparsejax.matmul(jnp.asarray(x, jnp.bfloat16), w)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype("f"), x @ wide, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("group", [None, 3])
def test_dynamic_products_add_up_integers(group):
  """Exactly: the same integers, sums in int64, and the same three factors."""
  w, x = kernel(shape=(12, 7)), 50 * activations()
  x[0, 0] = 0  # a token of nothing
  found = quantize.matrix(w, group=group, dynamic=True)
  values, scales = integers(w, group or 12)
  token = np.abs(x).max(-1, keepdims=True) * INVERSE
  token = np.where(token == 0, np.float32(1), token)
  numbers = np.rint(x / token).astype(np.int64)
  size = 12 // scales.shape[1]
  want = np.zeros((2, 3, 7), "f")
  for g in range(scales.shape[1]):
    part = slice(g * size, (g + 1) * size)
    sums = numbers[..., part] @ values[part]
    assert np.abs(sums).max() < 2**31
    want += sums.astype("f") * scales[:, g]
  np.testing.assert_allclose(
    sparsejax.matmul(x, found), want * token, rtol=1e-6
  )
  if group is None:
    np.testing.assert_array_equal(sparsejax.matmul(x, found), want * token)


def test_sums_of_integers_do_not_round():
  """4096 products of 127 x 127 are no float32's, nor int16's."""
  w, x = np.full((4097, 1), 127, "f"), np.full((1, 4097), 127, "f")
  x[0, 0] = 1
  found = quantize.matrix(w, dynamic=True)
  assert float(sparsejax.matmul(x, found)[0, 0]) == np.float32(
    127 * (127 * 4096 + 1)
  )


@pytest.mark.parametrize("dynamic", [False, True])
def test_gradients_of_products(dynamic):
  w, x = quantize.matrix(kernel(), dynamic=dynamic), activations()
  g = activations(3, (2, 3, 7))

  def loss(x, scales):
    node = quantize.Quantized(w.values, scales, dynamic)
    return jnp.sum(sparsejax.matmul(x, node) * g)

  of_x, of_scales = jax.grad(loss, (0, 1))(x, w.scales)
  np.testing.assert_allclose(of_x, g @ w.dequantize().T, rtol=1e-4, atol=1e-5)
  y = np.einsum("bti,oi->bto", x, np.asarray(w.values, "f"))
  np.testing.assert_allclose(of_scales[:, 0], (y * g).sum((0, 1)), rtol=1e-4)


def test_an_embedding_is_read_by_rows():
  table = kernel(shape=(20, 8), sparsity=0)
  node = quantize.matrix(table.T, group=4)  # [dim, tokens]
  tokens = np.array([[3, 19], [3, 0]])
  rows = np.asarray(node.dequantize()).T
  np.testing.assert_array_equal(node.take(tokens), rows[tokens])
  np.testing.assert_allclose(rows, table, atol=np.abs(table).max() / 250)


def test_what_is_not_finite_is_not_hidden():
  w = kernel()
  w[3, 2] = np.nan
  with pytest.raises(ValueError, match=r"layer/kernel: some weights are NaN"):
    quantize.quantize({"layer": {"kernel": w}})
  assert np.isnan(jax.jit(quantize.fake_quantize)(w)[:, 2]).all()
  x = activations()
  x[0, 1, 4] = np.inf
  y = sparsejax.matmul(x, quantize.matrix(kernel(), dynamic=True))
  assert np.isnan(y[0, 1]).all()
  assert np.isfinite(y[1]).all()


def test_trees_and_what_is_refused():
  params = {
    "embed": {"embedding": kernel(shape=(9, 12))},
    "layer": {"kernel": kernel(), "bias": np.ones(7, "f")},
  }
  small = quantize.quantize(params, group=4)
  assert quantize.is_quantized(small["layer"]["kernel"])
  assert small["embed"]["embedding"] is params["embed"]["embedding"]
  again = quantize.dequantize(small)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  for function in (quantize.quantize, quantize.fake_quantize):
    with pytest.raises(
      ValueError, match="layer/kernel: got groups of 5 for 12"
    ):
      function(params, group=5)
  conv = {"kernel": kernel(shape=(3, 3, 4, 5))}
  with pytest.raises(ValueError, match="wanted a matrix"):
    quantize.quantize(conv)
  with pytest.raises(ValueError, match="for 12 inputs"):
    quantize.matrix(kernel(), scales=np.ones((7, 5), "f"))
  with pytest.raises(ValueError, match="shape \\(7,\\), wanted a matrix"):
    quantize.scales(np.ones(7))
  with pytest.raises(ValueError, match="stacked matrices"):
    quantize.matrix(kernel(shape=(2, 4, 4))).matmul(np.ones((1, 4), "f"))


# Training.


def test_scales_are_those_of_outputs_whatever_the_axes():
  w = kernel(shape=(3, 3, 4, 5), sparsity=0.3)
  rounded = np.asarray(quantize.fake_quantize({"kernel": w})["kernel"])
  flat = integers(w.reshape(36, 5), 36)
  np.testing.assert_allclose(
    rounded.reshape(36, 5), flat[0] * flat[1].T, rtol=1e-6
  )
  outputs_first = by_path({".*": Role("weight", (), (1,), (0,))})
  turned = quantize.fake_quantize(kernel().T, prunable=outputs_first, group=4)
  np.testing.assert_array_equal(
    turned.T, quantize.fake_quantize(kernel(), group=4)
  )


def test_rounding_is_passed_by_gradients():
  w = kernel()
  grads = jax.grad(lambda w: jnp.sum(quantize.fake_quantize(w) ** 2))(w)
  np.testing.assert_allclose(grads, 2 * quantize.fake_quantize(w))
  assert (
    quantize.fake_quantize(jnp.asarray(w, jnp.bfloat16)).dtype == "bfloat16"
  )
  # What was trained so is rounded without error.
  rounded = quantize.fake_quantize(w, group=4)
  exact = quantize.matrix(w, group=4).dequantize()
  np.testing.assert_array_equal(rounded, exact)


@pytest.mark.parametrize("name", few(list(conformance.ROWS), ("rigl",)))
def test_every_method_trains_with_rounded_weights(name):
  """The loss sees INT8 with the method's zeros, and they stay exact."""
  row = conformance.ROWS[name]
  tx = row.make(optax.adam(0.1))
  params, state = sparsejax.init(tx, conformance.small_params())
  x = np.random.default_rng(0).normal(size=(16, 6)).astype("f")

  def loss(params):
    w = quantize.fake_quantize(params)["kernel"]
    return jnp.mean((sparsejax.matmul(x, w) - 1) ** 2)

  @jax.jit
  def step(params, state):
    value, grads = sparsejax.value_and_grad(loss, tx)(params, state)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  first = None
  for _ in range(8):
    params, state, value = step(params, state)
    first = value if first is None else first
  assert value < first
  forward = sparsejax.forward_params(params, state)
  sparsejax.check(forward, state)
  mask = np.asarray(sparsejax.get_masks(state)["kernel"])
  rounded = quantize.quantize(forward)["kernel"]
  assert np.all(np.asarray(rounded.values).T[~mask] == 0)
  np.testing.assert_array_equal(
    rounded.dequantize(), quantize.fake_quantize(forward)["kernel"]
  )


KEY = jax.random.key(0)
X = activations(shape=(16, 12))


def rounded_loss(params):
  w = quantize.fake_quantize(params, group=6)["kernel"]
  return jnp.mean((sparsejax.matmul(X, w) - 1) ** 2)


def trained(tx, params, steps=6):
  values, state = sparsejax.init(tx, params)
  value_and_grad = sparsejax.value_and_grad(rounded_loss, tx)

  @functools.partial(jax.jit, static_argnames="now")
  def step(values, state, now):
    loss, grads = value_and_grad(values, state, update_masks=now)
    updates, state = tx.update(grads, state, values, update_masks=now)
    return optax.apply_updates(values, updates), state, loss

  losses = []
  for i in range(steps):
    values, state, loss = step(values, state, now=tx.moves(i))
    losses.append(float(loss))
  return values, state, losses


@pytest.mark.slow
def test_packed_matrices_are_rounded_in_their_products():
  """As masked ones are, to the masks that gradients choose."""

  def tx():
    return sparsejax.rigl(optax.adam(0.1), 0.5, key=KEY, t_end=9, delta_t=2)

  params = {"kernel": kernel(sparsity=0)}
  masked, state, losses = trained(tx(), params)
  values, packed_state, again = trained(modes.packed(tx()), params)
  np.testing.assert_allclose(again, losses, rtol=1e-4)
  dense = packed.unpack(sparsejax.forward_params(values, packed_state))
  np.testing.assert_allclose(dense["kernel"], masked["kernel"], atol=1e-5)
  mask = sparsejax.get_masks(state)["kernel"]
  np.testing.assert_array_equal(
    sparsejax.get_masks(packed_state)["kernel"], mask
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "make",
  [
    lambda: finetune.lora(optax.adam(0.1), key=KEY, rank=2),
    lambda: finetune.fixed(optax.adam(0.1), key=KEY),
    lambda: finetune.seft(
      finetune.adamw(0.1), key=KEY, t_end=6, k=8, every=2, revive=True
    ),
  ],
)
def test_tuned_matrices_are_rounded_in_their_products(make):
  params = {"kernel": kernel()}
  values, state, losses = trained(make(), params)
  assert losses[-1] < losses[0]
  # What the loss sees is the merged matrix, rounded.
  merged = finetune.merge(values, state)
  np.testing.assert_allclose(
    rounded_loss(sparsejax.forward_params(values, state)),
    rounded_loss(merged),
    rtol=1e-4,
  )


def test_inputs_are_rounded_straight_through():
  w, x = kernel(), activations()
  y = sparsejax.matmul(x, quantize.matrix(w, dynamic=True))

  def product(x, w):
    return sparsejax.matmul(x, quantize.fake_quantize(w, dynamic=True))

  found, pull = jax.vjp(product, x, w)
  np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5)
  g = activations(3, (2, 3, 7))
  of_x, _ = pull(g)
  rounded = quantize.fake_quantize(w)
  np.testing.assert_allclose(of_x, g @ rounded.T, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own calls
@pytest.mark.parametrize("library", ["linen", slow("nnx")])
def test_qwix_trains_with_our_zeros(library):
  """Its QAT of a Flax model in our loop, and its integers in our nodes."""
  qwix = pytest.importorskip("qwix", reason="the extra `qat` is not installed")
  from flax import linen, nnx

  rules = [qwix.QtRule(weight_qtype=jnp.int8)]
  if library == "linen":
    model = qwix.quantize_model(linen.Dense(7), qwix.QtProvider(rules))
    params = model.init(KEY, X)["params"]

    def run(params):
      return model.apply({"params": params}, X)

  else:
    layer = nnx.Linear(12, 7, rngs=nnx.Rngs(0))
    layer = qwix.quantize_model(layer, qwix.QtProvider(rules), X)
    graph, params = nnx.split(layer, nnx.Param)
    params = params.to_pure_dict()

    def run(params):
      return nnx.merge(graph, params)(X)

  tx = sparsejax.rigl(optax.adam(0.1), 0.5, key=KEY, t_end=9, delta_t=2)
  params, state = sparsejax.init(tx, params)

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(
      lambda params: jnp.mean((run(params) - 1) ** 2)
    )(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  losses = []
  for _ in range(6):
    params, state, loss = step(params, state)
    losses.append(loss)
  assert losses[-1] < losses[0]
  sparsejax.check(params, state, tx)
  if library == "linen":
    rules = [qwix.QuantizationRule(weight_qtype=jnp.int8)]
    small = qwix.quantize_model(linen.Dense(7), qwix.PtqProvider(rules))
    shapes = jax.eval_shape(small.init, KEY, X)["params"]
    found = qwix.quantize_params(params, shapes)["kernel"].array
    node = quantize.Quantized(found.qvalue.T, found.scale.T)
    mask = np.asarray(sparsejax.get_masks(state)["kernel"])
    assert np.all(np.asarray(node.dequantize())[~mask] == 0)
    y = sparsejax.matmul(X, node) + params["bias"]
    np.testing.assert_allclose(y, run(params), rtol=1e-4, atol=1e-4)
