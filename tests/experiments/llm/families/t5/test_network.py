"""T5 against float64 NumPy, in pieces, and with a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import generate, stream
from experiments.llm.families import layers, protocol, t5
from experiments.llm.families.t5.config import distance_buckets
from tests.experiments.small_t5 import (
  CONFIG,
  CONFIGS,
  forward,
  make_inputs,
  make_params,
)
from tests.marks import slow

# What runs here is tiny, and takes longer to compile than to run.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)
INPUTS = make_inputs()
LENGTHS = INPUTS["source_real"].sum(1)


@functools.partial(jit, static_argnames=("model", "method", "length"))
def run(model, params, *args, method=None, **kwargs):
  return model.apply({"params": params}, *args, method=method, **kwargs)


def close(x, y, rtol=1e-5, atol=5e-5):
  np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def wanted(config, params):
  """NumPy's results for both sources, each without its padding."""
  return [
    forward(config, params, INPUTS["source"][i, :n], INPUTS["tokens"][i])
    for i, n in enumerate(LENGTHS)
  ]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_streams_are_those_of_numpy(name):
  config = CONFIGS[name]
  params, model = make_params(config), t5.Network(config)
  logits, (read, written) = run(model, params, method="with_hidden", **INPUTS)
  assert logits.dtype == jnp.float32
  for i, (answer, reads, writes) in enumerate(wanted(config, params)):
    assert np.ptp(answer) > 1  # There is something to see.
    close(logits[i], answer)
    close(read[:, i, : LENGTHS[i]], reads)
    close(written[:, i], writes)


@pytest.mark.parametrize("name", ["t5", slow("t5-1.1")])
def test_a_cache_step_by_step(name):
  """Five tokens at once, then one at a time, with layers taken apart."""
  config = CONFIGS[name]
  params, model = make_params(config), t5.Network(config)
  tokens = INPUTS["tokens"]
  given = {name: INPUTS[name] for name in ("source", "source_real")}
  cache = run(model, params, **given, length=15, method="start")
  answers = np.stack([answer for answer, _, _ in wanted(config, params)])
  for at, t in ((0, 5), *((i, 1) for i in range(5, 15))):
    if at == 5:
      params, cache = layers.all_apart(params), layers.apart(cache)
    positions = np.tile(np.arange(at, at + t), (2, 1))
    x, cache = run(
      model,
      params,
      tokens[:, at : at + t],
      positions=positions,
      cache=cache,
      method="extend",
    )
    close(run(model, params, x, method="logits"), answers[:, at : at + t])


def naive(config, params, source, steps):
  """Greedy tokens by the whole forward pass."""
  tokens = [config.decoder_start]
  for _ in range(steps):
    logits, _, _ = forward(config, params, source, np.array(tokens))
    tokens.append(int(np.argmax(logits[-1])))
  return tokens[1:]


def test_what_is_generated_is_the_argmax_of_numpys():
  config = CONFIGS["t5-1.1"]
  params, model = make_params(config), t5.Network(config)
  inputs = make_inputs(config, seed=7)
  rows = [inputs["source"][i, :n] for i, n in enumerate(LENGTHS)]
  answers = [naive(config, params, row, 6) for row in rows]
  assert len({*answers[0], *answers[1]}) > 2
  given = {name: inputs[name] for name in ("source", "source_real")}
  starts = [[CONFIG.decoder_start]] * 2
  made = generate.greedy(model, params, starts, steps=6, source=given)
  assert made == answers
  writer = stream.Writer(model, params)
  for row, answer in zip(rows[::-1], answers[::-1], strict=True):
    writer.follow(row[None])
    assert list(writer.write(starts[0], steps=6)) == answer


def test_a_source_is_wanted_by_those_that_read_one():
  with pytest.raises(UserError, match=r"needs a source, .* got none"):
    generate.greedy(t5.Network(CONFIG), {}, [[0]], steps=1)


