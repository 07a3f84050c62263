"""On a mesh: masks lie as their parameters do, and nothing is gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax
from sparsejax import lottery
from tests.marks import slow

pytestmark = pytest.mark.core

KEY = jax.random.key(0)
STEPS = 4


def moving(algorithm, **options):
  return algorithm(
    optax.sgd(0.1, 0.9), 0.6, key=KEY, delta_t=2, t_end=100, **options
  )


ALGORITHMS = {
  "rigl": lambda: moving(sparsejax.rigl),
  # Random values lie as the params do, too.
  "set": lambda: moving(
    sparsejax.set_, grown_values=jax.nn.initializers.uniform(0.1)
  ),
  "seft": lambda: moving(sparsejax.seft, smoothing=0.9),
  "snfs": lambda: moving(sparsejax.snfs),
  "gmp": lambda: sparsejax.gmp(
    optax.sgd(0.1, 0.9), 0.6, key=KEY, begin=1, end=3, delta_t=2
  ),
}
SPECS = {
  "b": PartitionSpec("y"),
  "w": PartitionSpec(None, "y", "x"),
}
SHAPES = {"b": (8,), "w": (3, 6, 8)}


def tree(seed):
  keys = jax.random.split(jax.random.key(seed), len(SHAPES))
  pairs = zip(keys, SHAPES.items(), strict=True)
  # Rounded, so that sums and products are exact in any order.
  return {p: jnp.round(8 * jax.random.normal(k, s)) / 8 for k, (p, s) in pairs}


def run(name, put=lambda x: x):
  """Masks at first, after every step, and the program of a mask update."""
  tx = ALGORITHMS[name]()
  params, state = sparsejax.init(tx, put(tree(0)))
  found = [sparsejax.get_masks(state)]
  update = jax.jit(tx.update, static_argnames="update_masks")
  for t in range(STEPS):
    grads = put(tree(t + 1))
    if t == 1:  # by now the whole state is on the mesh, keys included
      move = update.lower(grads, state, params, update_masks=True).compile()
    if t % 2:
      updates, state = move(grads, state, params)
    else:
      updates, state = update(grads, state, params, update_masks=False)
    params = optax.apply_updates(params, updates)
    found.append(sparsejax.get_masks(state))
  return found, params, move.as_text()


@functools.cache
def on_one_device(name):
  return run(name)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
  "name", ["rigl", slow("set"), slow("gmp"), slow("seft"), slow("snfs")]
)
def test_masks_on_a_mesh(name, kind):
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))

  def put(params):
    return {
      p: jax.device_put(x, NamedSharding(mesh, SPECS[p]))
      for p, x in params.items()
    }

  found, params, text = run(name, put)
  wanted, plain, _ = on_one_device(name)
  assert (np.asarray(wanted[0]["w"]) != np.asarray(wanted[-1]["w"])).any()
  for got, want in zip(found, wanted, strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert got["w"].sharding.is_equivalent_to(
      NamedSharding(mesh, SPECS["w"]), got["w"].ndim
    )
  jax.tree.map(np.testing.assert_array_equal, params, plain)
  check_collectives(text)


def check_collectives(text):
  """Reductions to scalars, and nothing else, cross from device to device."""
  moving = r" (sort|gather|all-gather|all-to-all|collective-permute)[\w-]*\("
  assert not re.search(moving, text)
  reduced = re.findall(r"= (.*?) all-reduce[\w-]*\(", text)
  assert reduced
  for shapes in reduced:
    assert not re.search(r"\[\d", shapes), f"all-reduce of {shapes}"


def test_the_check_sees_what_is_gathered():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  x = jax.device_put(jnp.arange(64.0), NamedSharding(mesh, PartitionSpec("x")))

  def several(x):
    def add(a, b):
      return a[0] + b[0], a[1] + b[1]

    return jax.lax.reduce((x, x), (0.0, 0.0), add, (0,))

  for f in (jnp.cumsum, jnp.sort, several):
    text = jax.jit(f).lower(x).compile().as_text()
    with pytest.raises(AssertionError):
      check_collectives(text)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_one_threshold_over_a_tree_on_a_mesh(kind):
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
  scores = tree(0)  # rounded: ties are many
  shardings = {p: NamedSharding(mesh, s) for p, s in SPECS.items()}
  spread = jax.device_put(scores, shardings)
  program = jax.jit(sparsejax.select.top_k_masks).lower(spread, 0).compile()
  check_collectives(program.as_text())
  for k in (0, 3, 50, 100, 151):
    got = program(spread, k)
    wanted = sparsejax.select.top_k_masks(scores, k)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert sum(int(m.sum()) for m in jax.tree.leaves(got)) == k
    for p, mask in got.items():
      assert mask.sharding.is_equivalent_to(shardings[p], mask.ndim)


def test_a_round_of_pruning_on_a_mesh():
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  params = tree(0)
  masks = {p: x != 0 for p, x in params.items()}
  shardings = {p: NamedSharding(mesh, s) for p, s in SPECS.items()}
  spread = jax.device_put((params, masks), (shardings, shardings))

  def prune(params, masks):
    return lottery.prune_round(params, masks, 0.2)

  program = jax.jit(prune).lower(*spread).compile()
  check_collectives(program.as_text())
  for _ in range(3):
    masks = prune(params, masks)
    spread = spread[0], program(*spread)
    jax.tree.map(np.testing.assert_array_equal, spread[1], masks)
    for p, mask in spread[1].items():
      assert mask.sharding.is_equivalent_to(shardings[p], mask.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, slow(AxisType.Explicit)])
@pytest.mark.parametrize("pattern", [None, slow("fan_in")])
def test_stacked_layers_on_a_mesh(pattern, kind):
  """Layers move by themselves; what crosses are counts of each of them."""
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
  spec = NamedSharding(mesh, PartitionSpec(None, "x", "y"))

  def layers(seed):
    w = jax.random.normal(jax.random.key(seed), (3, 16, 8))
    return {"layers": {"kernel": jnp.round(8 * w) / 8}}

  tx = moving(sparsejax.rigl, pattern=pattern, distribution="uniform")
  update = jax.jit(tx.update, static_argnames="update_masks")
  found = []
  for put in (lambda x: x, lambda x: jax.device_put(x, spec)):
    params, state = sparsejax.init(tx, put(layers(0)))
    _, state = update(put(layers(1)), state, params, update_masks=True)
    text = update.lower(put(layers(1)), state, params, update_masks=True)
    found.append(sparsejax.get_masks(state)["layers"]["kernel"])
  alone, spread = found
  np.testing.assert_array_equal(alone, spread)
  assert spread.sharding.is_equivalent_to(spec, 3)
  text = text.compile().as_text()
  assert not re.search(r" (sort|gather|all-gather|all-to-all)[\w-]*\(", text)
