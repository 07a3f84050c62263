"""The models: published sizes, shapes, BatchNorm, one training step."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments import models
from experiments.errors import UserError
from experiments.models import layers, resnet
from sparsejax import flops
from tests.marks import slow

IMAGE28, IMAGE32, SIGNAL = (28, 28, 1), (32, 32, 3), (40, 1)
IMAGE224 = (224, 224, 3)
SHAPES = {
  "lenet_300_100": IMAGE28,
  "lenet5": IMAGE28,
  "mnist1d_conv": SIGNAL,
  "small_conv": IMAGE28,
  "wrn": IMAGE32,
  "resnet": IMAGE32,
  "resnet20": IMAGE32,
  "resnet32": IMAGE32,
  "resnet56": IMAGE32,
  "resnet18": IMAGE224,
  "resnet50": IMAGE224,
  "mobilenet_v1": IMAGE224,
  "vgg16": IMAGE32,
  "vgg19": IMAGE32,
  "character_gru": (9,),
}
# Compiling a ResNet takes seconds: what runs here is shallow, and LLVM lazy.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)
WRN = functools.partial(models.create, "wrn", 10, depth=10, width=1)
RESNET = functools.partial(resnet.cifar_resnet, 10, depth=8)
VGG = functools.partial(models.create, "vgg16", 10, stages=((4,), (4, 8)))
RESNET50 = functools.partial(
  models.create, "resnet50", 10, blocks=(1, 1), width=4
)
SHALLOW = {"wrn": WRN, "resnet20": RESNET, "vgg16": VGG, "resnet50": RESNET50}


@functools.cache
def abstract(name, num_classes=10, **options):
  model = models.create(name, num_classes, **options)
  x = jnp.zeros((2, *SHAPES[name]))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), x, False))


def init(model, x):
  """As model.init, with numpy's random numbers: nothing to compile."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if path[-1].key == "kernel":
      std = (2 * leaf.shape[-1] / leaf.size) ** 0.5
      values = rng.normal(scale=std, size=leaf.shape)
      return jnp.asarray(values, leaf.dtype)
    return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, False))
  return jax.tree_util.tree_map_with_path(fill, shapes)


def images(size=8, batch=4):
  rng = np.random.default_rng(1)
  return rng.normal(size=(batch, size, size, 3)).astype(np.float32)


def layers_of(model, variables, x, train=False):
  """Returns what each layer puts out, and the batch statistics."""
  run = functools.partial(
    model.apply, mutable=["batch_stats", "intermediates"],
    capture_intermediates=True,
  )  # fmt: skip
  _, state = jit(run, static_argnums=2)(variables, x, train)
  return state["intermediates"], state.get("batch_stats")


