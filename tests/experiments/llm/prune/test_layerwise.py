"""One-shot pruning of whole models: by what each layer is pruned, how much."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io import load
from experiments.llm.io.model import Model
from experiments.llm.io.tokenizer import byte_level
from experiments.llm.prune import layerwise, methods
from experiments.llm.text import corpora
from sparsejax import oneshot, patterns, quantize
from tests.experiments import small_llama
from tests.marks import slow

CONFIG = small_llama.CONFIG
BLOCK = llama.Network(CONFIG).block()
TOKENS = small_llama.make_tokens(10, 12)
KERNELS = [
  *(f"attention/{name}" for name in ("query", "key", "value", "output")),
  *(f"mlp/{name}" for name in ("gate", "up", "down")),
]


NAMES = [slow("magnitude"), "wanda", slow("ria"), slow("sparsegpt")]


@pytest.fixture(scope="module")
def model():
  params = jax.tree.map(np.asarray, small_llama.make_params(CONFIG))
  return Model(CONFIG, params, byte_level())


def kernel(model, name, layer):
  group, part = name.split("/")
  return np.asarray(model.params["layers"][group][part]["kernel"][layer])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_of_m", [(), slow((2, 4))], ids=["", "2:4"])
def test_every_kernel_has_its_exact_share(model, name, n_of_m):
  method = methods.make(name, n_of_m=n_of_m)
  done = []
  pruned = layerwise.prune(
    model, TOKENS, method, [0.5, 0.5], advance=done.append
  )
  assert done == [1, 2]
  for part in KERNELS:
    for layer in range(2):
      w, before = kernel(pruned, part, layer), kernel(model, part, layer)
      assert np.count_nonzero(w) == w.size // 2
      if n_of_m:
        assert patterns.n_of_m(2, 4).holds(jnp.asarray(w != 0))
      if name == "wanda" and not n_of_m:
        assert (np.count_nonzero(w, axis=0) == len(w) // 2).all()
      if name != "sparsegpt":
        np.testing.assert_array_equal(w[w != 0], before[w != 0])
  for name in ("embed", "norm"):
    jax.tree.map(
      np.testing.assert_array_equal, pruned.params[name], model.params[name]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [slow("magnitude"), "wanda", slow("ria")])
def test_what_is_compared_can_be_chosen(model, name):
  for per_output in (False, True):
    method = methods.make(name, per_output=per_output)
    pruned = layerwise.prune(model, TOKENS, method, [0.5, 0.5])
    for part in KERNELS:
      w = kernel(pruned, part, 0)
      assert np.count_nonzero(w) == w.size // 2
      even = (np.count_nonzero(w, axis=0) == len(w) // 2).all()
      assert even == per_output


@pytest.mark.slow
def test_a_layer_sees_what_the_pruned_one_before_gives(model):
  method = methods.make("wanda")
  pruned = layerwise.prune(model, TOKENS, method, [0.5, 0.25])

  def inputs_of_layer_1(of):
    first = jax.tree.map(lambda w: jnp.asarray(w[0]), of.params["layers"])
    x = of.params["embed"]["embedding"][TOKENS]
    return BLOCK.apply({"params": first}, jnp.asarray(x))

  def wanted(x):
    scale = model.params["layers"]["attention_norm"]["scale"][1]
    x = np.asarray(x, np.float64).reshape(-1, CONFIG.dim)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + CONFIG.norm_eps) * scale
    w = kernel(model, "attention/query", 1)
    scores = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
    ranks = np.argsort(np.argsort(-scores, axis=0, kind="stable"), axis=0)
    return np.where(ranks < 12, w, 0)

  got = kernel(pruned, "attention/query", 1)
  np.testing.assert_array_equal(got, wanted(inputs_of_layer_1(pruned)))
  assert (got != wanted(inputs_of_layer_1(model))).any()


@pytest.mark.slow
def test_owl_gives_layers_of_more_outliers_more(model):
  sparsities = layerwise.owl(model, TOKENS, 0.6, threshold=2.0, deviation=0.1)
  shares = []
  x = jnp.asarray(model.params["embed"]["embedding"][TOKENS])
  for layer in range(2):
    params = jax.tree.map(
      lambda w, i=layer: jnp.asarray(w[i]), model.params["layers"]
    )
    seen = layerwise.calibrate(BLOCK, params, [x], gram=False)
    assert sorted(seen) == sorted(f"{name}/kernel" for name in KERNELS)
    scores = [
      oneshot.wanda(kernel(model, name.removesuffix("/kernel"), layer), s)
      for name, s in seen.items()
    ]
    shares.append(float(oneshot.outliers(scores, threshold=2.0)))
    x = BLOCK.apply({"params": params}, x)
  assert shares[0] != shares[1]
  more = int(np.argmax(shares))
  np.testing.assert_allclose(sparsities[more], 0.5, atol=1e-6)
  np.testing.assert_allclose(sparsities[1 - more], 0.7, atol=1e-6)
  pruned = layerwise.prune(model, TOKENS, methods.make("wanda"), sparsities)
  assert np.count_nonzero(kernel(pruned, "mlp/up", more)) > np.count_nonzero(
    kernel(pruned, "mlp/up", 1 - more)
  )


@pytest.mark.slow
def test_dsnot_moves_a_mask_and_keeps_its_share(model):
  long = small_llama.make_tokens(16, 60)
  plain, moved = (
    layerwise.prune(
      model, long, methods.make("wanda", dsnot=on, length=60), [0.5, 0.5]
    )
    for on in (False, True)
  )
  a, b = (kernel(m, "mlp/down", 0) for m in (plain, moved))
  assert ((a != 0) != (b != 0)).any()
  np.testing.assert_array_equal((a != 0).sum(0), (b != 0).sum(0))


def test_any_linen_module():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.tanh(nn.Dense(8, name="first")(x))
      return nn.Dense(4, name="second")(x)

  xs = [jax.random.normal(jax.random.key(i), (16, 6)) for i in range(2)]
  params = Net().init(jax.random.key(2), xs[0])["params"]
  seen = {}

  def prune(w, statistics):
    seen[w.shape] = statistics
    return jnp.zeros_like(w)

  pruned = layerwise.prune_layer(Net(), params, xs, prune)
  hidden = np.tanh(np.concatenate(xs) @ params["first"]["kernel"])
  np.testing.assert_allclose(seen[8, 4].mean, hidden.mean(0), atol=1e-6)
  np.testing.assert_allclose(seen[8, 4].variance, hidden.var(0), rtol=1e-4)
  assert not pruned["second"]["kernel"].any()
  np.testing.assert_array_equal(
    pruned["second"]["bias"], params["second"]["bias"]
  )


def changed(model, name, value):
  """The model with one other number in layer 1."""
  layers = jax.tree.map(np.copy, model.params["layers"])
  part = layers
  for key in name.split("/"):
    parent, part = part, part[key]
  parent[key][1].flat[3] = value
  return model._replace(params={**model.params, "layers": layers})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_is_not_finite_is_named(model, name):
  broken = changed(model, "mlp/up/kernel", np.nan)
  for n_of_m in ((), (2, 4)):
    method = methods.make(name, n_of_m=n_of_m)
    with pytest.raises(
      layerwise.PruningError,
      match=r"^layer 1: mlp/up/kernel: 1 of 320 .* are NaN .* at \(0, 3\)",
    ):
      layerwise.prune(broken, TOKENS, method, [0.5, 0.5])
  with pytest.raises(layerwise.PruningError, match=r"^layer 1: mlp/up/kernel"):
    layerwise.owl(broken, TOKENS, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_named(model, value):
  broken = changed(model, "attention_norm/scale", value)
  with pytest.raises(
    layerwise.PruningError, match=r"^layer 1: attention_norm/scale: 1 of 16 "
  ):
    layerwise.prune(broken, TOKENS, methods.make("wanda"), [0.5, 0.5])
  embedding = model.params["embed"]["embedding"].copy()
  embedding[TOKENS[3, 2], 5] = value
  embed = {"embedding": embedding}
  broken = model._replace(params={**model.params, "embed": embed})
  for name in ("wanda", "ria", "sparsegpt"):
    with pytest.raises(
      layerwise.PruningError,
      match=r"^layer 0: attention/\w+/kernel: .*statistics' mean.* are NaN",
    ):
      layerwise.prune(broken, TOKENS, methods.make(name), [0.5, 0.5])


def test_an_expert_that_is_never_reached_is_named():
  class Net(nn.Module):
    reached: int

    @nn.compact
    def __call__(self, x):
      return [nn.Dense(4, name=f"expert_{i}")(x) for i in range(self.reached)]

  x = jax.random.normal(jax.random.key(0), (16, 6))
  params = Net(2).init(jax.random.key(1), x)["params"]
  wanda, magnitude = methods.make("wanda"), methods.make("magnitude")
  with pytest.raises(ValueError, match=r"^expert_1/kernel: .* of 0 positions"):
    layerwise.prune_layer(
      Net(1), params, [x], lambda w, seen: wanda.prune(w, seen, 0.5)
    )
  pruned = layerwise.prune_layer(
    Net(1), params, [x], lambda w, seen: magnitude.prune(w, seen, 0.5)
  )
  assert np.count_nonzero(pruned["expert_1"]["kernel"]) == 12


@pytest.mark.slow
def test_more_damping_is_told_by_layer_and_kernel(model):
  def prune(w, seen, sparsity):
    return oneshot.sparsegpt(w, seen, sparsity, damping=0)[1]

  method = methods.Method(prune, gram=True)
  few = small_llama.make_tokens(1, 12)  # of 20 inputs
  with pytest.warns(UserWarning, match="damping") as heard:
    pruned = layerwise.prune(model, few, method, [0.5, 0.5])
  told = [str(w.message) for w in heard]
  for layer in range(2):
    assert any(
      text.startswith(f"layer {layer}: mlp/down/kernel: damping=0 ")
      and "took damping=0.01" in text
      for text in told
    )
    w = kernel(pruned, "mlp/down", layer)
    assert np.isfinite(w).all()
    assert np.count_nonzero(w) == w.size // 2


def test_text_longer_than_the_context(model):
  long = small_llama.make_tokens(1, CONFIG.context + 1)
  with pytest.raises(UserError, match="context"):
    layerwise.prune(model, long, methods.make("wanda"), [0.5, 0.5])


@pytest.mark.slow
def test_rounding_on_text_costs_less_where_later_weights_make_up_for_it():
  """Of every kernel of a layer, by what its outputs on real text lose.

  Weights are random, and so few integers are left that it shows: outputs have
  eight times the scale that they need.
  """
  text = "\n".join(corpora.python_help(test=False))
  tokens = np.frombuffer(text.encode()[: 32 * 64], np.uint8).reshape(32, 64)
  model = load.random(seed=0, dim=32, layers=1, heads=4, hidden=64, context=64)
  network = model.network()
  x = network.apply(
    {"params": model.params}, tokens.astype(int), method="embed"
  )
  layer = jax.tree.map(lambda w: jnp.asarray(w[0]), model.params["layers"])
  statistics = layerwise.calibrate(network.block(), layer, [x], gram=True)
  weights = traverse_util.flatten_dict(layer, sep="/")

  def loss(name, new, old):
    """Of the outputs, per position, in float64."""
    off = np.asarray(new, np.float64) - np.asarray(old, np.float64)
    return np.sum(off * (np.asarray(statistics[name].gram, np.float64) @ off))

  for name, found in statistics.items():
    w = weights[name]
    mask, sparse = oneshot.sparsegpt(w, found, 0.5)
    scales = 8 * quantize.scales(sparse)
    nearest = quantize.matrix(sparse, scales=scales).dequantize()
    gptq = oneshot.reconstruct(sparse, found, mask, scales=scales)
    joint = oneshot.sparsegpt(w, found, 0.5, scales=scales)[1]
    assert loss(name, gptq, sparse) < 0.8 * loss(name, nearest, sparse), name
    assert loss(name, joint, w) < loss(name, nearest, w), name
