import doctest
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from sparsejax import flops

pytestmark = pytest.mark.core

BATCH, IN, OUT = 6, 4, 5
DENSE = 2 * BATCH * IN * OUT


def struct(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def xla_flops(fn, *args):
  return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def test_doctests():
  assert doctest.testmod(flops).failed == 0


# --- Following a parameter to its product -----------------------------------

MASK = np.arange(IN * OUT).reshape(IN, OUT) % 2 == 0


@jax.custom_vjp
def straight_through(w):
  return jnp.where(abs(w) > 1, w, 0)


straight_through.defvjp(
  lambda w: (straight_through(w), None), lambda _, g: (g,)
)


@jax.custom_jvp
def halved(w):
  return w / 2


halved.defjvp(lambda p, t: (p[0] / 2, t[0]))


@jax.custom_batching.custom_vmap
def batched(w):
  return 2 * w


batched.def_vmap(lambda _, mapped, w: (2 * w, mapped[0]))


def scale_by_norm(w):
  return (w - w.mean(0)) / jnp.sqrt(w.var(0) + 1e-5)


def quantize(w):
  step = jnp.max(abs(w)) / 127
  return jnp.round(jnp.clip(w / step, -127, 127)) * step


def keep_largest(w):
  threshold = jnp.sort(abs(w).ravel())[w.size // 2]
  return w * (abs(w) >= threshold)


def in_shards(w):
  mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec("d", None)
  return lax.with_sharding_constraint(w, jax.sharding.NamedSharding(mesh, spec))


LEAVE_IT_A_WEIGHT = {
  "itself": lambda w: w,
  "cast": lambda w: w.astype(jnp.bfloat16),
  "layout": lambda w: w.reshape(2, -1).T.T.reshape(w.shape)[::-1, ::-1],
  "repeat": lambda w: jnp.broadcast_to(w, (3, *w.shape))[1],
  "pad": lambda w: jnp.pad(w, 1)[1:-1, 1:-1],
  "bool_mask": lambda w: w * MASK,
  "float_mask": lambda w: w * MASK.astype(np.float32),
  "select": lambda w: jnp.where(MASK, w, 0.0),
  "base": lambda w: w + np.ones((IN, OUT), np.float32),
  "jit": jax.jit(lambda w: jnp.tanh(w)),
  "remat": jax.checkpoint(lambda w: w * 2),
  "custom_vjp": straight_through,
  "custom_jvp": halved,
  "custom_vmap": batched,
  "vmap": jax.vmap(lambda row: row * 2),
  "sharding": in_shards,
  "barrier": lambda w: lax.optimization_barrier((jnp.ones(3), w))[1],
  "stop_gradient": lambda w: w + lax.stop_gradient(jnp.sign(w) - w),
  "standardize": scale_by_norm,
  "quantize": quantize,
  "keep_largest": keep_largest,
  "cond": lambda w: lax.cond(w.sum() > 0, lambda w: w, jnp.zeros_like, w),
  "stack": lambda w: jnp.stack([w, w])[1],
  "loop": lambda w: lax.fori_loop(0, 3, lambda _, w: w * 2, w),
  "while": lambda w: lax.while_loop(lambda w: w.sum() > 1, lambda w: w / 2, w),
}


@pytest.mark.parametrize("name", LEAVE_IT_A_WEIGHT)
def test_follows_a_weight_through(name):
  made = LEAVE_IT_A_WEIGHT[name]

  def fn(w, x):
    return jnp.tanh(x) @ made(w)

  assert flops.param_flops(fn, struct(IN, OUT), struct(BATCH, IN)) == DENSE


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32, jnp.bfloat16])
def test_follows_a_weight_through_masks_that_are_arguments(dtype):
  def fn(w, mask, x):
    return x @ (w * mask)

  mask = struct(IN, OUT, dtype=dtype)
  assert (
    flops.param_flops(fn, struct(IN, OUT), mask, struct(BATCH, IN)) == DENSE
  )


