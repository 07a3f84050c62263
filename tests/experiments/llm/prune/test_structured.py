"""Narrower models: which heads and units leave, and what is left."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import generate
from experiments.llm.families import mpt
from experiments.llm.io import huggingface, packed_model
from experiments.llm.io.model import Model
from experiments.llm.io.tokenizer import byte_level
from experiments.llm.prune import pruners, structured
from experiments.llm.prune.layerwise import PruningError
from tests.experiments import small_llama
from tests.marks import slow

# Two groups of two query heads, 6 wide; 20 hidden units.
CONFIG = small_llama.CONFIG
TOKENS = small_llama.make_tokens(2, 12)
# Of each layer, the query heads and the hidden units that are made small.
HEADS = ((1, 2), (0, 3))
UNITS = ((0, 3, 4, 5, 9, 13, 18, 19), (1, 2, 6, 7, 8, 10, 11, 12))


def weak_model():
  """A model whose HEADS and UNITS have weights a tenth as large."""
  params = jax.tree.map(np.array, small_llama.make_params(CONFIG))
  attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
  for layer in range(2):
    for head in HEADS[layer]:
      at = slice(6 * head, 6 * head + 6)
      attention["query"]["kernel"][layer, :, at] *= 0.1
      attention["output"]["kernel"][layer, at] *= 0.1
    units = list(UNITS[layer])
    for name in ("gate", "up"):
      mlp[name]["kernel"][layer, :, units] *= 0.1
    mlp["down"]["kernel"][layer, units] *= 0.1
  return Model(CONFIG, params, byte_level())


def without(model):
  """The model with zeros in place of HEADS and UNITS."""
  params = jax.tree.map(np.array, model.params)
  for layer in range(2):
    for head in HEADS[layer]:
      at = slice(6 * head, 6 * head + 6)
      params["layers"]["attention"]["output"]["kernel"][layer, at] = 0
    units = list(UNITS[layer])
    params["layers"]["mlp"]["down"]["kernel"][layer, units] = 0
  return params


@pytest.fixture(scope="module")
def model():
  return weak_model()


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_each_layer_loses_its_own_weak_heads_and_units(model, score):
  done = []
  narrow = structured.prune(
    model, TOKENS, 0.4, score=score, round_to=4, advance=done.append
  )
  assert done == [1, 2]
  # A query head of each group; keys and values stay.
  assert narrow.config == dataclasses.replace(CONFIG, heads=2, hidden=12)
  for layer in range(2):
    old, new = (
      jax.tree.map(lambda w: w[layer], m.params["layers"])  # noqa: B023
      for m in (model, narrow)
    )
    units = np.delete(np.arange(20), UNITS[layer])
    heads = np.delete(np.arange(24).reshape(4, 6), HEADS[layer], 0).ravel()
    mlp, attention = old["mlp"], old["attention"]
    for name in ("gate", "up"):
      wanted = mlp[name]["kernel"][:, units]
      np.testing.assert_array_equal(new["mlp"][name]["kernel"], wanted)
    np.testing.assert_array_equal(
      new["mlp"]["down"]["kernel"], mlp["down"]["kernel"][units]
    )
    np.testing.assert_array_equal(
      new["attention"]["query"]["kernel"],
      attention["query"]["kernel"][:, heads],
    )
    np.testing.assert_array_equal(
      new["attention"]["output"]["kernel"],
      attention["output"]["kernel"][heads],
    )
    for name in ("key", "value"):
      np.testing.assert_array_equal(
        new["attention"][name]["kernel"], attention[name]["kernel"]
      )
  got = narrow.network().apply({"params": narrow.params}, TOKENS)
  wanted, _ = small_llama.forward(CONFIG, without(model), TOKENS[0])
  np.testing.assert_allclose(got[0], wanted, atol=1e-4)


@pytest.mark.parametrize("name", [slow("llama3"), slow("mistral"), "qwen2"])
def test_all_kinds_of_the_family_get_narrower(name):
  config = small_llama.CONFIGS[name]
  params = jax.tree.map(np.array, small_llama.make_params(config))
  whole = Model(config, params, byte_level())
  # It compares the logits itself.
  narrow = structured.prune(whole, TOKENS, 0.5, score="magnitude")
  assert narrow.config.heads == 2
  assert narrow.config.kv_heads == {"qwen2": 2, "mistral": 1}.get(name, 2)


@pytest.mark.slow
def test_random_units_follow_the_seed(model):
  def pruned(seed):
    return structured.prune(
      model, TOKENS, 0.4, score="random", round_to=4, seed=seed
    ).params["layers"]["mlp"]["up"]["kernel"]

  first = pruned(0)
  assert first.shape == (2, 16, 12)
  np.testing.assert_array_equal(first, pruned(0))
  assert (first != pruned(1)).any()
  # Layers lose units of their own.
  old = model.params["layers"]["mlp"]["up"]["kernel"]
  left = [np.isin(old[i, 0], first[i, 0]) for i in range(2)]
  assert (left[0] != left[1]).any()


@pytest.mark.parametrize(
  ("size", "sparsity", "round_to", "gone"),
  [(1536, 0.25, 8, 384), (1536, 0.3, 8, 464), (3, 0.25, 8, 1), (3, 0.1, 8, 0),
   (2, 0.9, 8, 1), (20, 0.4, 4, 8)],
)  # fmt: skip
def test_shares_are_rounded_to_units_that_can_leave(
  size, sparsity, round_to, gone
):
  assert structured._rounded(size, sparsity, round_to) == gone


def test_narrower_models_are_told_from_others(model):
  narrow = structured.prune(model, TOKENS, 0.4, score="magnitude")
  assert structured.is_narrower(model, model)
  assert structured.is_narrower(narrow, model)
  deeper = dataclasses.replace(CONFIG, layers=3)
  assert not structured.is_narrower(narrow, model._replace(config=deeper))


def of_all_bytes(model):
  """The model, with an embedding of every token of its tokenizer."""
  size = model.tokenizer.vocab_size
  embedding = np.random.default_rng(2).normal(size=(size, 16))
  params = {
    **model.params,
    "embed": {"embedding": embedding.astype(np.float32)},
  }
  config = dataclasses.replace(CONFIG, vocab_size=size)
  return model._replace(config=config, params=params)


def test_a_narrower_model_is_written_read_and_generates(model, tmp_path):
  narrow = structured.prune(of_all_bytes(model), TOKENS, 0.4, score="magnitude")
  huggingface.write_model(tmp_path / "folder", narrow)
  packed_model.write_model(tmp_path / "file", packed_model.pack(narrow))
  made = []
  for one in (
    narrow,
    huggingface.read_model(tmp_path / "folder"),
    packed_model.read_model(tmp_path / "file"),
  ):
    assert one.config == narrow.config
    network = one.network()
    made += generate.greedy(network, one.params, [[1, 2, 3]], steps=4)
  assert made[0] == made[1] == made[2]


@pytest.mark.slow
def test_transformers_reads_a_narrower_model(model, tmp_path):
  reason = "needs `pip install -e '.[peers]'`"
  torch = pytest.importorskip("torch", reason=reason)
  transformers = pytest.importorskip("transformers", reason=reason)
  narrow = structured.prune(of_all_bytes(model), TOKENS, 0.4, score="magnitude")
  huggingface.write_model(tmp_path, narrow)
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  with torch.no_grad():
    wanted = peer(torch.tensor(np.asarray(TOKENS))).logits.numpy()
  got = narrow.network().apply({"params": narrow.params}, TOKENS)
  np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_another_model_is_not_taken_for_the_masked_one(model, monkeypatch):
  resized = structured.registry.FAMILIES["llama"].resized
  monkeypatch.setattr(
    structured.registry.FAMILIES["llama"],
    "resized",
    lambda *args: dataclasses.replace(resized(*args), norm_eps=0.5),
  )
  with pytest.raises(PruningError, match="differ from those of the masked"):
    structured.prune(model, TOKENS, 0.4, score="magnitude")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"score": "taste", "sparsity": 0.5}, "no score is called"),
    ({"sparsity": 1.0}, r"wanted a share in \(0, 1\)"),
  ],
)
def test_wrong_options_are_refused(model, options, message):
  text = TOKENS.ravel().astype(np.int32)
  config = {"name": "structured", "sequences": 2, "length": 8, **options}
  with pytest.raises(UserError, match=message):
    pruners.prune(model, text, config)


def test_families_without_narrower_configs_are_refused(model):
  other = model._replace(
    config=mpt.from_sizes(
      vocab_size=23, dim=16, layers=1, heads=2, kv_heads=2, hidden=64,
      context=16,
    )
  )  # fmt: skip
  with pytest.raises(UserError, match="no config of fewer heads"):
    structured.prune(other, TOKENS, 0.5, score="magnitude")
