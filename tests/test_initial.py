"""Masks before training, by hand and against loops in NumPy."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import models
from sparsejax import distributions, initial, scores, updates
from sparsejax.masks import path_name

KEY = jax.random.key(0)
# x = (1, 2) makes both hidden units 3, the output 3 and the loss 9 / 2.
HAND = {
  "a": jnp.array([[1.0, -1.0], [1.0, 2.0]]),
  "b": jnp.array([[2.0], [-1.0]]),
}
X = jnp.array([[1.0, 2.0]])
# All random nets share these shapes, 56 weights, and so what is compiled.
SHAPES = {"a": (5, 7), "b": (7, 3)}


def net(params, x):
  return jax.nn.relu(x @ params["a"]) @ params["b"]


def loss(params, x):
  return 0.5 * jnp.mean(jnp.sum(net(params, x) ** 2, axis=-1))


def everything(path, leaf):
  return True


def lists(masks):
  return {p: np.ravel(m).astype(int).tolist() for p, m in masks.items()}


def normal(seed, **shapes):
  rng = np.random.default_rng(seed)
  return {
    p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in shapes.items()
  }


def numpy_top(rated, k):
  """Exactly k over all leaves, ties to the earlier leaf and index."""
  flat = np.concatenate([np.ravel(rated[p]) for p in rated])
  mask = np.zeros(flat.shape, bool)
  mask[np.argsort(-flat, kind="stable")[:k]] = True
  ends = np.cumsum([np.size(rated[p]) for p in rated])[:-1]
  parts = zip(rated, np.split(mask, ends), strict=True)
  return {p: m.reshape(np.shape(rated[p])) for p, m in parts}


def same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


# One score each.


def test_magnitude_by_hand():
  """|a| is 1, 1, 1, 2 and |b| 2, 1: the tie goes to the first."""
  masks = initial.magnitude(None, HAND, None, 0.5)
  assert lists(masks) == {"a": [1, 0, 0, 1], "b": [1, 0]}


def test_snip_by_hand():
  """g is 6, -3, 12, -6 for a and 9, 9 for b; |w g| 6, 3, 12, 12 and 18, 9."""
  masks = initial.snip(loss, HAND, [X], 0.5)
  assert lists(masks) == {"a": [0, 0, 1, 1], "b": [1, 0]}
  masks = initial.snip(loss, HAND, [X], 0.5, score=scores.gradient())
  assert lists(masks) == {"a": [0, 0, 1, 0], "b": [1, 1]}


def test_batches_count_by_their_mean_gradient():
  """1 and -9 make -4, which is more than 3 and 3, though |1| is not."""
  params = jnp.ones((1, 2))
  batches = [jnp.array([1.0, 3.0]), jnp.array([-9.0, 3.0])]

  def linear(w, x):
    return jnp.sum(w * x)

  def first_kept(batches):
    return bool(initial.snip(linear, params, batches, 0.5)[0, 0])

  assert not first_kept(batches[:1])
  assert first_kept(batches)
  assert first_kept(tuple(batches))
  # -9 and 9 and 1 add up to 1.
  assert not first_kept([*batches, jnp.array([9.0, 3.0])])


def tanh_loss(params, batch):
  x, y = batch
  hidden = jnp.tanh(x @ params["a"] + params["bias"])
  return jnp.mean((hidden @ params["b"] - y) ** 2)


def test_grasp_against_the_dense_hessian():
  params = normal(1, **SHAPES, bias=(7,))
  data = normal(2, x=(6, 5), y=(6, 3))
  halves = [(data["x"][i::2], data["y"][i::2]) for i in range(2)]
  masks = initial.grasp(tanh_loss, params, halves, 0.5)
  assert masks["bias"].shape == ()

  part = {p: params[p] for p in ("a", "b")}
  w, unravel = jax.flatten_util.ravel_pytree(part)

  def whole(w):
    batch = data["x"], data["y"]
    return tanh_loss({"bias": params["bias"]} | unravel(w), batch)

  @jax.jit
  def dense(w, gone):
    """S of the paper, and d|g|^2 as a share of some weights is removed."""

    def norm(share):
      g = jax.grad(whole)(w * (1 - share * gone))
      return jnp.sum(g * g)

    s = -w * (jax.hessian(whole)(w) @ jax.grad(whole)(w))
    return s, jax.grad(norm)(0.0)

  removed = ~jax.flatten_util.ravel_pytree({p: masks[p] for p in part})[0]
  assert removed.sum() == 28
  s, slope = dense(w, removed)
  assert s[removed].min() > s[~removed].max()
  assert s.min() < 0 < s.max()  # so that a sign, or |S|, shows
  np.testing.assert_allclose(slope, 2 * s[removed].sum(), rtol=1e-4)
  assert slope > 0 > dense(w, ~removed)[1]


# In rounds.


def counts(size, k, rounds):
  shares = [(k / size) ** (i / rounds) for i in range(1, rounds + 1)]
  return [round(size * share) for share in shares]


def numpy_gradient(params, x):
  """Of `loss`, in float64."""
  hidden = np.maximum(x @ params["a"], 0)
  back = hidden @ params["b"] / len(x)
  through = (back @ params["b"].T) * (hidden > 0)
  return {"a": x.T @ through, "b": hidden.T @ back}


def float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_force_against_a_loop():
  params, x = normal(3, **SHAPES), normal(4, x=(8, 5))["x"]
  masks = initial.force(loss, params, [x[:4], x[4:]], 0.8, rounds=4)
  w, left = float64(params), float64(params)
  for k in counts(56, 11, 4):
    g = numpy_gradient(left, np.asarray(x, np.float64))
    wanted = numpy_top({p: np.abs(w[p] * g[p]) for p in w}, k)
    left = {p: w[p] * wanted[p] for p in w}
  same(masks, wanted)


def test_force_lets_a_weight_come_back():
  """Pruned first: the derivative 5 (1 - s) by w0 is 0 while s is 1.

  Of ten weights round 1 keeps 7: the four of score 2, and three of the five
  that make up s, of score 1 each. Then s is 0.6, w0 has a score of 2, and is
  the fifth to be kept.
  """
  params = jnp.array([1.0, *[0.2] * 5, *[1.0] * 4])

  def linear(w, _):
    return 5 * w[0] * (1 - jnp.sum(w[1:6])) + 2 * jnp.sum(w[6:])

  prune = functools.partial(
    initial.force, linear, params, [None], prunable=everything
  )
  assert np.flatnonzero(prune(0.3, rounds=1)).tolist() == [1, 2, 3, 6, 7, 8, 9]
  assert np.flatnonzero(prune(0.5, rounds=2)).tolist() == [0, 6, 7, 8, 9]


def deep(params, x):
  """Any number of layers; `bias` adds to the first one's outputs."""
  first, *rest = (params[p] for p in sorted(params) if p.startswith("w"))
  x = jax.nn.relu(x @ first + params.get("bias", 0.0))
  for w in rest:
    x = jax.nn.relu(x) @ w
  return x


