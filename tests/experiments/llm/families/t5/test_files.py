"""T5 in Hugging Face's folders, written by us and by transformers."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from experiments.errors import UserError
from experiments.llm.evaluate import generate
from experiments.llm.families import t5
from experiments.llm.io import extras, huggingface, packed_model, tokenizer
from experiments.llm.io.model import Model
from tests.experiments.small_t5 import CONFIGS, forward, make_params

CONFIGS = {
  name: dataclasses.replace(config, vocab_size=270)
  for name, config in CONFIGS.items()
}
PEERS = "needs `pip install -e '.[peers]'`"


def make_model(name):
  params = jax.tree.map(np.array, make_params(CONFIGS[name]))
  return Model(CONFIGS[name], params, tokenizer.byte_level(sentinels=3))


def check_equal(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_has_transformers_names_and_keeps_the_model(tmp_path, name):
  model = make_model(name)
  huggingface.write_model(tmp_path, model)
  tensors = safetensors.load_file(tmp_path / "model.safetensors")
  params = model.params["decoder"]
  cross = params["layers"]["cross_attention"]["value"]["kernel"]
  np.testing.assert_array_equal(
    tensors["decoder.block.2.layer.1.EncDecAttention.v.weight"], cross[2].T
  )
  down = params["layers"]["mlp"]["down"]["kernel"]
  np.testing.assert_array_equal(
    tensors["decoder.block.1.layer.2.DenseReluDense.wo.weight"], down[1].T
  )
  bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  np.testing.assert_array_equal(
    tensors[f"decoder.{bias}"], params["relative_bias"]["embedding"]
  )
  inner = "encoder.block.1.layer.1.DenseReluDense.wi"
  assert (f"{inner}.weight" in tensors) == (name == "t5")
  assert (f"{inner}_1.weight" in tensors) == (name != "t5")
  assert ("lm_head.weight" in tensors) == (name != "t5")
  again = huggingface.read_model(tmp_path)
  assert again.config == model.config
  check_equal(again.params, model.params)
  assert again.tokenizer.sentinels == [257, 258, 259]
  raw = json.loads((tmp_path / "config.json").read_text())
  assert raw["decoder_start_token_id"] == raw["pad_token_id"] == 0
  assert raw["eos_token_id"] == 256


def test_older_and_fuller_files(tmp_path):
  model = make_model("t5")
  huggingface.write_model(tmp_path, model)
  path = tmp_path / "model.safetensors"
  tensors = safetensors.load_file(path)
  for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
    tensors[f"{name}.weight"] = tensors["shared.weight"]
  bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"
  tensors[f"{bias}.weight"] = np.ones((8, 3), np.float32)
  safetensors.save_file(tensors, path)
  check_equal(huggingface.read_model(tmp_path).params, model.params)
  config = tmp_path / "config.json"
  raw = json.loads(config.read_text())
  for name in ("n_positions", "tie_word_embeddings", "feed_forward_proj"):
    del raw[name]
  config.write_text(json.dumps(raw))
  got = huggingface.read_model(tmp_path).config
  assert got == dataclasses.replace(model.config, context=512)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (
      {"feed_forward_proj": "gated-silu"},
      "'gated-silu'; .* 'relu' or 'gated-gelu'",
    ),
    ({"d_kv": None, "num_heads": None}, "there is no num_heads, d_kv in it"),
    ({"decoder_start_token_id": None}, "no decoder_start_token_id"),
    ({"scale_decoder_outputs": False}, r"1 missing: lm_head\.weight"),
    ({"num_decoder_layers": 4}, r"missing: decoder\.block\.3\."),
  ],
)
def test_what_is_not_read_is_named(tmp_path, changes, match):
  huggingface.write_model(tmp_path, make_model("t5"))
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(UserError, match=match):
    huggingface.read_model(tmp_path)


@pytest.mark.slow
def test_packed_files_keep_both_stacks(tmp_path):
  model = make_model("t5-1.1")
  for stack, part in (("encoder", "attention"), ("decoder", "cross_attention")):
    kernel = model.params[stack]["layers"][part]["key"]["kernel"]
    kernel[np.arange(kernel.size).reshape(kernel.shape) % 4 > 0] = 0
  packed = packed_model.pack(model)
  packed_model.write_model(tmp_path / "packed", packed)
  again = packed_model.read_model(tmp_path / "packed")
  assert again.config == model.config
  check_equal(packed_model.unpack(again).params, model.params)
  layers = again.params["decoder"]["layers"]
  assert not isinstance(layers["cross_attention"]["key"]["kernel"], jax.Array)
  assert isinstance(layers["cross_attention"]["query"]["kernel"], jax.Array)
  small = packed_model.pack(model, dtype="int8")
  packed_model.write_model(tmp_path / "int8", small)
  again = packed_model.read_model(tmp_path / "int8")
  check_equal(again.params, small.params)
  assert again.params["embed"]["embedding"].dtype == np.int8


@pytest.mark.slow
def test_int8_is_written_read_and_near(tmp_path):
  model = make_model("t5-1.1")
  packed_model.write_model(
    tmp_path / "packed", packed_model.pack(model, dtype="int8")
  )
  again = packed_model.read_model(tmp_path / "packed")
  source, tokens = make_inputs()
  got = again.network().apply(
    {"params": again.params}, tokens[None], source=source[None]
  )
  wanted, _, _ = forward(model.config, model.params, source, tokens)
  error = np.abs(got[0] - wanted)
  assert 1e-4 < error.mean() < 0.03 * np.ptp(wanted)


def make_inputs():
  rng = np.random.default_rng(1)
  source, tokens = rng.integers(270, size=(2, 24))
  tokens[0] = 0
  return source, tokens


def peer_logits(torch, peer, source, tokens):
  with torch.no_grad():
    made = peer(
      input_ids=torch.tensor(source[None]),
      decoder_input_ids=torch.tensor(tokens[None]),
      output_hidden_states=True,
    )
  hidden = made.encoder_hidden_states, made.decoder_hidden_states
  return made.logits[0].numpy(), *(
    np.stack([x[0].numpy() for x in states]) for states in hidden
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_is_written(tmp_path, name):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  model = make_model(name)
  huggingface.write_model(tmp_path, model)
  peer = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  source, tokens = make_inputs()
  got = peer_logits(torch, peer, source, tokens)
  wanted = forward(model.config, model.params, source, tokens)
  for a, b in zip(got, wanted, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_writes_is_read(tmp_path, name):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  torch.manual_seed(0)
  wanted = CONFIGS[name]
  made = transformers.T5Config(**t5.huggingface.config_json(wanted))
  peer = transformers.T5ForConditionalGeneration(made)
  if not wanted.tied:
    head = torch.randn(peer.lm_head.weight.shape)
    peer.lm_head.weight = torch.nn.Parameter(head)
  peer.save_pretrained(tmp_path)
  extras.write_files(tmp_path, tokenizer.to_files(tokenizer.byte_level()))
  model = huggingface.read_model(tmp_path)
  assert model.config == wanted
  source, tokens = make_inputs()
  logits, read, written = peer_logits(torch, peer.eval(), source, tokens)
  got, hidden = jax.jit(
    lambda params: t5.Network(wanted).apply(
      {"params": params},
      tokens[None],
      source=source[None],
      method="with_hidden",
    )
  )(model.params)
  np.testing.assert_allclose(got[0], logits, atol=1e-3)
  for ours, theirs in zip(hidden, (read, written), strict=True):
    np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-3)


def test_transformers_writes_the_same(tmp_path):
  """Greedy generation, end to end, of a source with padding."""
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  # With more layers in the decoder its cache would have too few.
  config = dataclasses.replace(CONFIGS["t5-1.1"], decoder_layers=2)
  params = jax.tree.map(np.array, make_params(config))
  model = Model(config, params, tokenizer.byte_level(sentinels=3))
  huggingface.write_model(tmp_path, model)
  peer = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  sources = np.random.default_rng(2).integers(1, 270, size=(6, 12))
  real = np.arange(12) < np.array([12, 5, 9, 12, 7, 12])[:, None]
  with torch.no_grad():
    made = peer.generate(
      input_ids=torch.tensor(sources),
      attention_mask=torch.tensor(real.astype(int)),
      max_new_tokens=8,
      do_sample=False,
    )
  got = generate.greedy(
    model.network(),
    model.params,
    [[0]] * 6,
    steps=8,
    stop=[256],
    source={"source": sources, "source_real": real},
  )
  rows = made[:, 1:].tolist()
  assert got == [[*itertools.takewhile(lambda t: t != 256, r)] for r in rows]
