"""MPT's files: Hugging Face's folders and GGUF, here and in transformers."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from experiments.errors import UserError
from experiments.llm.evaluate import generate
from experiments.llm.families import mpt
from experiments.llm.io import extras, huggingface, tokenizer
from experiments.llm.io import gguf as gguf_io
from experiments.llm.io.model import Model
from tests.experiments.small_mpt import CONFIG, CONFIGS, forward, make_params

PEERS = "needs `pip install -e '.[peers]'`"
# As published with MPT-7B, but for the sizes.
JSON = {
  "architectures": ["MPTForCausalLM"],
  "attn_config": {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
  },
  "d_model": 18,
  "emb_pdrop": 0,
  "embedding_fraction": 1.0,
  "expansion_ratio": 4,
  "init_device": "cpu",
  "learned_pos_emb": True,
  "logit_scale": None,
  "max_seq_len": 80,
  "model_type": "mpt",
  "n_heads": 3,
  "n_layers": 2,
  "no_bias": True,
  "norm_type": "low_precision_layernorm",
  "resid_pdrop": 0,
  "use_cache": False,
  "verbose": 0,
  "vocab_size": 260,
}


def make_model(name="mpt"):
  config = CONFIGS[name]
  return Model(config, make_params(config), tokenizer.byte_level())


def make_tensors(model, names):
  """The tensors of a file under the names of its format."""
  layers = model.params["layers"]
  made = {
    names["embed"]: model.params["embed"]["embedding"],
    names["norm"]: model.params["norm"]["scale"],
  }
  for i in range(model.config.layers):
    for path, name in names.items():
      part, _, leaf = path.partition("/")
      if leaf:
        made[name.format(i)] = layers[part][leaf]["kernel"][i].T
      elif part.endswith("_norm"):
        made[name.format(i)] = layers[part]["scale"][i]
  return {name: np.ascontiguousarray(x) for name, x in made.items()}


HUGGINGFACE = {
  "embed": "transformer.wte.weight",
  "norm": "transformer.norm_f.weight",
  "attention_norm": "transformer.blocks.{}.norm_1.weight",
  "mlp_norm": "transformer.blocks.{}.norm_2.weight",
  "attention/qkv": "transformer.blocks.{}.attn.Wqkv.weight",
  "attention/output": "transformer.blocks.{}.attn.out_proj.weight",
  "mlp/up": "transformer.blocks.{}.ffn.up_proj.weight",
  "mlp/down": "transformer.blocks.{}.ffn.down_proj.weight",
}
GGUF = {
  "embed": "token_embd.weight",
  "norm": "output_norm.weight",
  "attention_norm": "blk.{}.attn_norm.weight",
  "mlp_norm": "blk.{}.ffn_norm.weight",
  "attention/qkv": "blk.{}.attn_qkv.weight",
  "attention/output": "blk.{}.attn_output.weight",
  "mlp/up": "blk.{}.ffn_up.weight",
  "mlp/down": "blk.{}.ffn_down.weight",
}


def check_equal(got, wanted):
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_a_folder_as_it_is_published(tmp_path):
  model = make_model()
  tensors = make_tensors(model, HUGGINGFACE)
  # Files made by later versions repeat the embedding.
  tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
  safetensors.save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(JSON))
  extras.write_files(tmp_path, tokenizer.to_files(model.tokenizer))
  got = huggingface.read_model(tmp_path)
  wanted = dataclasses.replace(CONFIG, norm_eps=1e-5)
  assert got.config == wanted
  check_equal(got.params, model.params)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_is_what_the_hand_writes(tmp_path, name):
  model = make_model(name)
  huggingface.write_model(tmp_path, model)
  got = safetensors.load_file(tmp_path / "model.safetensors")
  wanted = make_tensors(model, HUGGINGFACE)
  assert got.keys() == wanted.keys()
  check_equal(got, wanted)
  again = huggingface.read_model(tmp_path)
  assert again.config == model.config
  check_equal(again.params, model.params)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"no_bias": False}, "no_bias is False; only models where it is True"),
    ({"norm_type": "rmsnorm"}, "'low_precision_layernorm' or 'layernorm'"),
    ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale is 'inv_sqrt_d_model'"),
    ({"attn_config": {"alibi": False}}, "attn_config.alibi is False"),
    ({"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is True"),
    ({"attn_config": {"softmax_scale": 0.1}}, "softmax_scale is 0.1; only"),
    ({"ffn_config": {"ffn_type": "mptglu"}}, "ffn_type is 'mptglu'; only"),
    ({"n_layers": ...}, "there is no n_layers in it"),
  ],
)
def test_what_the_network_lacks_is_refused(changes, message):
  raw = {k: v for k, v in (JSON | changes).items() if v is not ...}
  with pytest.raises(UserError, match=message):
    mpt.huggingface.read_config(raw, path="config.json")


def test_widths_that_no_folder_has():
  config = dataclasses.replace(CONFIG, hidden=40)
  with pytest.raises(UserError, match="hidden=40 and dim=18, wanted a mult"):
    mpt.huggingface.config_json(config)


def write_gguf(path, model, **changes):
  config = model.config
  made = {
    "attention.head_count": config.heads,
    "attention.layer_norm_epsilon": float(np.float32(config.norm_eps)),
    "attention.max_alibi_bias": float(config.alibi_bias_max),
    "block_count": config.layers,
    "context_length": config.context,
    "embedding_length": config.dim,
    "feed_forward_length": config.hidden,
  } | changes
  if config.clip_qkv is not None:
    made["attention.clamp_kqv"] = config.clip_qkv
  writer = gguf.GGUFWriter(path, "mpt")
  for name, value in made.items():
    add = writer.add_float32 if type(value) is float else writer.add_uint32
    add(f"mpt.{name}", value)
  vocabulary = tokenizer.byte_level().backend.get_vocab()
  names = sorted(vocabulary, key=vocabulary.get)
  names += ["he"]
  names += [f"[PAD{i}]" for i in range(len(names), config.vocab_size)]
  writer.add_string("tokenizer.ggml.model", "gpt2")
  writer.add_string("tokenizer.ggml.pre", "mpt")
  writer.add_array("tokenizer.ggml.tokens", names)
  writer.add_array("tokenizer.ggml.token_type", [1] * 256 + [3, 1, 5, 5])
  writer.add_array("tokenizer.ggml.merges", ["h e"])
  writer.add_uint32("tokenizer.ggml.eos_token_id", 256)
  for name, x in make_tensors(model, GGUF).items():
    writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("name", CONFIGS)
def test_gguf(tmp_path, name):
  model = make_model(name)
  got = gguf_io.read_model(write_gguf(tmp_path / "a.gguf", model))
  clip = model.config.clip_qkv and float(np.float32(model.config.clip_qkv))
  assert got.config == dataclasses.replace(model.config, clip_qkv=clip)
  check_equal(got.params, model.params)
  assert got.tokenizer.decode(got.tokenizer.encode("hé")) == "hé"
  # Both forms of the letter are one, as in its tokenizer.json.
  encode = got.tokenizer.encode
  assert encode("e\u0301") == encode("\xe9")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"attention.max_alibi_bias": 0.0}, "only models with linear biases"),
    ({"attention.head_count_kv": 1}, "head_count_kv is 1; only"),
  ],
)
def test_gguf_of_another_kind(tmp_path, changes, message):
  path = write_gguf(tmp_path / "a.gguf", make_model(), **changes)
  with pytest.raises(UserError, match=message):
    gguf_io.read_model(path)


@pytest.mark.parametrize("heads", [3, 2])
def test_transformers_and_we_read_each_other(tmp_path, heads):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  config = dataclasses.replace(CONFIG, heads=heads, clip_qkv=0.7)
  model = Model(config, make_params(config), tokenizer.byte_level())
  huggingface.write_model(tmp_path / "ours", model)
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
  )
  tokens = np.random.default_rng(1).integers(260, size=30)
  with torch.no_grad():
    got = peer(torch.tensor(tokens[None])).logits[0].numpy()
  wanted, _ = forward(config, model.params, tokens)
  np.testing.assert_allclose(got, wanted, atol=1e-3)
  peer.save_pretrained(tmp_path / "theirs")
  files = tokenizer.to_files(tokenizer.byte_level())
  extras.write_files(tmp_path / "theirs", files)
  again = huggingface.read_model(tmp_path / "theirs")
  assert again.config == config
  check_equal(again.params, model.params)
  logits = jax.jit(mpt.Network(config).apply)(
    {"params": again.params}, tokens[None]
  )
  np.testing.assert_allclose(logits[0], got, atol=1e-3)


@pytest.mark.slow
def test_transformers_continues_as_we_do(tmp_path):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  model = make_model()
  huggingface.write_model(tmp_path, model)
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  prompt = np.random.default_rng(1).integers(256, size=9)
  wanted = peer.generate(
    torch.tensor(prompt[None]),
    attention_mask=torch.ones((1, 9), dtype=torch.int64),
    max_new_tokens=8,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
  )
  (got,) = generate.greedy(
    model.network(), model.params, [prompt.tolist()], steps=8
  )
  assert got == wanted[0, 9:].tolist()
  assert len(set(got)) > 2