def numpy_synflow(params, k, rounds):
  params = {p: np.abs(w) for p, w in float64(params).items()}
  bias = params.pop("bias", 0.0)
  size = sum(w.size for w in params.values())
  masks = {p: np.ones(w.shape, bool) for p, w in params.items()}
  for kept in counts(size, k, rounds):
    left = [w * masks[p] for p, w in params.items()]
    inputs = [np.ones((1, len(left[0])))]
    for w in left:
      inputs.append(inputs[-1] @ w + (bias if len(inputs) == 1 else 0.0))
    back, rated = np.ones_like(inputs[-1]), {}
    for p, w, x in reversed(list(zip(params, left, inputs[:-1], strict=True))):
      rated[p] = np.where(masks[p], np.abs(w * (x.T @ back)), -1.0)
      back = back @ w.T
    masks = numpy_top({p: rated[p] for p in params}, kept)
  return masks


def test_synflow_against_a_loop():
  """With a bias, which does not become smaller than the inputs."""
  params = normal(5, w0=(4, 6), w1=(6, 5), w2=(5, 3), bias=(6,))
  params["bias"] *= 3
  inputs = normal(7, x=(1, 4))["x"]  # of which no value counts
  masks = initial.synflow(deep, params, [inputs], 0.8)
  assert masks.pop("bias").shape == ()
  same(masks, numpy_synflow(params, 14, 100))
  unbiased = numpy_synflow(params | {"bias": 0.0}, 14, 100)
  assert any((masks[p] != unbiased[p]).any() for p in masks)


def thirty(w, x):
  """Thirty layers in one leaf [30, 3, 3], since leaves cost compilation."""
  return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, w)[0]