def count(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def wrn_size(depth, width, classes):
  n, size, inputs = (depth - 4) // 6, 3 * 16 * 9, 16
  for c in (16 * width, 32 * width, 64 * width):
    size += 2 * inputs + 9 * inputs * c + 2 * c + 9 * c * c
    size += inputs * c if inputs != c else 0
    size += (n - 1) * (2 * c + 9 * c * c) * 2
    inputs = c
  return size + 2 * inputs + inputs * classes + classes


def resnet_size(depth, classes=10):
  n = (depth - 2) // 6
  convs = 3 * 16 + 2 * n * 16 * 16
  convs += 16 * 32 + (2 * n - 1) * 32 * 32
  convs += 32 * 64 + (2 * n - 1) * 64 * 64
  norms = 2 * (16 + 2 * n * (16 + 32 + 64))
  return 9 * convs + norms + 64 * classes + classes


def vgg_size(*widths):
  """Convolutions with biases and norms after each; one linear layer."""
  pairs = zip((3, *widths), widths, strict=False)
  return sum(9 * a * b + 3 * b for a, b in pairs) + 10 * widths[-1] + 10


@pytest.mark.parametrize(
  ("name", "options", "size"),
  [
    ("lenet_300_100", {}, 266_610),
    ("lenet5", {}, 61_706),
    (
      "lenet5",
      {"features": (20, 50), "hidden": (500,), "padding": "VALID"},
      431_080,
    ),
    ("mnist1d_conv", {}, 5_210),
    ("mnist1d_conv", {"channels": 50}, 2 * 7_550 + 300 + 2_510),
    ("small_conv", {}, 421_642),
    ("wrn", {}, 1_079_642),
    ("wrn", {"depth": 28, "width": 10}, wrn_size(28, 10, 10)),
    ("resnet20", {}, 269_722),
    ("resnet32", {}, 464_154),
    ("resnet56", {}, 853_018),
    ("resnet20", {"shortcut": "B"}, 272_474),
    ("vgg16", {}, vgg_size(64, 64, 128, 128, *[256] * 3, *[512] * 6)),
    ("vgg19", {}, vgg_size(64, 64, 128, 128, *[256] * 4, *[512] * 8)),
    # As torchvision counts them.
    ("resnet18", {"num_classes": 1000}, 11_689_512),
    ("resnet50", {"num_classes": 1000}, 25_557_032),
    # As Keras counts those it trains, 4,253,864 less the running statistics.
    ("mobilenet_v1", {"num_classes": 1000}, 4_253_864 - 21_888),
    # 3 x 3 instead of 7 x 7 at first, and 10 classes.
    (
      "resnet50",
      {"small_images": True},
      25_557_032 - 40 * 3 * 64 - 990 * 2049,
    ),
  ],
)
def test_parameter_counts(name, options, size):
  assert count(abstract(name, **options)["params"]) == size


def test_parameter_counts_follow_from_the_papers():
  assert wrn_size(22, 2, 10) == 1_079_642
  assert [resnet_size(d) for d in (20, 32, 56)] == [269_722, 464_154, 853_018]
  # Wide ResNet's table 4 gives 36.5M for WRN-28-10.
  assert round(wrn_size(28, 10, 10) / 1e6, 1) == 36.5
  assert 28 * 28 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10 == 266_610


@pytest.mark.parametrize(
  ("name", "gigaflops"),
  [
    ("resnet18", 3.628),
    ("resnet50", 8.178),
    # 569 million products and sums: Howard et al., table 4.
    ("mobilenet_v1", 2 * 0.5687),
  ],
)
def test_flops_are_those_of_the_stride_in_the_3_x_3(name, gigaflops):
  """The first version's ResNet-50, of another stride, has 7.7."""
  model, shapes = models.create(name, 1000), abstract(name, num_classes=1000)

  x = jax.ShapeDtypeStruct((1, *SHAPES[name]), jnp.float32)
  counts = flops.param_flops(
    lambda params, stats, x: model.apply(
      {"params": params, "batch_stats": stats}, x, False
    ),
    shapes["params"],
    shapes["batch_stats"],
    x,
  )
  total = sum(jax.tree.leaves(counts))
  assert total / 1e9 == pytest.approx(gigaflops, abs=5e-4)


@pytest.mark.parametrize(
  "name", sorted(set(models.MODELS) - {"resnet20", "resnet32", "resnet56"})
)
def test_logits_and_parameters_are_float32(name):
  model = models.create(name, 7, dtype="bfloat16")
  x = jnp.zeros((2, *SHAPES[name]))
  y, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), x, False)
  )
  assert y.shape == ((2, 9, 7) if name == "character_gru" else (2, 7))
  assert y.dtype == jnp.float32
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  ("name", "options", "says"),
  [
    ("lenet5", {"dtype": "bfloat1"}, "did you mean 'bfloat16'"),
    ("lenet5", {"padding": "SAM"}, "did you mean 'SAME'"),
    ("lenet_300_100", {"hidden": (30, 0)}, r"hidden .* \(30, 0\); wanted pos"),
    ("wrn", {"width": -1}, "width of model wrn is -1; wanted positive"),
    ("wrn", {"dropout": 1.0}, r"wanted a share in \[0, 1\)"),
    ("vgg16", {"stages": ((8, 0), (8,))}, "stages .* wanted positive"),
  ],
)
def test_values_that_cannot_be_are_refused(name, options, says):
  with pytest.raises(UserError, match=says):
    models.create(name, 7, **options)


def test_dtype_is_that_of_the_computation():
  model = models.create("mnist1d_conv", 10, dtype="bfloat16")
  x = jnp.zeros((1, 40, 1))
  seen, _ = layers_of(model, init(model, x), x)
  conv = seen["conv1"]["__call__"][0]
  assert conv.dtype == jnp.bfloat16


def test_the_scales_of_norms_may_be_drawn():
  def drawn(norm_scale):
    model = types.SimpleNamespace(norm_scale=norm_scale, dtype=jnp.float32)
    norm = layers.batch_norm(model, False, name="bn")
    return norm.init(jax.random.key(0), jnp.ones((1, 99)))["params"]["scale"]

  scales = drawn("uniform")
  assert len(np.unique(scales)) > 90
  assert 0 <= scales.min() < 0.1
  assert 0.9 < scales.max() < 1
  assert np.all(drawn("ones") == 1)
  with pytest.raises(UserError, match="uniform"):
    drawn("unifrom")


