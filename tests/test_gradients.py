"""One loop trains masked, packed, by kernels, and fine-tunes."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import finetune, modes, nodes
from sparsejax.finetune import protocols
from sparsejax.finetune.moving import GradientEvolution
from sparsejax.finetune.sm3 import Sm3Evolution
from sparsejax.gradients import DenseGradient, Gradient
from sparsejax.packed import Structure
from tests.marks import few, slow

KEY = jax.random.key(0)
STEPS = 12
SHAPE = (12, 16)


def rigl():
  return sparsejax.rigl(optax.adam(0.05), 0.75, key=KEY, t_end=12, delta_t=4)


def deltas(method, **options):
  return method(
    finetune.adamw(0.05), key=KEY, t_end=STEPS, k=20, every=4, **options
  )


TRANSFORMATIONS = {
  "masked": rigl,
  "packed": lambda: modes.packed(rigl()),
  "kernels": lambda: modes.kernels(rigl()),
  "straight through": lambda: sparsejax.ste(optax.adam(0.05), 0.75, key=KEY),
  "seft": lambda: deltas(finetune.seft),
  "spiel": lambda: deltas(finetune.spiel, accumulate=2),
  "fixed": lambda: finetune.fixed(optax.adam(0.05), key=KEY),
  "lora": lambda: finetune.lora(optax.adam(0.05), key=KEY),
}
X = jax.random.normal(jax.random.fold_in(KEY, 1), (64, SHAPE[0]))
Y = jax.random.normal(jax.random.fold_in(KEY, 2), (64, SHAPE[1]))


def params():
  w = jax.random.normal(jax.random.fold_in(KEY, 3), SHAPE) / 4
  return {"w": jnp.where(jnp.abs(w) > 0.15, w, 0), "b": jnp.zeros(SHAPE[1])}


def loss_fn(params, x):
  return jnp.mean((sparsejax.matmul(x, params["w"]) + params["b"] - Y) ** 2)


@pytest.mark.parametrize(
  "name", few(TRANSFORMATIONS, set(TRANSFORMATIONS) - {"kernels", "spiel"})
)
def test_the_same_lines_train_by_every_transformation(name):
  tx = TRANSFORMATIONS[name]()
  values, state = sparsejax.init(tx, params())
  value_and_grad = sparsejax.value_and_grad(loss_fn, tx)

  @functools.partial(jax.jit, static_argnames="now")
  def step(values, state, now):
    loss, grads = value_and_grad(values, state, X, update_masks=now)
    updates, state = tx.update(grads, state, values, update_masks=now)
    return optax.apply_updates(values, updates), state, loss

  losses, kinds = [], set()
  for i in range(STEPS):
    now = tx.moves(i)
    values, state, loss = step(values, state, now=now)
    losses.append(float(loss))
    kinds.add(now)
  assert losses[-1] < losses[0]
  assert False in kinds or name == "straight through"
  if name not in ("fixed", "lora"):
    assert any(kinds)


def test_gradients_hold_what_was_read_where_masks_move_only():
  tx = modes.packed(rigl())
  values, state = sparsejax.init(tx, params())

  def with_aux(params, x):
    return loss_fn(params, x), x.shape

  value_and_grad = sparsejax.value_and_grad(with_aux, tx, has_aux=True)
  (loss, aux), grads = value_and_grad(values, state, X, update_masks=True)
  assert aux == X.shape
  assert isinstance(grads["w"], Gradient)
  assert grads["w"].count == 1
  assert grads["b"].shape == values["b"].shape
  (again, _), plain = value_and_grad(values, state, X)
  assert loss == again
  np.testing.assert_array_equal(plain["w"], grads["w"].values)
  with pytest.raises(ValueError, match=r"w: got update_masks=False .* moves"):
    tx.update(grads, state, values, update_masks=False)
  with pytest.raises(ValueError, match=r"w: got update_masks=True .* ordinary"):
    tx.update(plain, state, values, update_masks=True)


# The mean over the whole batch, and what has the same value and gradient.
def whole(params, x, y):
  hidden = jnp.tanh(sparsejax.matmul(x, params["w"]))
  return jnp.mean((sparsejax.matmul(hidden, params["v"]) - y) ** 2)


def cut(x):
  return x.reshape(4, -1, *x.shape[1:])


def in_a_map(params, x, y):
  parts = jax.lax.map(lambda xy: whole(params, *xy), (cut(x), cut(y)))
  return jnp.mean(parts)


def in_a_scan(params, x, y):
  @jax.checkpoint
  def turn(total, xy):
    return total + whole(params, *xy) / 4, None

  return jax.lax.scan(turn, 0.0, (cut(x), cut(y)))[0]


def in_a_vmap(params, x, y):
  part = jax.jit(lambda x, y: whole(params, x, y))
  return jnp.mean(jax.vmap(part)(cut(x), cut(y)))


def in_a_loop(params, x, y):
  pairs = zip(cut(x), cut(y), strict=True)
  return sum(whole(params, *xy) for xy in pairs) / 4


MICROBATCHES = [in_a_map, in_a_scan, in_a_vmap, in_a_loop]


# Other uses of a matrix, and how many of `w` and `v` there are.
def shared(params, x, y):
  hidden = jnp.tanh(sparsejax.matmul(x, params["w"]))
  return whole(params, hidden, y)


def recurrent(params, x, y):
  def cell(h, x):
    return jnp.tanh(sparsejax.matmul(h, params["w"]) + x), None

  h, _ = jax.lax.scan(cell, x, jnp.stack([x, x, x]))
  return jnp.mean((sparsejax.matmul(h, params["v"]) - y) ** 2)


def sometimes(params, x, y):
  return jax.lax.cond(
    jnp.sum(x) > 0,
    lambda: whole(params, x, y),
    lambda: jnp.mean(sparsejax.matmul(x, params["v"]) ** 2),
  )


def without_w(params, x, y):
  return jnp.mean((sparsejax.matmul(x, params["v"]) - y) ** 2)


def rematerialised(params, x, y):
  return jax.checkpoint(jax.jit(whole))(params, x, y)


def in_either_branch(params, x, y):
  one = functools.partial(whole, params, x, y)
  return jax.lax.cond(jnp.sum(x) > 0, one, lambda: 2 * one())


SQUARE = 16
XS = jax.random.normal(jax.random.fold_in(KEY, 4), (32, SQUARE))
YS = jnp.roll(XS, 1, axis=1)


def two_matrices():
  w, v = jax.random.normal(jax.random.fold_in(KEY, 5), (2, SQUARE, SQUARE)) / 4
  return {
    "w": jnp.where(jnp.abs(w) > 0.15, w, 0),
    "v": jnp.where(jnp.abs(v) > 0.15, v, 0),
  }


def moved(name, loss, mode=lambda tx: tx, *, x=XS, y=YS, **options):
  """The masks, or the places, after a first move."""
  tx = mode(TRANSFORMATIONS[name]())
  values, state = sparsejax.init(tx, two_matrices())
  value_and_grad = sparsejax.value_and_grad(loss, tx, **options)

  @functools.partial(jax.jit, static_argnums=2)
  def step(values, state, now):
    _, grads = value_and_grad(values, state, x, y, update_masks=now)
    return tx.update(grads, state, values, update_masks=now)[1]

  for i in range(STEPS):
    if now := tx.moves(i):
      state = step(values, state, now)
      if now is True or now.last:
        break
  return placed(state)


def placed(state):
  if isinstance(state, finetune.FineTuneState):
    indices = jax.tree.map(
      lambda part: part.indices, state.parts, is_leaf=_leaf
    )
    return jax.tree.map(lambda i: sorted(i.tolist()), indices)
  return jax.tree.map(lambda m: np.flatnonzero(m).tolist(), masks_of(state))


def _leaf(x):
  return hasattr(x, "indices")


def masks_of(state):
  return sparsejax.get_masks(state)


@functools.cache
def moved_by_the_whole_batch(name):
  return moved(name, whole)


@pytest.mark.parametrize("loss", few(MICROBATCHES, [in_a_map]))
@pytest.mark.parametrize("name", ["packed", slow("seft"), slow("spiel")])
def test_microbatches_move_what_the_whole_batch_does(name, loss):
  assert moved(name, loss) == moved_by_the_whole_batch(name)


@pytest.mark.parametrize(
  "loss",
  [shared, slow(recurrent), slow(sometimes), without_w, slow(in_either_branch)],
)
def test_matrices_of_several_products_have_the_masks_of_masked_mode(loss):
  want = moved("masked", loss)
  assert moved("packed", loss) == want
  assert want != placed(sparsejax.init(rigl(), two_matrices())[1])


KINDS = {
  **dict.fromkeys(MICROBATCHES, (DenseGradient, DenseGradient)),
  whole: (Gradient, Gradient),
  rematerialised: (Gradient, Gradient),
  in_either_branch: (Gradient, Gradient),
  shared: (DenseGradient, Gradient),
  recurrent: (DenseGradient, Gradient),
  sometimes: (DenseGradient, Gradient),
  without_w: (DenseGradient, Gradient),
}


@pytest.mark.parametrize("name", ["packed", slow("kernels"), slow("seft")])
@pytest.mark.parametrize("loss", KINDS, ids=lambda loss: loss.__name__)
def test_a_matrix_of_one_product_has_no_dense_gradient(loss, name):
  tx = TRANSFORMATIONS[name]()
  values, state = sparsejax.init(tx, two_matrices())
  now = next(filter(None, map(tx.moves, range(STEPS))))
  _, grads = jax.eval_shape(
    lambda: sparsejax.value_and_grad(loss, tx)(
      values, state, XS, YS, update_masks=now
    )
  )
  wanted = KINDS[loss]
  assert (type(grads["w"]), type(grads["v"])) == wanted


def test_what_is_read_at_places_chosen_before_adds_up():
  tx = TRANSFORMATIONS["spiel"]()
  values, state = sparsejax.init(tx, two_matrices())
  kinds = {}
  for now in (tx.moves(0), tx.moves(1)):
    _, grads = jax.eval_shape(
      lambda now=now: sparsejax.value_and_grad(in_a_map, tx)(
        values, state, XS, YS, update_masks=now
      )
    )
    kinds[now.first] = type(grads["w"])
  assert kinds == {True: DenseGradient, False: Gradient}


def test_layers_of_a_scan_meet_one_product_each():
  tx = TRANSFORMATIONS["seft"]()
  stack = jnp.stack([two_matrices()["w"], two_matrices()["v"]])
  values, state = sparsejax.init(tx, {"w": stack})

  def loss(params, x):
    @jax.checkpoint
    def layer(x, w):
      return jnp.tanh(sparsejax.matmul(x, w)), None

    return jnp.mean(jax.lax.scan(layer, x, params["w"])[0] ** 2)

  now = tx.moves(3)
  _, grads = jax.eval_shape(
    lambda: sparsejax.value_and_grad(loss, tx)(
      values, state, XS, update_masks=now
    )
  )
  assert isinstance(grads["w"], Gradient)


def accumulated(tx, *, summable, mean=True, scan=False):
  """A step that moves, by gradients that are added up before the update."""
  values, state = sparsejax.init(tx, two_matrices())
  now = next(filter(None, map(tx.moves, range(STEPS))))
  value_and_grad = sparsejax.value_and_grad(whole, tx, summable=summable)

  def gradients(x, y):
    return value_and_grad(values, state, x, y, update_masks=now)[1]

  def summed():
    if not scan:
      parts = [gradients(*xy) for xy in zip(cut(XS), cut(YS), strict=True)]
      return jax.tree.map(lambda *leaves: sum(leaves), *parts)
    none = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      jax.eval_shape(gradients, cut(XS)[0], cut(YS)[0]),
    )

    def turn(total, xy):
      return jax.tree.map(jnp.add, total, gradients(*xy)), None

    return jax.lax.scan(turn, none, (cut(XS), cut(YS)))[0]

  @jax.jit
  def step(state):
    grads = summed()
    if mean:
      grads = jax.tree.map(lambda g: g / 4, grads)
    return tx.update(grads, state, values, update_masks=now)[1]

  return placed(jax.block_until_ready(step(state)))


@pytest.mark.parametrize("name", ["packed", slow("seft")])
def test_gradients_that_may_be_added_move_what_the_whole_batch_does(name):
  tx = TRANSFORMATIONS[name]()
  got = accumulated(tx, summable=True, scan=True)
  assert got == moved_by_the_whole_batch(name)


@pytest.mark.parametrize("name", ["packed", "seft"])
def test_gradients_that_cannot_be_added_are_refused(name):
  tx = TRANSFORMATIONS[name]()
  with pytest.raises(ValueError, match=r"v: got the sum of 4 .*summable=True"):
    accumulated(tx, summable=False, mean=False)
  with pytest.raises(ValueError, match=r"v: got a mean .*microbatches"):
    accumulated(tx, summable=False)


def test_gradients_that_cannot_be_added_are_refused_where_they_run():
  tx = TRANSFORMATIONS["packed"]()
  with pytest.raises(Exception, match=r"v: got the sum of 4 .*summable=True"):
    accumulated(tx, summable=False, mean=False, scan=True)


def test_members_of_a_vmap_have_the_masks_of_their_own_batches():
  tx = TRANSFORMATIONS["packed"]()
  values, state = sparsejax.init(tx, two_matrices())
  value_and_grad = sparsejax.value_and_grad(in_a_map, tx)

  @jax.jit
  @jax.vmap
  def step(x):
    _, grads = value_and_grad(values, state, x, YS, update_masks=True)
    return sparsejax.get_masks(
      tx.update(grads, state, values, update_masks=True)[1]
    )

  masks = step(jnp.stack([XS, 2 * XS[::-1]]))
  for i, x in enumerate((XS, 2 * XS[::-1])):
    got = jax.tree.map(lambda m, i=i: np.flatnonzero(m[i]).tolist(), masks)
    assert got == moved("masked", whole, x=x)


def members(protocol):
  """What a protocol wants to be implemented: its own functions and fields."""
  own = {name for name in vars(protocol) if not name.startswith("_")}
  return own | set(getattr(protocol, "__annotations__", {})) - {"ascending"}


@pytest.mark.parametrize("name", ["seft", "spiel", "fixed", "lora"])
def test_parts_and_what_they_make_are_as_the_protocols_say(name):
  tx = TRANSFORMATIONS[name]()
  values, state = sparsejax.init(tx, params())
  part = state.parts["w"]
  assert all(hasattr(part, member) for member in members(protocols.Part))
  matrix = sparsejax.forward_params(values, state)["w"]
  assert all(hasattr(matrix, member) for member in members(nodes.Matrix))
  assert matrix.shape == SHAPE
  dense = finetune.merge(values, state)["w"]
  np.testing.assert_allclose(matrix.matmul(X), X @ dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [GradientEvolution, Sm3Evolution])
def test_evolutions_are_as_the_protocol_says(kind):
  wanted = members(protocols.Evolution)
  assert wanted >= {"schedule", "empty", "probe", "gathered", "move", "seeds"}
  assert all(hasattr(kind, member) for member in wanted)
  for name in wanted - {"schedule"}:
    ours, theirs = (
      list(inspect.signature(getattr(one, name)).parameters)
      for one in (kind, protocols.Evolution)
    )
    assert ours == theirs


def test_structures_implement_places_and_moved():
  assert Structure.__abstractmethods__ == {"places", "moved"}
  with pytest.raises(TypeError, match="abstract"):
    type("Nowhere", (Structure,), {})()