LAYERS = normal(8, w=(30, 3, 3))["w"]
ONES = jnp.ones((1, 3))


@pytest.mark.filterwarnings("ignore:.*may as well stack layers")
def test_synflow_on_nets_whose_flow_float32_cannot_hold():
  """Factors of 2**6 and 2**-8 in each of 30 layers: 1e54 and 1e-72."""

  @jax.jit
  def prune(w):
    return initial.synflow(thirty, w, [ONES], 0.6, rounds=5)

  masks = prune(LAYERS)
  by_layer = {f"w{i:02}": w for i, w in enumerate(LAYERS)}
  wanted = numpy_synflow(by_layer, 108, 5)
  np.testing.assert_array_equal(masks, np.stack(list(wanted.values())))
  for factor in (2.0**6, 2.0**-8):
    flow = thirty(jnp.abs(factor * LAYERS), ONES)
    assert not (jnp.isfinite(flow) & (flow > 0)).any()
    same(prune(factor * LAYERS), masks)


@pytest.mark.filterwarnings("ignore:.*may as well stack layers")
def test_synflow_says_that_the_flow_is_out_of_range():
  with pytest.raises(ValueError, match=r"array: .*flow R.*float64"):
    initial.synflow(thirty, 2.0**30 * LAYERS, [ONES], 0.6, rounds=5)
  # 27 weights make no path through thirty layers.
  with pytest.raises(ValueError, match=r"flow R is zero.*Lower the sparsity"):
    initial.synflow(thirty, LAYERS, [ONES], 0.9)


def test_synflow_does_not_regrow():
  """Of 6 weights 6, 5, 5, 5, 4 and 4 are kept.

  First a[0, 0] goes, then b[0], so that a[1, 0] scores as little as what is
  pruned: nothing. It stays, all the same.
  """
  params = {
    "w0": jnp.array([[0.25, 10.0], [0.75, 10.0]]),
    "w1": jnp.array([[1.0], [10.0]]),
  }
  masks = initial.synflow(deep, params, [X], 1 / 3, rounds=6)
  assert lists(masks) == {"w0": [0, 1, 1, 1], "w1": [0, 1]}


def empty(masks):
  return [
    path_name(path)
    for path, m in jax.tree_util.tree_leaves_with_path(masks)
    if m.ndim and not m.any()
  ]


def test_synflow_empties_no_layer_of_a_convolutional_net():
  """At 99.9 %, where the largest layer takes the others' weights by |w|."""
  model = models.create("small_conv", 10, features=(8, 32), hidden=())
  x = jnp.ones((1, 8, 8, 3))
  shapes = jax.eval_shape(lambda: model.init(KEY, x, False))["params"]
  rng = np.random.default_rng(0)

  def draw(x):  # of variance 1 / fan_in, but no biases
    scale = math.prod(x.shape[:-1]) ** -0.5 if len(x.shape) > 1 else 0.0
    return jnp.asarray(rng.normal(size=x.shape, scale=scale), x.dtype)

  params = jax.tree.map(draw, shapes)

  def apply(params, x):
    return model.apply({"params": params}, x, False)

  @jax.jit
  def prune(params):
    by_flow = initial.synflow(apply, params, [x], 0.999, rounds=30)
    return by_flow, initial.magnitude(None, params, None, 0.999)

  masks, by_magnitude = prune(params)
  assert not empty(masks)
  sizes = [p.size for p in jax.tree.leaves(params) if p.ndim > 1]
  kept = sum(m.sum() for m in jax.tree.leaves(masks) if m.ndim)
  assert kept == math.floor(sum(sizes) / 1000 + 0.5) == 4
  assert empty(by_magnitude)


# What all have in common.


def named(f, **options):
  return functools.partial(f, **options)


METHODS = {
  "random": named(initial.random, key=KEY),
  "magnitude": initial.magnitude,
  "snip": initial.snip,
  "grasp": initial.grasp,
  "force": named(initial.force, rounds=3),
  "synflow": named(initial.synflow, rounds=3),
}
PARAMS = normal(9, **SHAPES)
DATA = normal(10, x=(4, 5))["x"]


def run(name, params=PARAMS, sparsity=0.8, batches=(DATA,), **options):
  f = net if name == "synflow" else loss
  return METHODS[name](f, params, list(batches), sparsity, **options)