def test_layer_names_are_stable():
  assert set(abstract("lenet_300_100")["params"]) == {
    "dense1",
    "dense2",
    "logits",
  }
  convs = {"conv1", "conv2", "conv3", "logits"}
  assert set(abstract("mnist1d_conv")["params"]) == convs
  wrn = abstract("wrn")["params"]
  stages = {f"stage{s}_block{b}" for s in (1, 2, 3) for b in (1, 2, 3)}
  assert set(wrn) == {"conv1", "bn", "logits", *stages}
  assert set(wrn["stage2_block1"]) == {
    "bn1",
    "conv1",
    "bn2",
    "conv2",
    "shortcut",
  }
  assert set(wrn["stage2_block2"]) == {"bn1", "conv1", "bn2", "conv2"}
  resnet = abstract("resnet20", shortcut="B")["params"]
  assert "shortcut" not in resnet["stage1_block1"]
  assert {"shortcut", "shortcut_bn"} < set(resnet["stage2_block1"])
  resnet = abstract("resnet50")["params"]
  sizes = enumerate((3, 4, 6, 3), 1)
  stages = {f"stage{s}_block{b + 1}" for s, n in sizes for b in range(n)}
  assert set(resnet) == {"conv1", "bn1", "logits", *stages}
  plain = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
  assert set(resnet["stage1_block1"]) == {*plain, "shortcut", "shortcut_bn"}
  assert set(resnet["stage4_block3"]) == plain


@pytest.mark.parametrize("create", [WRN, RESNET, VGG, RESNET50])
def test_batch_statistics_move_in_training_only(create):
  model, x = create(), images()
  v = init(model, x)
  _, still = layers_of(model, v, x, False)
  _, moved = layers_of(model, v, x, True)
  before = jax.tree.leaves(v["batch_stats"])
  for a, b in zip(before, jax.tree.leaves(still), strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(before, jax.tree.leaves(moved), strict=True):
    assert not np.array_equal(a, b)


def test_batch_norm_has_the_decay_and_epsilon_of_the_source():
  model, x = WRN(), 0.01 * images()  # Small: the epsilon shows.
  seen, moved = layers_of(model, init(model, x), x, True)
  conv = seen["conv1"]["__call__"][0]
  got = seen["stage1_block1"]["bn1"]["__call__"][0]
  mean, var = conv.mean((0, 1, 2)), conv.var((0, 1, 2))
  wanted = (conv - mean) / jnp.sqrt(var + 1e-5)
  np.testing.assert_allclose(got, wanted, atol=1e-3)
  moved = moved["stage1_block1"]["bn1"]
  np.testing.assert_allclose(moved["mean"], 0.1 * mean, rtol=1e-4)
  np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * var, rtol=1e-4)