LAYOUTS = {
  "broadcast_in_dim": lambda w: jnp.broadcast_to(w, (3, *w.shape))[1],
  "convert_element_type": lambda w: w.astype(jnp.bfloat16),
  "dynamic_slice": lambda w: lax.dynamic_slice(w, (w.size, 0), w.shape),
  "expand_dims": lambda w: jnp.expand_dims(w, 0)[0],
  "optimization_barrier": lambda w: lax.optimization_barrier((w, 1))[0],
  "pad": lambda w: jnp.pad(w, 1)[1:-1, 1:-1],
  "reshape": lambda w: w.reshape(2, -1).reshape(w.shape),
  "rev": lambda w: w[::-1, ::-1],
  "sharding_constraint": in_shards,
  "split": lambda w: jnp.split(w.repeat(2, 0), 2)[1],
  "transpose": lambda w: lax.transpose(lax.transpose(w, (1, 0)), (1, 0)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_follows_a_masked_weight_through_layout(name):
  def fn(w, mask, x):
    return x @ LAYOUTS[name](w * mask)

  w = struct(IN, OUT)
  assert flops.param_flops(fn, w, w, struct(BATCH, IN)) == DENSE


def test_mask_that_meets_the_weight_with_a_new_axis():
  def fn(w, mask, x):
    return x @ (jnp.expand_dims(w, 0) * jnp.expand_dims(mask, 0))[0]

  w = struct(IN, OUT)
  assert flops.param_flops(fn, w, w, struct(BATCH, IN)) == DENSE


def test_scalar_that_is_closed_over_is_a_constant():
  step = jnp.float32(0.1)

  def fn(w, x):
    return x @ jnp.round(w / step)

  assert flops.param_flops(fn, struct(IN, OUT), struct(BATCH, IN)) == DENSE


def test_statistic_of_a_larger_leaf_is_not_the_owner():
  def fn(params, x):
    return x @ (params["w"] * params["large"].mean())

  params = {"w": struct(IN, OUT), "large": struct(99, 99)}
  got = flops.param_flops(fn, params, struct(BATCH, IN))
  assert got == {"w": DENSE, "large": 0}


def test_queries_spread_over_a_batch_are_not_the_owner():
  def fn(params, x):
    latents, w = params
    queries = jnp.broadcast_to(latents, (len(x), *latents.shape))
    return (queries @ w) @ x.mT

  got = flops.param_flops(fn, (struct(50, 4), struct(4, 3)), struct(2, 7, 3))
  assert got == (0, 2 * 2 * 50 * 4 * 3)


def test_rows_of_a_table_are_data_beside_a_weight():
  def fn(params, tokens):
    table, w = params
    x = lax.cond(tokens[0] > 0, lambda: table, lambda: table[tokens])
    return x @ w

  got = flops.param_flops(
    fn, (struct(50, 4), struct(4, 3)), struct(50, dtype=jnp.int32)
  )
  assert got == (0, 2 * 50 * 4 * 3)


def test_callbacks_are_passed_over():
  def fn(w, x):
    jax.debug.print("{}", w)
    return x @ w

  assert flops.param_flops(fn, struct(IN, OUT), struct(BATCH, IN)) == DENSE


def test_scales_of_queries_do_not_own_the_scores():
  def fn(scale, q, k):
    scale = jnp.broadcast_to(scale, q.shape).astype(jnp.float32)[::-1]
    return (q * scale) @ k.T

  assert flops.param_flops(fn, struct(8), struct(5, 8), struct(5, 8)) == 0


def test_delta_on_a_base_that_is_an_argument():
  def fn(delta, base, x):
    return x @ (base + delta)

  w = struct(IN, OUT)
  assert flops.param_flops(fn, w, w, struct(BATCH, IN)) == DENSE


def test_random_noise_leaves_it_a_weight():
  def fn(w, key, x):
    return x @ (w + jax.random.normal(key, w.shape))

  key = jax.eval_shape(lambda: jax.random.key(0))
  assert flops.param_flops(fn, struct(IN, OUT), key, struct(7, IN)) == 280


def test_used_twice_counts_twice():
  def fn(w, x):
    return (x @ w) @ w.T

  assert flops.param_flops(fn, struct(IN, OUT), struct(BATCH, IN)) == 2 * DENSE


def test_used_in_no_product_counts_nothing():
  def fn(params, tokens):
    x = params["embedding"][tokens] + params["position"]
    x = (x - x.mean(-1, keepdims=True)) * params["scale"] + params["bias"]
    return jax.nn.gelu(x @ params["w"]) + params["unused"].sum() * 0

  params = {
    "embedding": struct(1000, 8),
    "position": struct(1, 99, 8),
    "scale": struct(8),
    "bias": struct(8),
    "w": struct(8, 3),
    "unused": struct(50, 50),
  }
  # A batch of one, where a position embedding has the shape of its input.
  got = flops.param_flops(fn, params, struct(1, 99, dtype=jnp.int32))
  assert got == dict.fromkeys(params, 0) | {"w": 2 * 99 * 8 * 3}


def test_input_that_is_closed_over():
  x = jnp.ones((1, 50, 8))

  def fn(params):
    position, scale, w = params
    return ((x + position) * scale) @ w

  params = (struct(1, 50, 8), struct(8), struct(8, 2))
  assert flops.param_flops(fn, params) == (0, 0, 2 * 50 * 8 * 2)


def test_unbatched_scale_is_not_the_owner():
  def fn(params, x):
    return (params[0] * x + params[1]) @ params[2]

  params = (struct(100), struct(100), struct(100, 1))
  assert flops.param_flops(fn, params, struct(100)) == (0, 0, 200)


def test_tied_embedding_counts_as_output_only():
  def fn(emb, tokens):
    return emb[tokens] @ emb.T

  got = flops.param_flops(fn, struct(11, 3), struct(7, dtype=jnp.int32))
  assert got == 2 * 7 * 3 * 11


def test_low_rank_delta():
  def fn(params, x):
    w, a, b = params
    return x @ w + (x @ a) @ b

  params = (struct(8, 9), struct(8, 2), struct(2, 9))
  assert flops.param_flops(fn, params, struct(5, 8)) == (720, 160, 180)

  def merged(params, x):
    w, a, b = params
    return x @ (w + a @ b)

  # The product of a and b goes to the larger of the two.
  assert flops.param_flops(merged, params, struct(5, 8)) == (720, 0, 288)


def test_product_with_concatenated_weights_is_divided():
  def fn(params, x):
    return x @ jnp.concatenate(params, axis=1)

  params = [struct(4, 3), struct(4, 5), struct(4, 1)]
  assert flops.param_flops(fn, params, struct(2, 4)) == [48, 80, 16]


def test_division_leaves_no_remainder():
  def fn(params, x):
    return x @ jnp.concatenate(params, axis=1)[:, :1]

  params = [struct(1, 3), struct(1, 5)]
  assert flops.param_flops(fn, params, struct(1, 1)) == [1, 1]


def test_experts_by_gather_and_by_ragged_dot():
  w = struct(8, IN, OUT)
  chosen = struct(BATCH, dtype=jnp.int32)

  def by_gather(w, chosen, x):
    return jax.vmap(lambda e, row: row @ w[e])(chosen, x)

  assert flops.param_flops(by_gather, w, chosen, struct(BATCH, IN)) == DENSE
  sizes = struct(8, dtype=jnp.int32)

  def ragged(w, sizes, x):
    return lax.ragged_dot(x, w, sizes)

  assert flops.param_flops(ragged, w, sizes, struct(BATCH, IN)) == DENSE

  def step(w, sizes, x):
    return jax.grad(lambda w: ragged(w, sizes, x).sum())(w)

  # Forward, and the gradient of the experts.
  got = flops.product_flops(step, w, sizes, struct(BATCH, IN))
  assert got == 2 * DENSE


def test_vmap_over_models():
  fn = jax.vmap(lambda w, x: x @ w)
  assert (
    flops.param_flops(fn, struct(3, IN, OUT), struct(3, BATCH, IN)) == 3 * DENSE
  )
  shared = jax.vmap(lambda w, x: x @ w, in_axes=(None, 0))
  assert (
    flops.param_flops(shared, struct(IN, OUT), struct(3, BATCH, IN))
    == 3 * DENSE
  )


def test_shard_map_counts_all_devices():
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((4,), ("d",), axis_types=axis_types)
  spec = jax.sharding.PartitionSpec
  fn = jax.shard_map(
    lambda w, x: x @ w,
    mesh=mesh,
    in_specs=(spec(), spec("d")),
    out_specs=spec("d"),
  )
  assert flops.param_flops(fn, struct(IN, OUT), struct(8, IN)) == 320


# --- Control flow -----------------------------------------------------------


def test_scan_over_layers_is_the_unrolled_loop():
  def block(x, layer):
    h = jax.nn.relu(x * layer["scale"]) @ layer["up"] + layer["bias"]
    return x + jnp.sin(h) @ layer["down"], h.sum()

  def scanned(params, x):
    return lax.scan(jax.checkpoint(block), x, params["layers"])[0] @ params["w"]

  def unrolled(params, x):
    for i in range(3):
      x, _ = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]))
    return x @ params["w"]

  layers = {
    "up": struct(3, 4, 8),
    "down": struct(3, 8, 4),
    "scale": struct(3, 4),
    "bias": struct(3, 8),
  }
  params, x = {"layers": layers, "w": struct(4, 2)}, struct(2, 4)
  want = {
    "layers": {"up": 384, "down": 384, "scale": 0, "bias": 0},
    "w": 32,
  }
  assert flops.param_flops(scanned, params, x) == want
  assert flops.param_flops(unrolled, params, x) == want


