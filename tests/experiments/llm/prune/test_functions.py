"""Models of all families that become smaller functions, written and read."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.tree_util import keystr

from experiments import generate as command
from experiments.errors import UserError
from experiments.llm.evaluate import generate, perplexity
from experiments.llm.families import layers
from experiments.llm.io import functions, load, tokenizer
from experiments.llm.io.model import Model
from experiments.llm.prune import functions as pruning
from experiments.llm.text.examples import Examples
from tests.experiments import small_llama, small_mpt, small_t5, small_whisper

pytest.importorskip("flatbuffers")


def numpy(params):
  return jax.tree.map(np.asarray, params)


def mpt():
  config = small_mpt.CONFIG
  model = Model(
    config, numpy(small_mpt.make_params(config)), tokenizer.byte_level()
  )
  tokens = np.random.default_rng(0).integers(260, size=(4, 24), dtype=np.int32)
  return model, {"tokens": tokens}


def t5():
  config = small_t5.CONFIGS["t5-1.1"]
  params = numpy(small_t5.make_params(config))
  inputs = {k: np.tile(x, (2, 1)) for k, x in small_t5.make_inputs().items()}
  return Model(config, params, tokenizer.byte_level()), inputs


def masked(model, function):
  """The model with zeros in place of what has left, found by its weights."""

  def leaf(path, x):
    kept = function.params[keystr(path, simple=True, separator="/")]
    found = np.isin(x, kept)
    # Where most of a slice is found, not one number that is there twice.
    stay = [
      found.mean(tuple({*range(x.ndim)} - {axis})) > 0.1
      for axis in range(x.ndim)
    ]
    mask = functools.reduce(np.logical_and.outer, stay)
    np.testing.assert_array_equal(x[np.ix_(*stay)], kept)
    return x * mask

  params = layers.all_apart(model.params)
  return stacked(jax.tree_util.tree_map_with_path(leaf, params))


def stacked(tree):
  """Undoes `layers.all_apart`."""
  if isinstance(tree, tuple):
    return jax.tree.map(lambda *parts: np.stack(parts), *tree)
  if isinstance(tree, dict):
    return {name: stacked(part) for name, part in tree.items()}
  return tree


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "heads"),
  [
    (mpt, ("layers/1/attention/qkv/kernel", 3 * 6)),
    (t5, ("decoder/layers/2/cross_attention/key/kernel", 6)),
  ],
)
def test_a_function_is_the_masked_model(make, heads, tmp_path):
  model, inputs = make()
  traced = {name: x[:2] for name, x in inputs.items()}
  made = pruning.shrunk(model, inputs, traced, 0.34, round_to=4)
  assert made.params == sum(x.size for x in made.function.params.values())
  assert made.flops < pruning.flops(model, traced)
  functions.write(tmp_path / "function", made.function)
  again = functions.read(tmp_path / "function")
  zeros, network = masked(model, again), model.network()
  path, width = heads
  assert again.params[path].shape[1] == 2 * width  # of three
  # More sequences than a call takes, and shorter ones.
  short = {**inputs, "tokens": inputs["tokens"][:3, :11]}
  short = {name: x[:3] for name, x in short.items()}
  np.testing.assert_allclose(
    again.apply({"params": again.params}, **short),
    jax.jit(network.apply)({"params": zeros}, **short),
    atol=2e-4,
  )
  every = np.ones(inputs["tokens"].shape, bool)
  source = {k: x for k, x in inputs.items() if k != "tokens"}
  examples = Examples(inputs["tokens"], every, every, **source)
  got, wanted = (
    perplexity.of_examples(n, p, examples, batch=4)
    for n, p in ((again, again.params), (network, zeros))
  )
  np.testing.assert_allclose(got, wanted, rtol=1e-4)
  prompts = [[int(x) for x in row[:3]] for row in inputs["tokens"][:2]]
  source = {k: x[:2] for k, x in source.items()}
  got, wanted = (
    generate.greedy(n, p, prompts, steps=4, source=source)
    for n, p in ((again, again.params), (network, zeros))
  )
  assert got == wanted


@pytest.mark.slow
def test_query_heads_leave_and_keys_stay():
  config = dataclasses.replace(small_llama.CONFIG, vocab_size=260, layers=1)
  params = numpy(small_llama.make_params(config))
  model = Model(config, params, tokenizer.byte_level())
  tokens = small_llama.make_tokens(2, 9).astype(np.int32)
  made = pruning.shrunk(model, tokens, {"tokens": tokens}, 0.5, round_to=4)
  assert made.error < 1e-5
  shapes = {
    name: made.function.params[f"layers/0/attention/{name}/kernel"].shape
    for name in ("query", "key", "value", "output")
  }
  assert shapes == {
    **{"query": (16, 12), "output": (12, 16)},  # two heads of four
    **{"key": (16, 12), "value": (16, 12)},
  }


@pytest.mark.slow
def test_what_hears_becomes_a_function_too():
  model = small_whisper.make_model()
  source = small_whisper.make_source(2)
  inputs = {"tokens": small_whisper.make_tokens(2, 6), "source": source}
  made = pruning.shrunk(model, inputs, inputs, 0.34, round_to=4)
  assert made.error < 1e-5
  # Convolutions are no layers of the stacks.
  assert made.function.params["encoder/conv1/weight"].shape == (12, 5, 3)


@pytest.mark.slow
def test_the_command_continues_a_text(tmp_path):
  model, inputs = mpt()
  made = pruning.shrunk(model, inputs, {"tokens": inputs["tokens"][:1]}, 0.5)
  functions.write(tmp_path / "function", made.function)
  text = command.run(str(tmp_path / "function"), "ab", tokens=5)
  (wanted,) = generate.greedy(
    made.function, made.function.params, [model.tokenizer.encode("ab")], steps=5
  )
  assert text == model.tokenizer.decode(wanted)
  with pytest.raises(UserError, match=r"wanted a .*an exported language model"):
    load.model_at(str(tmp_path / "function"))
