"""What stands for a matrix: products and gradients are those of the matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import finetune
from sparsejax.finetune import matrices, whole
from sparsejax.finetune.adapters import Factors, ScaledWeights
from sparsejax.linear import matmul
from sparsejax.nodes import Probe
from sparsejax.packed import Packed

KEY = jax.random.key(0)
ROWS, COLUMNS = 5, 7
SIZE = ROWS * COLUMNS


def normal(name, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, hash_of(name)), shape)


def hash_of(name):
  return sum(map(ord, name))


def loss_of(product):
  return jnp.sum(jnp.sin(product))


@jax.jit
def dense_gradients(x, w):
  return jax.grad(lambda x, w: loss_of(x @ w), (0, 1))(x, w)


PLACES = jnp.array([3, 0, 34, 17, SIZE], jnp.int32)  # the last slot is empty


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (COLUMNS, ROWS)])
def test_gradients_of_deltas_are_those_of_the_matrix(shape):
  x, base = normal("x", 2, 3, shape[0]), normal("w", *shape)

  def loss(x, deltas):
    return loss_of(matmul(x, matrices.Delta(base, deltas, PLACES, None)))

  deltas = jnp.zeros(5)
  assert loss(x, deltas) == loss_of(x @ base)
  of_x, of_deltas = jax.jit(jax.grad(loss, (0, 1)))(x, deltas)
  wanted_x, wanted = dense_gradients(x, base)
  np.testing.assert_allclose(of_x, wanted_x, rtol=1e-6)
  wanted = [*wanted.reshape(-1)[PLACES[:4]], 0]
  np.testing.assert_allclose(of_deltas, wanted, rtol=1e-5)


def test_gradients_of_non_zeros_are_those_of_the_matrix():
  x, w = normal("x", 3, ROWS), normal("w", ROWS, COLUMNS)
  places = jnp.array([1, 8, 20, SIZE, SIZE], jnp.int32)
  values = w.reshape(-1)[places.at[3:].set(0)].at[3:].set(0)
  w = jnp.zeros(SIZE).at[places[:3]].set(values[:3]).reshape(ROWS, COLUMNS)

  def loss(x, values):
    packed = Packed(values, whole.Places(places, (ROWS, COLUMNS)))
    assert packed.shape == (ROWS, COLUMNS)
    return loss_of(matmul(x, packed))

  np.testing.assert_allclose(loss(x, values), loss_of(x @ w), rtol=1e-6)
  of_x, of_values = jax.jit(jax.grad(loss, (0, 1)))(x, values)
  wanted_x, wanted = dense_gradients(x, w)
  np.testing.assert_allclose(of_x, wanted_x, rtol=1e-6)
  wanted = [*wanted.reshape(-1)[places[:3]], 0, 0]
  np.testing.assert_allclose(of_values, wanted, rtol=1e-5)


def test_the_product_has_the_dtype_of_its_input():
  base = normal("w", ROWS, COLUMNS)
  x = normal("x", 3, ROWS).astype(jnp.bfloat16)
  factors = (normal("a", ROWS, 2), normal("b", 2, COLUMNS))
  nodes = [
    matrices.Delta(base, jnp.zeros(5), PLACES, None),
    Packed(jnp.ones(5), whole.Places(PLACES, (ROWS, COLUMNS))),
    matrices.LowRank(base, *factors, 2.0),
    matrices.Merged(base, factors, lambda base, f: base + f[0] @ f[1]),
  ]
  for node in nodes:
    assert jax.eval_shape(matmul, x, node).dtype == jnp.bfloat16
    gradient = jax.grad(lambda x, n=node: jnp.sum(matmul(x, n)))
    assert jax.eval_shape(gradient, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["beside", "merged"])
def test_factors_have_the_gradients_of_the_product(kind):
  x, base = normal("x", 3, ROWS), normal("w", ROWS, COLUMNS)
  factors = (normal("a", ROWS, 2), normal("b", 2, COLUMNS))

  def loss(x, factors):
    if kind == "beside":
      node = matrices.LowRank(base, *factors, 0.5)
    else:
      node = matrices.Merged(base, factors, lambda w, f: w + 0.5 * f[0] @ f[1])
    assert node.shape == base.shape
    return loss_of(matmul(x, node))

  def wanted(x, factors):
    return loss_of(x @ (base + 0.5 * factors[0] @ factors[1]))

  ours, theirs = (
    jax.jit(jax.grad(f, (0, 1)))(x, factors) for f in (loss, wanted)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    ours,
    theirs,
  )


def test_stacked_matrices_in_a_scan_with_checkpoints():
  x = normal("x", 3, ROWS)
  base = normal("stack", 2, ROWS, ROWS)
  places = jnp.array([[1, 4], [24, 0]], jnp.int32)

  def loss(deltas):
    node = matrices.Delta(base, deltas, places, None)
    block = jax.checkpoint(lambda h, w: h + jnp.tanh(matmul(h, w)))
    return loss_of(jax.lax.scan(lambda h, w: (block(h, w), None), x, node)[0])

  def dense(base):
    h = x
    for w in base:
      h = h + jnp.tanh(h @ w)
    return loss_of(h)

  wanted = jax.jit(jax.grad(dense))(base).reshape(2, -1)
  wanted = np.take_along_axis(np.asarray(wanted), np.asarray(places), 1)
  ours = jax.jit(jax.grad(loss))(jnp.zeros((2, 2)))
  np.testing.assert_allclose(ours, wanted, rtol=1e-5)


@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
def test_stacked_matrices_are_written_and_changed_in_their_place(stack):
  base = normal("w", *stack, ROWS, COLUMNS)
  places = jnp.broadcast_to(PLACES, (*stack, 5))
  values = normal("v", *stack, 5)
  wanted = np.asarray(base).copy().reshape(-1, SIZE)
  wanted[:, PLACES[:4]] = np.asarray(values).reshape(-1, 5)[:, :4]
  written = matrices.scatter(base, places, values)
  np.testing.assert_array_equal(written.reshape(-1, SIZE), wanted)

  def halved(matrix, value):
    return matrix / 2, jnp.sum(matrix) + value[0]

  changed, sums = matrices.in_place(halved)(base, values)
  np.testing.assert_array_equal(changed, base / 2)
  np.testing.assert_allclose(
    sums, jnp.sum(base, (-2, -1)) + values[..., 0], rtol=1e-5
  )


def test_a_probe_reads_off_the_dense_gradient():
  x, base = normal("x", 3, ROWS), normal("w", ROWS, COLUMNS)

  def read(gradient, base, places):
    return (gradient * base).reshape(-1)[places]

  def loss(zeros):
    probe = Probe(zeros, jnp.array([2, 9]), read)
    node = matrices.Delta(base, jnp.zeros(5), PLACES, probe)
    return loss_of(matmul(x, node))

  _, gradient = dense_gradients(x, base)
  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(jnp.zeros(2)),
    (gradient * base).reshape(-1)[jnp.array([2, 9])],
    rtol=1e-5,
  )


@pytest.mark.parametrize("name", ["lora", "masked_lora", "spp"])
def test_adapters_are_their_papers_formula(name):
  w = jnp.where(normal("m", 2, 6, 8) > 0, normal("w", 2, 6, 8), 0)
  options = {"scale": 2.0} if name == "spp" else {"alpha": 8.0}
  tx = getattr(finetune, name)(
    finetune.adamw(0.1), key=KEY, rank=4, prunable=lambda *_: True, **options
  )
  values, state = tx.start(w)
  np.testing.assert_array_equal(finetune.merge(values, state), w)
  assert 0 < np.std(values.down) < 1
  up = normal("up", *values.up.shape)
  merged = np.asarray(finetune.merge(values._replace(up=up), state))
  wanted = np.zeros_like(merged)
  a, b, base = (np.asarray(v, np.float64) for v in (values.down, up, w))
  for layer in range(2):
    for i in range(6):
      for j in range(8):
        if name == "spp":
          change = 2 * base[layer, i, j] * a[layer, i, j // 2] * b[layer, j]
        else:
          change = 8 / 4 * a[layer, i] @ b[layer, :, j]
        if name == "lora" or base[layer, i, j]:
          wanted[layer, i, j] = base[layer, i, j] + change
  np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-6)
  if name != "lora":
    np.testing.assert_array_equal(merged == 0, np.asarray(w) == 0)


def test_spp_repeats_the_numbers_of_an_input_one_by_one():
  change = ScaledWeights(rank=2, scale=1.0)
  factors = Factors(jnp.array([[1.0, 2.0]]), jnp.ones(6))
  # As the released code, whose repeat_interleave makes 1 1 1 2 2 2 of 1 2.
  np.testing.assert_array_equal(
    change(jnp.ones((1, 6)), factors), [[2, 2, 2, 3, 3, 3]]
  )