@pytest.fixture(scope="module")
def eager():
  return {name: run(name) for name in METHODS}


def test_under_jit_as_without(eager):
  """In one program, since each would be compiled by itself otherwise."""

  @jax.jit
  def prune(params, x):
    return {name: run(name, params, batches=[x]) for name in METHODS}

  same(prune(PARAMS, DATA), eager)
  for masks in eager.values():
    assert sum(int(m.sum()) for m in masks.values()) == 11
    assert all(m.dtype == bool for m in masks.values())


@pytest.mark.parametrize("name", ["snip", "force"])
def test_a_distribution_settles_each_leaf(name):
  masks = run(name, distribution=distributions.uniform)
  assert {p: int(m.sum()) for p, m in masks.items()} == {"a": 7, "b": 4}


@pytest.mark.parametrize(
  ("leaf", "sparsity", "kept"),
  [
    ("", 0.0, 56),
    ("", 0.5, 28),
    ("", 0.8, 11),  # 11.2
    ("", 0.8125, 11),  # 10.5
    ("", 0.9375, 4),  # 3.5
    ("", 0.99, 1),  # 0.56
    ("a", 0.1, 32),  # of 35, 31.5
    ("a", 0.9, 4),  # 3.5, though 35 * (1 - 0.9) is less
    ("a", 0.97, 1),  # 1.05
  ],
)
def test_the_budget_over_all_leaves_is_exact(leaf, sparsity, kept):
  """Also where all scores tie, which the first leaf wins."""
  ones = {p: jnp.ones(shape) for p, shape in SHAPES.items()}
  prunable = distributions.matching(leaf)
  for params in (PARAMS, ones):
    masks = initial.magnitude(None, params, None, sparsity, prunable=prunable)
    assert sum(int(m.sum()) for m in masks.values() if m.ndim) == kept
  assert masks["a"].sum() == min(kept, 35)


def test_a_budget_of_nothing():
  with pytest.raises(ValueError, match=r"0\.992 leaves none of 56 weights"):
    run("magnitude", sparsity=0.992)


def test_random_masks_are_those_of_static(eager):
  state = updates.static(sparsity=0.8).init(KEY, PARAMS)
  same(eager["random"], state.masks)
  other = run("random", key=jax.random.key(1))
  assert (other["a"] != eager["random"]["a"]).any()
  over_all = run("random", distribution=None)
  assert sum(int(m.sum()) for m in over_all.values()) == 11


class Layer(NamedTuple):
  kernel: jax.Array
  bias: jax.Array


def test_any_tree_and_leaves_that_are_not_floating():
  params = {
    "key": KEY,
    "steps": jnp.zeros((2, 2), jnp.int32),
    "layers": [
      Layer(w, jnp.zeros(w.shape[1])) for w in (PARAMS["a"], PARAMS["b"])
    ],
    "elsewhere": optax.MaskedNode(),
  }

  def apply(params, x):
    for layer in params["layers"]:
      x = jax.nn.relu(x @ layer.kernel + layer.bias)
    return x

  masks = initial.synflow(apply, params, [DATA], 0.8, rounds=3)
  assert jax.tree.structure(masks) == jax.tree.structure(params)
  shapes = [np.shape(m) for m in jax.tree.leaves(masks)]
  assert shapes == [(), (5, 7), (), (7, 3), (), ()]
  assert all(m for m in jax.tree.leaves(masks) if m.ndim == 0)


def test_scores_of_bfloat16_params_are_float32():
  """Products that bfloat16 rounds to the same number."""
  params = jnp.array([[1.0, 1 + 2**-7]], jnp.bfloat16)
  x = jnp.array([[1 + 2**-6, 1 + 2**-7]], jnp.bfloat16)

  def linear(w, x):
    return jnp.sum(w * x)

  for prune in (initial.snip, named(initial.force, rounds=1)):
    np.testing.assert_array_equal(
      prune(linear, params, [x], 0.5), [[False, True]]
    )
  # 256 + 1 is 256 in bfloat16: gradients are added up in float32, too.
  batches = [jnp.array([[a, b]], jnp.bfloat16) for a, b in [(256, 256), (0, 1)]]
  masks = initial.snip(linear, jnp.ones_like(params), batches, 0.5)
  np.testing.assert_array_equal(masks, [[False, True]])


@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_bfloat16_params(name):
  half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
  masks = run(name, half)
  assert sum(int(m.sum()) for m in masks.values()) == 11