def test_scan_over_time_with_the_weights_in_the_carry():
  def fn(params, xs):
    def step(carry, x):
      params, h, count = carry
      h = jnp.tanh(x @ params["x"] + h @ params["h"])
      return (params, h, count + 1), h

    start = (params, jnp.zeros((2, 5)), 0)
    (_, h, _), hs = lax.scan(step, start, xs)
    return hs @ params["h"] + h

  params = {"x": struct(3, 5), "h": struct(5, 5)}
  got = flops.param_flops(fn, params, struct(7, 2, 3))
  assert got == {"x": 7 * 2 * 2 * 15, "h": 14 * 2 * 2 * 25}


def test_fori_loop_nested_in_scan():
  def fn(w, xs):
    def turn(_, x):
      return jnp.tanh(x @ w)

    return lax.map(lambda x: lax.fori_loop(0, 4, turn, x), xs)

  assert flops.param_flops(fn, struct(3, 3), struct(5, 2, 3)) == 20 * 36


def test_carry_that_becomes_data_is_followed_no_more():
  def fn(params, x):
    start, w = params

    # The start is a parameter on the first turn only.
    def step(h, _):
      return (jnp.tanh(h * x), h @ x.T)

    return lax.scan(step, start, None, length=3)[1] @ w

  params = (struct(2, 4), struct(2, 9))
  assert flops.param_flops(fn, params, struct(2, 4)) == (0, 3 * 2 * 2 * 2 * 9)


