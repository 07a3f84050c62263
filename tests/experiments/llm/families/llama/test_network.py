"""LLaMA against float64 NumPy, in pieces, and with a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.errors import UserError
from experiments.llm.families import layers, llama
from experiments.llm.families.layers import Linear
from experiments.llm.families.llama.block import Block
from sparsejax import kernels, quantize
from tests.experiments.small_llama import (
  CONFIG,
  CONFIGS,
  forward,
  make_params,
  make_tokens,
)

TOKENS = make_tokens(2, 7)
# What runs here is tiny, and takes longer to compile than to run.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)


@functools.partial(jit, static_argnames=("model", "method"))
def run(model, params, *args, method=None, **kwargs):
  return model.apply({"params": params}, *args, method=method, **kwargs)


def close(x, y, rtol=1e-5, atol=1e-5):
  np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_streams_are_those_of_numpy(name):
  config = CONFIGS[name]
  params = make_params(config)
  model = llama.Network(config)
  logits, hidden = run(model, params, TOKENS, method="with_hidden")
  assert logits.dtype == jnp.float32
  for row, tokens in enumerate(TOKENS):
    wanted, streams = forward(config, params, tokens)
    assert np.ptp(wanted) > 3  # There is something to see.
    close(logits[row], wanted)
    close(hidden[:, row], streams)


def test_positions_turn_what_is_compared():
  config, positions = CONFIGS["llama3"], np.array([[0, 1, 2, 9, 3, 30, 79]])
  params = make_params(config)
  model = llama.Network(config)
  logits = run(model, params, TOKENS[:1], positions=positions)
  wanted, _ = forward(config, params, TOKENS[0], positions[0])
  close(logits[0], wanted)
  assert np.abs(wanted - forward(config, params, TOKENS[0])[0]).max() > 0.1
  # Only distances matter.
  close(run(model, params, TOKENS[:1], positions=positions + 1), logits)


def test_names_shapes_and_first_values_of_the_parameters():
  config = dataclasses.replace(
    CONFIG, qkv_bias=True, tied=False, vocab_size=500
  )
  model = llama.Network(config)
  tokens = jnp.zeros((1, 2), jnp.int32)
  params = jit(model.init)(jax.random.key(0), tokens)["params"]
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }
  assert shapes == {
    "embed/embedding": (500, 16),
    "layers/attention_norm/scale": (2, 16),
    "layers/attention/query/kernel": (2, 16, 24),
    "layers/attention/query/bias": (2, 24),
    "layers/attention/key/kernel": (2, 16, 12),
    "layers/attention/key/bias": (2, 12),
    "layers/attention/value/kernel": (2, 16, 12),
    "layers/attention/value/bias": (2, 12),
    "layers/attention/output/kernel": (2, 24, 16),
    "layers/mlp_norm/scale": (2, 16),
    "layers/mlp/gate/kernel": (2, 16, 20),
    "layers/mlp/up/kernel": (2, 16, 20),
    "layers/mlp/down/kernel": (2, 20, 16),
    "norm/scale": (16,),
    "head/kernel": (16, 500),
  }
  for name in ("embed", "head"):
    (x,) = params[name].values()
    close(x.std(), 0.02, rtol=0.05)
  for x in jax.tree.leaves(params["layers"]["mlp"]):
    close(x.std(), 0.02, rtol=0.1)
    assert (x[0] != x[1]).all()  # Each layer has its own draws.
  assert (params["norm"]["scale"] == 1).all()


def test_pieces_make_the_whole():
  config = CONFIGS["llama3"]
  model, params = llama.Network(config), make_params(config)
  x = run(model, params, TOKENS, method="embed")
  names = []

  def listen(call, args, kwargs, context):
    if isinstance(context.module, Linear):
      names.append("/".join(context.module.path))
      assert args[0].shape[:2] == TOKENS.shape  # What pruning gathers.
    return call(*args, **kwargs)

  for i in range(config.layers):
    layer = jax.tree.map(lambda w: w[i], params["layers"])  # noqa: B023
    with nn.intercept_methods(listen):
      jax.eval_shape(Block(config).apply, {"params": layer}, x)
    x = run(Block(config), layer, x)
  logits = run(model, params, x, method="logits")
  close(logits, run(model, params, TOKENS))
  linears = [f"attention/{n}" for n in ("query", "key", "value", "output")]
  linears += [f"mlp/{n}" for n in ("gate", "up", "down")]
  assert names == linears * 2


def test_positions_of_a_block():
  positions = np.array([[3, 4, 5, 9, 10, 11, 12]])
  params = make_params(CONFIG)
  _, streams = forward(CONFIG, params, TOKENS[0], positions[0])
  layer = jax.tree.map(lambda w: w[0], params["layers"])
  x = jnp.asarray(streams[:1], jnp.float32)
  close(run(Block(CONFIG), layer, x, positions)[0], streams[1])


def loss(params, model):
  logits = model.apply({"params": params}, TOKENS)
  return jnp.sum(jnp.tanh(logits) ** 2), logits


gradient = jit(jax.grad(loss, has_aux=True), static_argnames="model")


@pytest.mark.slow
def test_remat_changes_neither_logits_nor_gradients():
  params = make_params(CONFIG)
  wanted, logits = gradient(params, llama.Network(CONFIG))
  got, same = gradient(params, llama.Network(CONFIG, "full"))
  close(same, logits)
  jax.tree.map(close, got, wanted)
  assert all((np.asarray(x) != 0).any() for x in jax.tree.leaves(wanted))


def test_remat_is_what_its_name_says():
  params = jax.eval_shape(lambda: make_params(CONFIG))
  products = {}
  for remat in ("none", "full", "dots_saveable"):
    model = llama.Network(CONFIG, remat)
    grad = jax.grad(lambda p, m=model: loss(p, m)[0])
    products[remat] = str(jax.make_jaxpr(grad)(params)).count("dot_general")
  assert products["full"] > products["none"] == products["dots_saveable"]


def test_streams_are_kept_only_where_they_are_asked_for():
  model, params = llama.Network(CONFIG), make_params(CONFIG)
  for method, kept in (("__call__", False), ("with_hidden", True)):
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, method=method))
    text = str(jaxpr({"params": params}, TOKENS))
    assert ("f32[2,2,7,16]" in text) == kept


@functools.partial(jit, static_argnames="model")
def extend(model, params, tokens, positions, cache):
  """The logits of tokens that follow those in the cache."""
  variables = {"params": params}
  x, cache = model.apply(
    variables, tokens, positions=positions, cache=cache, method="extend"
  )
  return model.apply(variables, x, method="logits"), cache


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_a_cache_step_by_step_on_ragged_rows(name):
  """Rows of 3 and 5 tokens, padded to 6, then one token at a time."""
  config = CONFIGS[name]
  model, params = llama.Network(config), make_params(config)
  rows = make_tokens(2, 9)
  wanted = np.stack([forward(config, params, row)[0] for row in rows])
  lengths = np.array([3, 5])
  padded = np.where(np.arange(6) < lengths[:, None], rows[:, :6], 17)
  positions = np.tile(np.arange(6), (2, 1))
  cache = model.init_cache(2, 10)
  logits, cache = extend(model, params, padded, positions, cache)
  for row, length in enumerate(lengths):
    close(logits[row, :length], wanted[row, :length])
  for step in range(4):
    at = lengths + step
    tokens = rows[[0, 1], at]
    logits, cache = extend(model, params, tokens[:, None], at[:, None], cache)
    close(logits[:, 0], wanted[[0, 1], at])


def test_layers_that_were_taken_apart():
  """The same numbers, and no slice of stacked layers in the program."""
  config = CONFIGS["llama3"]
  model, params = llama.Network(config), make_params(config)
  tokens, positions = make_tokens(2, 5), np.tile(np.arange(5), (2, 1))
  cache = model.init_cache(2, 7)
  wanted, filled = extend(model, params, tokens, positions, cache)
  apart = {**params, "layers": layers.apart(params["layers"])}
  caches = layers.apart(cache)
  program = extend.lower(model, apart, tokens, positions, caches)
  # The only loop is that which keeps cosines and sines for all layers.
  assert program.as_text().count("stablehlo.while") == 1
  logits, caches = extend(model, apart, tokens, positions, caches)
  close(logits, wanted)
  for i, one in enumerate(caches):
    jax.tree.map(close, one, jax.tree.map(lambda x: x[i], filled))  # noqa: B023


def test_what_reads_the_same_is_one_call_of_a_kernel():
  if not kernels.available(quiet=True):
    pytest.skip("the kernels are not available")
  config = CONFIGS["qwen2"]
  model, params = llama.Network(config), make_params(config)
  small = quantize.quantize(params, prunable=r"layers/.*/kernel")
  wanted, _ = forward(config, quantize.dequantize(small), TOKENS[0, :1])
  small["layers"] = layers.apart(small["layers"])
  cache = layers.apart(model.init_cache(1, 7))
  inputs = TOKENS[:1, :1], np.zeros((1, 1), np.int32), cache
  text = extend.lower(model, small, *inputs).as_text()
  assert text.count("call @sparsejax_multiply_masked") == 4 * config.layers
  got, _ = extend(model, small, *inputs)
  close(got[0], wanted)


def test_computing_in_bfloat16():
  config = CONFIGS["qwen2"]
  params = make_params(config)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  model = llama.Network(config, dtype=jnp.bfloat16)
  logits, hidden = run(model, half, TOKENS, method="with_hidden")
  assert logits.dtype == jnp.float32
  assert hidden.dtype == jnp.bfloat16
  for row, tokens in enumerate(TOKENS):
    wanted, _ = forward(config, half, tokens)
    error = np.abs(logits[row] - wanted)
    assert 1e-4 < error.mean() < 0.02 * np.abs(wanted).max()
  # A cache may have a dtype of its own, and parameters another.
  assert model.init_cache(2, 7).key.dtype == jnp.bfloat16
  model = llama.Network(config)
  cache = model.init_cache(2, 7, jnp.bfloat16)
  positions = np.tile(np.arange(7), (2, 1))
  logits, cache = extend(model, params, TOKENS, positions, cache)
  assert cache.key.dtype == cache.value.dtype == jnp.bfloat16
  error = np.abs(logits[0] - forward(config, params, TOKENS[0])[0])
  assert 1e-4 < error.mean() < 0.02 * np.abs(logits).max()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Gathered:
  """A matrix of few distinct values: integers that index floats.

  Its first leaf has not the matrix's shape, by which Flax would judge it.
  """

  values: jax.Array
  index: jax.Array

  @property
  def shape(self):
    return self.index.shape

  def matmul(self, x):
    return x @ self.values[self.index].astype(x.dtype)


def dense(w):
  """What nodes stand for."""
  if not isinstance(w, Gathered):
    return w
  return np.stack(
    [
      values[index]
      for values, index in zip(
        np.asarray(w.values, np.float64).reshape(-1, 5),
        np.asarray(w.index).reshape(-1, *w.shape[-2:]),
        strict=True,
      )
    ]
  ).reshape(w.shape)


@pytest.mark.slow
def test_kernels_may_be_nodes_stacked_over_layers():
  config = dataclasses.replace(CONFIG, tied=False)
  rng = np.random.default_rng(3)

  def node(path, x):
    if path[-1].key != "kernel":
      return x
    values = 0.4 * rng.normal(size=(*x.shape[:-2], 5))
    index = rng.integers(5, size=x.shape)
    return Gathered(
      jnp.asarray(values, jnp.float32), jnp.asarray(index, jnp.int8)
    )

  def reference(params):
    params = jax.tree.map(
      dense, params, is_leaf=lambda x: isinstance(x, Gathered)
    )
    rows = [forward(config, params, tokens) for tokens in TOKENS]
    logits = np.stack([logits for logits, _ in rows])
    streams = np.stack([streams for _, streams in rows], axis=1)
    return np.sum(np.tanh(logits) ** 2), logits, streams

  params = jax.tree_util.tree_map_with_path(node, make_params(config))
  slopes, logits = jit(
    jax.grad(loss, has_aux=True, allow_int=True), static_argnums=1
  )(params, llama.Network(config, "full"))
  _, wanted, streams = reference(params)
  close(logits, wanted, atol=1e-4)
  leaves, treedef = jax.tree.flatten(params)

  def moved(i, change):
    leaf = np.asarray(leaves[i], np.float64) + change
    return reference(treedef.unflatten([*leaves[:i], leaf, *leaves[i + 1 :]]))[
      0
    ]

  learned = [i for i, x in enumerate(leaves) if x.dtype == jnp.float32]
  assert len(leaves) - len(learned) == 8  # Integers: seven kernels and a head.
  for i in learned:
    change = 1e-5 * rng.normal(size=leaves[i].shape)
    slope = np.sum(jax.tree.leaves(slopes)[i] * change)
    difference = (moved(i, change) - moved(i, -change)) / 2
    close(slope, difference, rtol=1e-3, atol=1e-9)
    assert abs(difference) > 1e-7
  # One layer's slice stands for a matrix too.
  layer = jax.tree.map(lambda w: w[0], params["layers"])
  x = jnp.asarray(streams[0], jnp.float32)
  close(run(Block(config), layer, x), streams[1])


def test_the_error_of_a_kernel_of_another_shape_has_its_path():
  params = make_params(CONFIG)
  for other in (
    jnp.ones((2, 16, 16)),
    Gathered(jnp.ones((2, 3)), jnp.ones((2, 16, 16), int)),
  ):
    params["layers"]["mlp"]["down"]["kernel"] = other
    with pytest.raises(
      UserError, match=r"layers/mlp/down has shape \(16, 16\), wanted \(20, 16"
    ):
      jax.eval_shape(llama.Network(CONFIG).apply, {"params": params}, TOKENS)


def test_sequences_beyond_the_context_and_unknown_remat():
  model, params = llama.Network(CONFIG), make_params(CONFIG)
  long = np.zeros((1, 81), int)
  with pytest.raises(UserError, match="of 81 tokens, wanted at most 80"):
    jax.eval_shape(model.apply, {"params": params}, long)
  with pytest.raises(UserError, match="of 81 tokens, wanted at most 80"):
    model.init_cache(1, 81)
  with pytest.raises(UserError, match="did you mean 'dots_saveable'"):
    loss(params, llama.Network(CONFIG, "dots_savable"))