@pytest.mark.mesh
@pytest.mark.parametrize(
  ("name", "kind"),
  [("random", AxisType.Explicit), ("synflow", AxisType.Auto)],
)
def test_masks_lie_as_their_params(eager, name, kind):
  mesh = jax.make_mesh((7,), ("x",), axis_types=(kind,))
  specs = {"a": PartitionSpec(None, "x"), "b": PartitionSpec("x")}
  params = {
    p: jax.device_put(w, NamedSharding(mesh, specs[p]))
    for p, w in PARAMS.items()
  }
  masks = run(name, params)
  same(masks, eager[name])
  for p, mask in masks.items():
    assert mask.sharding.is_equivalent_to(params[p].sharding, 2)


@pytest.mark.mesh
def test_masks_lie_as_their_params_though_gradients_do_not():
  mesh = jax.make_mesh((7,), ("x",), axis_types=(AxisType.Auto,))
  everywhere = NamedSharding(mesh, PartitionSpec())
  lying = NamedSharding(mesh, PartitionSpec("x"))

  def gathered(w, x):
    w = jax.lax.with_sharding_constraint(w, everywhere)
    return jnp.sum(w * x)

  w = jax.device_put(jnp.ones((7, 3)), lying)
  x = jnp.arange(21.0).reshape(7, 3)
  masks = initial.snip(gathered, w, [x], 0.5, score=scores.gradient())
  np.testing.assert_array_equal(masks, x > 9)
  assert masks.sharding.is_equivalent_to(lying, 2)


# What is refused.


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90])
def test_a_sparsity_out_of_range(name, sparsity):
  with pytest.raises(ValueError, match=f"sparsity: got {sparsity}"):
    run(name, sparsity=sparsity)


@pytest.mark.parametrize("name", ["snip", "grasp", "force", "synflow"])
def test_batches_that_are_none(name):
  with pytest.raises(ValueError, match=r"batches: got none.*\[batch\]"):
    run(name, batches=[])
  f = net if name == "synflow" else loss
  with pytest.raises(TypeError, match=r"batches: got .*, wanted a list"):
    METHODS[name](f, PARAMS, DATA, 0.8)


@pytest.mark.parametrize("name", ["snip", "grasp", "force"])
def test_a_loss_that_is_not_a_scalar(name):
  with pytest.raises(ValueError, match=r"loss_fn: .*\(4, 3\), wanted a scalar"):
    METHODS[name](net, PARAMS, [DATA], 0.8)
  with pytest.raises(ValueError, match=r"loss_fn: .* wanted a scalar"):
    METHODS[name](lambda p, x: (loss(p, x), {}), PARAMS, [DATA], 0.8)


@pytest.mark.parametrize("name", ["magnitude", "snip", "force"])
def test_scores_that_are_not_finite(name):
  params = PARAMS | {"b": PARAMS["b"].at[0, 0].set(jnp.nan)}
  with pytest.raises(ValueError, match=r"[ab]: got scores .*not finite.* look"):
    run(name, params)


def test_scores_that_were_not_finite_in_an_early_round():
  """The first weight's is NaN, so that it is pruned: then 0 has a score."""

  def partly_nan(w, _):
    return jnp.sqrt(0.5 - w[0]) + jnp.sum(w[1:])

  params = jnp.arange(1.0, 5.0)
  with pytest.raises(ValueError, match=r"the array: got scores .*not finite"):
    initial.force(
      partly_nan, params, [None], 0.5, prunable=everything, rounds=2
    )


def test_scores_that_are_not_finite_rank_last_under_jit():
  params = {"a": jnp.array([[jnp.nan, 1.0], [2.0, 3.0]])}
  masks = jax.jit(lambda p: initial.magnitude(None, p, None, 0.25))(params)
  assert lists(masks) == {"a": [0, 1, 1, 1]}


@pytest.mark.parametrize("name", ["force", "synflow"])
@pytest.mark.parametrize("rounds", [0, -1, 2.5])
def test_rounds_that_are_none(name, rounds):
  with pytest.raises(ValueError, match=f"got rounds={rounds}"):
    run(name, rounds=rounds)


def test_nothing_prunable():
  with pytest.raises(ValueError, match="no leaf is prunable"):
    initial.magnitude(None, {"b": jnp.ones(3)}, None, 0.5)