def test_cond_costs_its_dearest_branch():
  def fn(params, x):
    branches = [lambda x: x, lambda x: x @ params[0], lambda x: x @ params[1]]
    return lax.switch(jnp.int32(x[0, 0]), branches, x) @ params[0]

  params = (struct(4, 4), struct(4, 4))
  got = flops.param_flops(fn, params, struct(2, 4))
  assert got == (2 * 64, 0)  # the first of two equals


def test_while_loop():
  def fn(w, x):
    return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

  with pytest.raises(ValueError, match=r"while_loop.*lax\.scan"):
    flops.param_flops(fn, struct(3, 3), struct(2, 3))

  def grow(x):
    return lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, x)

  got = flops.param_flops(lambda w, x: grow(x) @ w, struct(3, 3), struct(2, 3))
  assert got == 36


def test_while_loop_whose_test_uses_another_weight():
  def fn(params, x):
    w, limit = params
    turn = lax.while_loop(lambda w: (limit * w).sum() > 1, lambda w: w / 2, w)
    return x @ turn

  params = (struct(3, 3), struct(3, 3))
  assert flops.param_flops(fn, params, struct(2, 3)) == (36, 0)


def test_kernels_cannot_be_looked_into():
  from jax.experimental import pallas as pl

  def kernel(x, w, out):
    out[...] = x[...] @ w[...]

  call = pl.pallas_call(kernel, out_shape=struct(8, 8))
  with pytest.raises(NotImplementedError, match="pallas_call"):
    flops.param_flops(lambda w, x: call(x, w), struct(8, 8), struct(8, 8))


# --- Counts -----------------------------------------------------------------