def test_names_shapes_and_first_values_of_the_parameters():
  config = CONFIGS["t5-1.1"]
  params = jit(protocol.init, static_argnums=0)(
    t5.Network(config), jax.random.key(0)
  )
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }
  attention = {
    **dict.fromkeys(("query", "key", "value"), (16, 18)),
    "output": (18, 16),
  }
  mlp = {"gate": (16, 20), "linear": (16, 20), "down": (20, 16)}
  made = {"embed/embedding": (23, 16), "head/kernel": (16, 23)}
  for stack, depth, parts in (
    ("encoder", 2, ("attention",)),
    ("decoder", 3, ("attention", "cross_attention")),
  ):
    made[f"{stack}/norm/scale"] = (16,)
    made[f"{stack}/relative_bias/embedding"] = (8, 3)
    for name in ("attention_norm", "cross_norm", "mlp_norm")[
      :: 1 if stack == "decoder" else 2
    ]:
      made[f"{stack}/layers/{name}/scale"] = (depth, 16)
    for part, kernels in (*((p, attention) for p in parts), ("mlp", mlp)):
      for name, shape in kernels.items():
        made[f"{stack}/layers/{part}/{name}/kernel"] = (depth, *shape)
  assert shapes == made
  query = params["decoder"]["layers"]["attention"]["query"]["kernel"]
  close(query.std(), (16 * 6) ** -0.5, rtol=0.1)
  assert (query[0] != query[1]).all()
  close(params["embed"]["embedding"].std(), 1, rtol=0.1)
  stacked = {path for path in shapes if protocol.is_stacked(path)}
  assert stacked == {path for path in shapes if "/layers/" in path}


def test_distances_share_buckets():
  for buckets, most in ((8, 12), (16, 128), (32, 128)):
    found = distance_buckets(buckets, most)
    assert found[0] == 0
    assert found[-1] == buckets - 1
    assert (np.diff(found) >= 0).all()
  # Of 32 for both directions, as published models have them.
  ends = [8, 12, 16, 23, 32, 46, 64, 91]
  found = distance_buckets(16, 128)
  np.testing.assert_array_equal(np.searchsorted(found, range(8, 16)), ends)


def test_values_out_of_range():
  for changes, message in (
    ({"heads": 0}, "heads must be positive"),
    ({"decoder_start": 23}, "0 to 22, got 23"),
    ({"buckets": 6}, "multiple of 4"),
    ({"max_distance": 4}, "more than half"),
  ):
    with pytest.raises(UserError, match=message):
      t5.Config(**{**vars(CONFIG), **changes})
  model, params = t5.Network(CONFIG), make_params(CONFIG)
  long = {**INPUTS, "source": np.zeros((2, 41), int), "source_real": None}
  with pytest.raises(UserError, match="of 41 tokens, wanted at most 40"):
    jax.eval_shape(functools.partial(model.apply, {"params": params}, **long))


@pytest.mark.slow
def test_remat_changes_no_gradients():
  params = make_params(CONFIG)

  def loss(params, remat):
    model = t5.Network(CONFIG, remat)
    return jnp.sum(jnp.tanh(model.apply({"params": params}, **INPUTS)) ** 2)

  grad = jit(jax.grad(loss), static_argnums=1)
  wanted = grad(params, "none")
  jax.tree.map(close, grad(params, "full"), wanted)
  assert all((np.asarray(x) != 0).any() for x in jax.tree.leaves(wanted))


@pytest.mark.slow
def test_computing_in_bfloat16():
  params = make_params(CONFIG)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  model = t5.Network(CONFIG, dtype=jnp.bfloat16)
  logits, hidden = run(model, half, method="with_hidden", **INPUTS)
  assert logits.dtype == jnp.float32
  assert {x.dtype for x in hidden} == {jnp.dtype("bfloat16")}
  answer, _, _ = wanted(CONFIG, half)[0]
  error = np.abs(logits[0] - answer)
  assert 1e-4 < error.mean() < 0.03 * np.abs(answer).max()
