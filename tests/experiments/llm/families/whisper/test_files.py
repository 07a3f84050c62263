"""Whisper's files: Hugging Face's folders, here and in transformers."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from experiments.errors import UserError
from experiments.llm.families import whisper
from experiments.llm.io import extras, huggingface, tokenizer
from experiments.llm.io.model import Model
from tests.experiments.small_whisper import (
  CONFIG,
  forward,
  make_params,
  make_source,
  make_tokens,
)

PEERS = "needs `pip install -e '.[peers]'`"
JSON = {
  "activation_function": "gelu",
  "d_model": 12,
  "decoder_attention_heads": 3,
  "decoder_ffn_dim": 20,
  "decoder_layers": 2,
  "decoder_start_token_id": 257,
  "encoder_attention_heads": 3,
  "encoder_ffn_dim": 20,
  "encoder_layers": 3,
  "max_source_positions": 8,
  "max_target_positions": 16,
  "model_type": "whisper",
  "num_mel_bins": 5,
  "scale_embedding": False,
  "vocab_size": 260,
}


def make_tensors(params):
  """The tensors of a folder, by name, as they are published."""
  made = {"model.decoder.embed_tokens.weight": params["embed"]["embedding"]}

  def linear(name, leaf, i):
    made[f"{name}.weight"] = leaf["kernel"][i].T
    if "bias" in leaf:
      made[f"{name}.bias"] = leaf["bias"][i]

  def norm(name, leaf, i=...):
    made[f"{name}.weight"] = leaf["scale"][i]
    made[f"{name}.bias"] = leaf["bias"][i]

  for name in ("conv1", "conv2"):
    conv = params["encoder"][name]
    made[f"model.encoder.{name}.weight"] = conv["weight"]
    made[f"model.encoder.{name}.bias"] = conv["bias"]
  for stack, count in (("encoder", 3), ("decoder", 2)):
    part, at = params[stack], f"model.{stack}"
    made[f"{at}.embed_positions.weight"] = part["positions"]
    norm(f"{at}.layer_norm", part["norm"])
    for i in range(count):
      layer, at = part["layers"], f"model.{stack}.layers.{i}"
      norm(f"{at}.self_attn_layer_norm", layer["attention_norm"], i)
      norm(f"{at}.final_layer_norm", layer["mlp_norm"], i)
      linear(f"{at}.fc1", layer["mlp"]["up"], i)
      linear(f"{at}.fc2", layer["mlp"]["down"], i)
      pairs = [("self_attn", "attention")]
      if stack == "decoder":
        norm(f"{at}.encoder_attn_layer_norm", layer["cross_norm"], i)
        pairs.append(("encoder_attn", "cross_attention"))
      for theirs, ours in pairs:
        for short, name in zip("qkv", ("query", "key", "value"), strict=True):
          linear(f"{at}.{theirs}.{short}_proj", layer[ours][name], i)
        linear(f"{at}.{theirs}.out_proj", layer[ours]["output"], i)
  return {name: np.ascontiguousarray(x) for name, x in made.items()}


def check_equal(got, wanted):
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_a_folder_as_it_is_published(tmp_path):
  params = make_params()
  tensors = make_tensors(params)
  tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(JSON))
  extras.write_files(tmp_path, tokenizer.to_files(tokenizer.byte_level()))
  got = huggingface.read_model(tmp_path)
  assert got.config == CONFIG
  check_equal(got.params, params)


def test_a_folder_is_what_the_hand_writes(tmp_path):
  params = make_params()
  model = Model(CONFIG, params, tokenizer.byte_level())
  huggingface.write_model(tmp_path, model)
  got = safetensors.load_file(tmp_path / "model.safetensors")
  wanted = make_tensors(params)
  assert got.keys() == wanted.keys()
  check_equal(got, wanted)
  raw = json.loads((tmp_path / "config.json").read_text())
  assert {key: raw[key] for key in JSON} == JSON


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"activation_function": "relu"}, "'relu'; only models where it is 'gelu'"),
    ({"decoder_ffn_dim": 24}, "decoder_ffn_dim is 24; only models .* is 20"),
    ({"decoder_attention_heads": 2}, "decoder_attention_heads is 2; only"),
    ({"scale_embedding": True}, "scale_embedding is True; only"),
    ({"num_mel_bins": ...}, "there is no num_mel_bins in it"),
  ],
)
def test_what_the_network_lacks_is_refused(changes, message):
  raw = {k: v for k, v in (JSON | changes).items() if v is not ...}
  with pytest.raises(UserError, match=message):
    whisper.huggingface.read_config(raw, path="config.json")


@pytest.mark.slow
def test_transformers_and_we_read_each_other(tmp_path):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  params = make_params()
  model = Model(CONFIG, params, tokenizer.byte_level())
  huggingface.write_model(tmp_path / "ours", model)
  read = functools.partial(
    transformers.WhisperForConditionalGeneration.from_pretrained,
    dtype=torch.float32,
    attn_implementation="eager",
  )
  peer = read(tmp_path / "ours")
  tokens, source = make_tokens(1, 9), make_source(1)
  with torch.no_grad():
    got = peer(
      input_features=torch.tensor(source.swapaxes(1, 2)),
      decoder_input_ids=torch.tensor(tokens),
      output_hidden_states=True,
    )
  wanted, encoder, decoder = forward(CONFIG, params, tokens[0], source[0])
  close = functools.partial(np.testing.assert_allclose, atol=1e-3)
  close(got.logits[0].numpy(), wanted)
  for theirs, ours in (
    (got.encoder_hidden_states, encoder),
    (got.decoder_hidden_states, decoder),
  ):
    close(np.stack([x[0].numpy() for x in theirs]), ours)
  peer.save_pretrained(tmp_path / "theirs")
  files = tokenizer.to_files(tokenizer.byte_level())
  extras.write_files(tmp_path / "theirs", files)
  again = huggingface.read_model(tmp_path / "theirs")
  assert again.config == CONFIG
  check_equal(again.params, params)