PRODUCTS = {
  "vector": ("i,io->o", (4,), (4, 5), 40),
  "heads": ("btd,dhk->bthk", (2, 3, 4), (4, 5, 6), 2 * 6 * 4 * 30),
  "out_of_heads": ("bthk,hkd->btd", (2, 3, 5, 6), (5, 6, 4), 2 * 6 * 4 * 30),
  "batch_dims": ("ebi,eio->ebo", (7, 2, 3), (7, 3, 4), 2 * 7 * 24),
  "outer": ("a,b->ab", (3,), (4,), 24),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_einsum(name):
  spec, x, w, want = PRODUCTS[name]

  def fn(w, x):
    return jnp.einsum(spec, x, w)

  assert flops.param_flops(fn, struct(*w), struct(*x)) == want


CONVS = {
  "plain": {},
  "strided": {"window_strides": (2, 3)},
  "dilated": {"rhs_dilation": (2, 1)},
  "grouped": {"feature_group_count": 2},
  "depthwise": {"feature_group_count": 4, "out_features": 8},
  "batch_groups": {"batch_group_count": 2},
  "transposed_dilated": {"lhs_dilation": (2, 2), "rhs_dilation": (2, 2)},
  "transposed": {"lhs_dilation": (2, 3)},
  "all": {
    "window_strides": (3, 2),
    "lhs_dilation": (2, 3),
    "rhs_dilation": (1, 2),
    "feature_group_count": 2,
  },
}


@pytest.mark.parametrize("name", CONVS)
def test_conv_without_padding_is_what_xla_counts(name):
  kwargs = {"window_strides": (1, 1)} | CONVS[name]
  out_features = kwargs.pop("out_features", 6)
  groups = kwargs.get("feature_group_count", 1)
  x, w = jnp.ones((4, 9, 8, 4)), jnp.ones((3, 2, 4 // groups, out_features))

  def fn(w, x):
    return lax.conv_general_dilated(
      x,
      w,
      padding=((0, 0), (0, 0)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      **kwargs,
    )

  got = flops.param_flops(fn, w, x)
  # Every multiply-add of ones adds one.
  assert got == 2 * fn(w, x).sum()
  assert got == xla_flops(fn, w, x)


def test_conv_counts_the_taps_on_its_padding():
  conv = nn.Conv(5, (3, 3), strides=2, padding="SAME")
  x = struct(2, 8, 8, 4)
  params = jax.eval_shape(conv.init, jax.random.key(0), x)["params"]
  got = flops.param_flops(lambda p, x: conv.apply({"params": p}, x), params, x)
  assert got == {"kernel": 2 * (2 * 4 * 4) * 9 * 4 * 5, "bias": 0}


def test_conv_that_meets_nothing_but_holes():
  def fn(w, x, pad=0):
    padding = [(pad, pad)]
    return lax.conv_general_dilated(x, w, (2,), padding, lhs_dilation=(2,))

  w, x = struct(6, 4, 1), struct(1, 4, 3)
  assert flops.param_flops(fn, w, x) == 2 * 3 * 6 * 4
  fn_padded = functools.partial(fn, pad=1)
  assert flops.param_flops(fn_padded, w, x) == 0


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_transposed_conv_uses_every_input_with_every_tap(size, padding):
  def fn(w, x):
    return lax.conv_transpose(x, w, (2,), padding)

  got = flops.param_flops(fn, struct(size, 4, 5), struct(3, 10, 4))
  inside = 2 * 3 * 10 * size * 4 * 5
  # Where the kernel is wider than the stride the edge counts as padding does.
  assert inside <= got <= inside * 1.3
  if padding == "SAME":
    assert got == inside


def test_vmapped_conv():
  def fn(w, x):
    return lax.conv(x, w, (1, 1), "VALID")

  got = flops.param_flops(
    jax.vmap(fn), struct(3, 6, 4, 2, 2), struct(3, 2, 4, 5, 5)
  )
  assert got == 3 * 2 * (2 * 6 * 4 * 4) * 4 * 2 * 2


def test_resnet_50_is_8_2_gflops():
  """Evci et al., figure 2, counts 8.2e9: stride in the 3x3 (v1.5)."""

  def conv(x, w, stride=1):
    return lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  def resnet(params, x):
    x = jax.nn.relu(conv(x, params["stem"], 2))
    x = lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
    )
    for stage, blocks in enumerate(params["stages"]):
      for i, block in enumerate(blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        h = jax.nn.relu(conv(x, block["in"]))
        h = jax.nn.relu(conv(h, block["mid"], stride))
        h = conv(h, block["out"])
        if "skip" in block:
          x = conv(x, block["skip"], stride)
        x = jax.nn.relu(x + h)
    return x.mean((1, 2)) @ params["head"]

  stages, features = [], 64
  for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
    stages.append([])
    for i in range(depth):
      block = {
        "in": struct(1, 1, features, width),
        "mid": struct(3, 3, width, width),
        "out": struct(1, 1, width, 4 * width),
      }
      if i == 0:
        block["skip"] = struct(1, 1, features, 4 * width)
      stages[-1].append(block)
      features = 4 * width
  params = {
    "stem": struct(7, 7, 3, 64),
    "stages": stages,
    "head": struct(2048, 1000),
  }
  counts = flops.param_flops(resnet, params, struct(1, 224, 224, 3))
  assert sum(jax.tree.leaves(counts)) == 8_178_368_512
  # All sparse but the stem, 80 %: 0.22 to 0.23 of the dense FLOPs.
  density = jax.tree.map(lambda _: 0.2, counts) | {"stem": 1.0}
  sparse = sum(
    f * d
    for f, d in zip(
      jax.tree.leaves(counts), jax.tree.leaves(density), strict=True
    )
  )
  assert round(sparse / 8_178_368_512, 3) == 0.223


def test_attention_and_all_products():
  def attention(params, x):
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[n]) for n in "qkv")
    p = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bhts,bshk,hkd->btd", p, v, params["o"])

  b, t, d, h, k = 2, 7, 12, 3, 4
  params = {n: struct(d, h, k) for n in "qkv"} | {"o": struct(h, k, d)}
  x = struct(b, t, d)
  projection = 2 * b * t * d * h * k
  assert flops.param_flops(attention, params, x) == dict.fromkeys(
    "qkvo", projection
  )
  scores = 2 * b * h * t * t * k
  want = 4 * projection + 2 * scores
  assert flops.product_flops(attention, params, x) == want
  # XLA counts the softmax too.
  assert want <= xla_flops(attention, params, x) <= 1.3 * want


def test_training_step_costs_about_three_passes():
  def loss(params, x):
    for w in params:
      x = jnp.tanh(x @ w)
    return x.sum()

  params = [struct(8, 8)] * 4
  forward = flops.product_flops(loss, params, struct(5, 8))
  step = flops.product_flops(jax.grad(loss), params, struct(5, 8))
  # The first layer needs no gradient of its input.
  assert step == flops.dense_training_flops(forward) - forward // 4


# --- Any pytree -------------------------------------------------------------


def test_linen():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x)))
      return nn.Dense(3)(nn.LayerNorm()(x))

  net, x = Net(), struct(5, 4)
  variables = jax.eval_shape(net.init, jax.random.key(0), x)
  params = variables["params"]

  def fn(params, stats, x):
    return net.apply({"params": params, "batch_stats": stats}, x)

  got = flops.param_flops(fn, params, variables["batch_stats"], x)
  assert jax.tree.structure(got) == jax.tree.structure(params)
  assert got["Dense_0"] == {"kernel": 320, "bias": 0}
  assert got["Dense_1"] == {"kernel": 240, "bias": 0}
  assert sum(jax.tree.leaves(got)) == 560