@pytest.mark.parametrize(
  "name",
  ["lenet_300_100", "lenet5", "mnist1d_conv", "small_conv"]
  + [name if name == "resnet20" else slow(name) for name in SHALLOW],
)
def test_a_step_of_training_lowers_the_loss(name):
  model = SHALLOW.get(name, functools.partial(models.create, name, 10))()
  rng = np.random.default_rng(1)
  shape = (8, 8, 3) if name in SHALLOW else SHAPES[name]
  x = rng.normal(size=(8, *shape)).astype(np.float32)
  y = jnp.arange(8)
  v = init(model, x)
  params, stats = v["params"], v.get("batch_stats", {})

  def loss(params):
    logits, _ = model.apply(
      {"params": params, "batch_stats": stats}, x, True, mutable="batch_stats"
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @jit
  def step(params):
    value, grads = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), grads

  before, params, grads = step(params)
  after, _, _ = step(params)
  assert np.isfinite(after)
  assert after < before
  assert all(bool((np.asarray(g) != 0).any()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_blocks_may_begin_with_their_shortcuts_alone(bottleneck):
  model = RESNET50(blocks=(1,), bottleneck=bottleneck, zero_init=True)
  key, x = jax.random.key(0, impl="rbg"), jnp.zeros((1, 8, 8, 3))
  params = jit(model.init, static_argnums=2)(key, x, False)["params"]
  block = params["stage1_block1"]
  last = "bn3" if bottleneck else "bn2"
  silent = {n for n in block if "bn" in n and not block[n]["scale"].any()}
  assert silent == {last}


def test_resnet_shortcut_a_subsamples_and_fills_with_zeros():
  model, x = RESNET(), images()
  v = init(model, x)
  # With all else of the block silent, the shortcut is what comes out.
  v["params"]["stage2_block1"]["bn2"]["scale"] *= 0.0
  seen, _ = layers_of(model, v, x)
  before = seen["stage1_block1"]["__call__"][0]
  after = seen["stage2_block1"]["__call__"][0]
  np.testing.assert_array_equal(after[..., :16], before[:, ::2, ::2])
  assert not np.asarray(after[..., 16:]).any()


def test_wrn_shortcut_keeps_the_raw_input_where_shapes_agree():
  model, x = WRN(), images()
  v = init(model, x)
  v["params"]["stage1_block1"]["conv2"]["kernel"] *= 0.0
  seen, _ = layers_of(model, v, x)
  block = seen["stage1_block1"]["__call__"][0]
  np.testing.assert_array_equal(block, seen["conv1"]["__call__"][0])


def test_wrn_projects_the_activated_input_where_shapes_differ():
  model, x = WRN(), images()
  v = init(model, x)
  v["params"]["stage2_block1"]["conv2"]["kernel"] *= 0.0
  seen, _ = layers_of(model, v, x)
  activated = jax.nn.relu(seen["stage2_block1"]["bn1"]["__call__"][0])
  kernel = v["params"]["stage2_block1"]["shortcut"]["kernel"][0, 0]
  np.testing.assert_allclose(
    seen["stage2_block1"]["__call__"][0],
    activated[:, ::2, ::2] @ kernel,
    atol=1e-4,
  )


def test_wrn_pads_after_at_stride_2_as_tensorflow_does():
  model, x = WRN(), images()
  v = init(model, x)
  kernel = v["params"]["stage2_block1"]["conv1"]["kernel"]
  kernel = jnp.zeros_like(kernel).at[0, 0].set(jnp.eye(*kernel.shape[2:]))
  v["params"]["stage2_block1"]["conv1"]["kernel"] = kernel
  seen, _ = layers_of(model, v, x)
  activated = jax.nn.relu(seen["stage2_block1"]["bn1"]["__call__"][0])
  convolved = seen["stage2_block1"]["conv1"]["__call__"][0]
  np.testing.assert_allclose(
    convolved[..., : activated.shape[-1]], activated[:, ::2, ::2], atol=1e-6
  )


def test_wrn_dropout_acts_in_training_only():
  model, x = WRN(dropout=0.3), images()
  v = init(model, x)

  @functools.partial(jit, static_argnums=0)
  def run(train, seed):
    rngs = {"dropout": jax.random.key(seed, impl="rbg")}
    y, _ = model.apply(v, x, train, rngs=rngs, mutable="batch_stats")
    return y

  assert not np.array_equal(run(True, 0), run(True, 1))
  np.testing.assert_array_equal(run(False, 0), run(False, 1))


def test_kernel_init_is_chosen_by_name():
  key, x = jax.random.key(0, impl="rbg"), jnp.zeros((1, 28, 28, 1))
  for name, variance in (
    ("he_normal", 2 / 784),
    ("he_normal_fan_out", 2 / 300),
    ("glorot_uniform", 2 / 1084),
  ):
    model = models.create("lenet_300_100", 10, kernel_init=name)
    variables = jit(model.init, static_argnums=2)(key, x, False)
    kernel = variables["params"]["dense1"]["kernel"]
    assert np.var(kernel) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize(
  ("name", "options", "shape", "message"),
  [
    ("resnet_20", {}, IMAGE32, "no model is called 'resnet_20'.*'resnet20'"),
    ("wrn", {"widht": 2}, IMAGE32, "no option of model wrn.*'width'"),
    ("resnet20", {"depth": 8}, IMAGE32, "no option of model resnet20"),
    ("wrn", {"depth": 23}, IMAGE32, r"6 n \+ 4, got 23.*22 and 28"),
    ("wrn", {"depth": 4}, IMAGE32, r"6 n \+ 4, got 4.*10 and 16"),
    ("resnet20", {"shortcut": "C"}, IMAGE32, "shortcut must be A or B.*'C'"),
    ("wrn", {"kernel_init": "he"}, IMAGE32, "initializer.*'he'.*he_normal"),
    ("resnet18", {"blocks": (1,)}, IMAGE32, "no option of model resnet18"),
    ("wrn", {}, (784,), r"\[batch height width channels\], got shape \(2, 784"),
    ("mnist1d_conv", {}, IMAGE28, r"\[batch length channels\], got shape \(2"),
  ],
)
def test_what_is_wrong_is_said(name, options, shape, message):
  with pytest.raises(UserError, match=message):
    init(models.create(name, 10, **options), jnp.zeros((2, *shape)))


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (3, 5, 7, 1)])
def test_max_pool_and_its_gradient_are_those_of_flax(shape):
  x = jax.random.normal(jax.random.key(0), shape)

  def flax_pool(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))

  np.testing.assert_array_equal(layers.max_pool(x), flax_pool(x))
  gradients = [
    jax.grad(lambda x, pool=pool: jnp.sum(pool(x) ** 3))(x)
    for pool in (layers.max_pool, flax_pool)
  ]
  np.testing.assert_array_equal(*gradients)