@pytest.mark.parametrize(
  "cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell]
)
def test_recurrent(cell):
  """Optimized LSTMs concatenate their kernels."""
  net, x = nn.RNN(cell(6)), struct(2, 5, 3)
  variables = jax.eval_shape(net.init, jax.random.key(0), x)
  counts = flops.param_flops(net.apply, variables, x)["params"]["cell"]
  for name, gate in counts.items():
    inputs = 3 if name[0] == "i" else 6
    assert gate["kernel"] == 5 * 2 * 2 * inputs * 6
    assert gate.get("bias", 0) == 0


def test_nnx_state():
  net = nnx.MultiHeadAttention(
    num_heads=2, in_features=8, decode=False, rngs=nnx.Rngs(0)
  )
  graph, params, rest = nnx.split(net, nnx.Param, ...)
  got = flops.param_flops(
    lambda params, x: nnx.merge(graph, params, rest)(x), params, struct(5, 8)
  )
  assert jax.tree.structure(got) == jax.tree.structure(params)
  assert sorted(jax.tree.leaves(got)) == [0] * 4 + [2 * 5 * 8 * 8] * 4


def test_equinox():
  net = eqx.nn.MLP(32, 8, 64, 1, key=jax.random.key(0))
  params, static = eqx.partition(net, eqx.is_inexact_array)

  def fn(params, x):
    return jax.vmap(eqx.combine(params, static))(x)

  got = flops.param_flops(fn, params, struct(5, 32))
  assert got.layers[0].weight == 2 * 5 * 32 * 64
  assert got.layers[1].weight == 2 * 5 * 64 * 8
  assert got.layers[0].bias == got.layers[1].bias == 0


def test_numbers_are_python_integers_of_any_size():
  n = 2**17

  def fn(w, x):
    return lax.fori_loop(0, 2**20, lambda _, x: jnp.tanh(x @ w), x)

  got = flops.param_flops(fn, struct(n, n), struct(n, n))
  assert type(got) is int
  assert got == 2 ** (1 + 3 * 17 + 20)


def test_leaf_that_is_no_array_is_named():
  with pytest.raises(TypeError, match=r"'layer/rate' is a float"):
    flops.param_flops(lambda p: 0, {"layer": {"rate": 0.5}})


# --- With masks, and in training --------------------------------------------


def test_sparse_flops():
  masks = {"a": np.arange(10) < 3, "b": jnp.eye(3, dtype=bool), "c": True}
  got = flops.sparse_flops({"a": 100, "b": 9, "c": 7}, masks)
  assert got == 30 + 3 + 7
  assert type(got) is int


def test_sparse_flops_is_exact():
  mask = np.arange(3) < 1
  count = 3 * (2**60 + 1)
  assert flops.sparse_flops((count, count), (mask, True)) == 4 * (2**60 + 1)
  thirds = flops.sparse_flops([1, 1, 1], [mask] * 3)
  assert thirds == 1  # of three thirds
  assert type(thirds) is int
  assert flops.sparse_flops(1, mask) == pytest.approx(1 / 3)


def test_sparse_flops_of_nothing():
  assert flops.sparse_flops({}, {}) == 0
  assert flops.sparse_flops(0, np.zeros((0, 4), bool)) == 0


def test_sparse_flops_of_another_structure():
  with pytest.raises(ValueError, match="one structure"):
    flops.sparse_flops({"a": 1}, {"b": True})
  with pytest.raises(ValueError, match="one structure"):
    flops.sparse_flops({"a": 1}, {"a": None})


@pytest.mark.parametrize(
  ("test", "train"),
  [(0.414, 0.416), (0.242, 0.244), (0.122, 0.125), (0.085, 0.088)],
)
def test_rigl_on_resnet_50(test, train):
  step = flops.rigl_training_flops(1.0, test, delta_t=100)
  # The test densities are rounded themselves.
  assert step / flops.dense_training_flops(1.0) == pytest.approx(
    train, abs=6e-4
  )


def test_training_costs():
  dense, sparse = 1000, 100
  assert flops.dense_training_flops(dense) == 3000
  assert flops.static_training_flops(sparse) == 300
  assert flops.snfs_training_flops(dense, sparse) == 1200
  # Three steps, two of them ordinary: (300 + 300 + 1200) / 3.
  assert flops.rigl_training_flops(dense, sparse, delta_t=2) == 600
  assert flops.pruning_training_flops(np.array([1000, 500, 0])) == 1500
  # Evci et al., figure 2, SNFS (ERK) at 80 and 90 %: .61 and .50.
  for test, train in ((0.42, 0.61), (0.24, 0.50)):
    step = flops.snfs_training_flops(1.0, test)
    assert math.isclose(step / 3, train, abs_tol=0.011)
  # Between the two that it is made of, and nearer to static as dT grows.
  costs = [flops.rigl_training_flops(dense, sparse, delta_t=t) for t in (1, 9)]
  assert 1200 > costs[0] > costs[1] > 300


def test_training_costs_of_bad_input():
  with pytest.raises(ValueError, match="delta_t must be at least 1, got 0"):
    flops.rigl_training_flops(1.0, 0.1, delta_t=0)
  with pytest.raises(ValueError, match="needs a step"):
    flops.pruning_training_flops([])
