"""Hugging Face's folders, written here by hand, by us and by transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io import (
  extras,
  huggingface,
  packed_model,
  tokenizer,
  two_of_four,
)
from experiments.llm.io.model import Model, check_vocabulary
from tests.experiments.small_llama import CONFIGS, forward, make_params

CONFIGS = {
  name: dataclasses.replace(config, vocab_size=260)
  for name, config in CONFIGS.items()
}
LLAMA = CONFIGS["llama"]
PEERS = "needs `pip install -e '.[peers]'`"


def make_model(name):
  params = jax.tree.map(np.array, make_params(CONFIGS[name]))
  return Model(CONFIGS[name], params, tokenizer.byte_level())


def make_tensors(model):
  """The tensors of a folder, by name, as the publishers of models have them."""
  params, layers = model.params, model.params["layers"]
  made = {
    "model.embed_tokens.weight": params["embed"]["embedding"],
    "model.norm.weight": params["norm"]["scale"],
  }
  if "head" in params:
    made["lm_head.weight"] = params["head"]["kernel"].T
  for i in range(model.config.layers):
    at = f"model.layers.{i}."
    norms = layers["attention_norm"]["scale"], layers["mlp_norm"]["scale"]
    made[at + "input_layernorm.weight"] = norms[0][i]
    made[at + "post_attention_layernorm.weight"] = norms[1][i]
    for name in ("query", "key", "value", "output"):
      leaf = layers["attention"][name]
      made[f"{at}self_attn.{name[0]}_proj.weight"] = leaf["kernel"][i].T
      if "bias" in leaf:
        made[f"{at}self_attn.{name[0]}_proj.bias"] = leaf["bias"][i]
    for name in ("gate", "up", "down"):
      made[f"{at}mlp.{name}_proj.weight"] = layers["mlp"][name]["kernel"][i].T
  return {name: np.ascontiguousarray(x) for name, x in made.items()}


def make_json(config, **changes):
  kind = "qwen2" if config.qkv_bias else "mistral" if config.window else "llama"
  made = {
    "model_type": kind,
    "hidden_act": "silu",
    "vocab_size": config.vocab_size,
    "hidden_size": config.dim,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.hidden,
    "max_position_embeddings": config.context,
    "rope_theta": config.rope_theta,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied,
    # Qwen2's says how wide a window would be, and that there is none.
    "sliding_window": config.window or (4096 if kind == "qwen2" else None),
    "use_sliding_window": False,
    "rope_scaling": None,
  }
  if config.rope_scaling is not None:
    made["rope_scaling"] = {
      "rope_type": "llama3",
      "factor": config.rope_scaling[0],
      "low_freq_factor": config.rope_scaling[1],
      "high_freq_factor": config.rope_scaling[2],
      "original_max_position_embeddings": int(config.rope_scaling[3]),
    }
  return made | changes


def make_folder(folder, model, *, tensors=None, **changes):
  tensors = make_tensors(model) if tensors is None else tensors
  folder.mkdir(exist_ok=True)
  safetensors.save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(
    json.dumps(make_json(model.config, **changes))
  )
  extras.write_files(folder, tokenizer.to_files(model.tokenizer))
  return folder


def check_equal(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_read_is_what_was_written_by_hand(tmp_path, name):
  model = make_model(name)
  got = huggingface.read_model(make_folder(tmp_path, model))
  assert got.config == model.config
  check_equal(got.params, model.params)
  assert got.tokenizer.encode("hé") == [104, 195, 169]


@pytest.mark.parametrize("name", CONFIGS)
def test_written_is_what_the_hand_writes(tmp_path, name):
  model = make_model(name)
  model.params["layers"]["mlp"]["up"]["kernel"][0, ::2] = 0.0
  model.params["norm"]["scale"][:3] = -0.0, 1e-45, np.finfo(np.float32).max
  huggingface.write_model(tmp_path / "a" / "b", model)
  folder = tmp_path / "a" / "b"
  got = safetensors.load_file(folder / "model.safetensors")
  wanted = make_tensors(model)
  assert got.keys() == wanted.keys()
  check_equal(got, wanted)
  raw = json.loads((folder / "config.json").read_text())
  for key, value in make_json(model.config).items():
    if value not in (None, False) and key != "sliding_window":
      # As text, in which 8192.0 is not the integer 8192.
      assert json.dumps(raw[key]) == json.dumps(value), key
  assert raw.get("sliding_window") == model.config.window
  again = huggingface.read_model(folder)
  assert again.config == model.config
  check_equal(again.params, model.params)
  assert sorted(path.name for path in folder.iterdir()) == [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(tmp_path, dtype):
  model = make_model("llama3")
  model.params["norm"]["scale"][:2] = 0.0, 1e-3
  huggingface.write_model(tmp_path, model, dtype=dtype)
  raw = (tmp_path / "model.safetensors").read_bytes()
  half = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), model.params)
  assert len(raw) < 2.2 * sum(x.size for x in jax.tree.leaves(half)) + 3000
  check_equal(huggingface.read_model(tmp_path, dtype=dtype).params, half)
  check_equal(
    huggingface.read_model(tmp_path).params,
    jax.tree.map(lambda x: x.astype(np.float32), half),
  )
  assert huggingface.read_model(tmp_path).params["norm"]["scale"][0] == 0.0


@pytest.mark.parametrize("dtype", ["int8", "float64"])
def test_parameters_are_of_no_other_dtype(dtype, tmp_path):
  huggingface.write_model(tmp_path, make_model("llama"))
  with pytest.raises(UserError, match=f"of parameters is called '{dtype}'"):
    huggingface.read_model(tmp_path, dtype=dtype)


def test_several_files(tmp_path):
  model = make_model("llama")
  folder = make_folder(tmp_path, model)
  (folder / "model.safetensors").unlink()
  tensors = make_tensors(model)
  parts = {
    f"model-0000{i}-of-00003.safetensors": list(tensors)[i::3] for i in range(3)
  }
  for file, names in parts.items():
    safetensors.save_file({n: tensors[n] for n in names}, folder / file)
  index = {"weight_map": {n: f for f, names in parts.items() for n in names}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  check_equal(huggingface.read_model(folder).params, model.params)
  (folder / "model-00001-of-00003.safetensors").unlink()
  with pytest.raises(UserError, match=r"model-00001-of-00003.* no such file"):
    huggingface.read_model(folder)


def test_newer_and_older_files(tmp_path):
  model = make_model("llama3")
  scaling = make_json(model.config)["rope_scaling"]
  folder = make_folder(
    tmp_path,
    model,
    rope_scaling=None,
    rope_theta=None,
    rope_parameters=scaling | {"rope_theta": model.config.rope_theta},
    layer_types=["full_attention"] * 2,
  )
  assert huggingface.read_model(folder).config == model.config
  old = dataclasses.replace(LLAMA, kv_heads=4, head_dim=4, rope_theta=10_000.0)
  params = jax.tree.map(np.array, make_params(old))
  model = Model(old, params, model.tokenizer)
  tensors = make_tensors(model)
  for i in range(2):
    name = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
    tensors[name] = np.ones(2, np.float32)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  changes = dict.fromkeys(("num_key_value_heads", "head_dim", "rope_theta"))
  folder = make_folder(tmp_path, model, tensors=tensors, **changes)
  got = huggingface.read_model(folder)
  assert got.config == old
  check_equal(got.params, params)
  tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
  make_folder(tmp_path, model, tensors=tensors, **changes)
  with pytest.raises(UserError, match=r"ties lm_head\.weight .* differ"):
    huggingface.read_model(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A sound folder, whose config.json the tests replace."""
  return make_folder(tmp_path_factory.mktemp("model"), make_model("llama"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"model_type": "gemma"},
      "model_type: wanted one of llama, mistral, qwen2, .*'gem",
    ),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; .* 'silu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"use_sliding_window": True}, "use_sliding_window is True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (
      {"rope_parameters": {"partial_rotary_factor": 0.5}},
      "partial_rotary_factor is 0.5",
    ),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "scales by 'linear'"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "scales by 'yarn'"),
    (
      {"rope_scaling": {"rope_type": "llama3", "factor": 2}},
      "no low_freq_factor, high_freq_factor, original",
    ),
    (
      {"layer_types": ["full_attention", "sliding_attention"]},
      "layer_types mixes",
    ),
    ({"num_attention_heads": 3}, "heads must be a multiple of kv_heads"),
    ({"hidden_size": 18}, r"embed_tokens\.weight: got \(260, 16\), .*\(260, 1"),
    ({"num_hidden_layers": 3}, r"9 missing: model\.layers\.2\..*and 4 more"),
    ({"num_hidden_layers": 1}, r"9 not expected: model\.layers\.1\..* 4 more"),
    ({"tie_word_embeddings": False}, r"1 missing: lm_head\.weight\."),
    ({"model_type": "qwen2"}, r"6 missing: model\.\S*k_proj\.bias"),
  ],
)
def test_what_is_not_read_is_named(folder, changes, message):
  path = folder / "config.json"
  path.write_text(json.dumps(make_json(LLAMA, **changes)))
  with pytest.raises(UserError, match=message):
    huggingface.read_model(folder)


def test_damaged_folders(tmp_path):
  model = make_model("llama")
  folder = make_folder(tmp_path, model)
  path = folder / "model.safetensors"
  content = path.read_bytes()
  path.write_bytes(content[:-5])
  with pytest.raises(UserError, match="not a sound safetensors file"):
    huggingface.read_model(folder)
  path.unlink()
  with pytest.raises(UserError, match=r"model\.safetensors: there is no such"):
    huggingface.read_model(folder)
  tensors = make_tensors(model)
  tensors["model.norm.weight"] = np.ones(16, np.int32)
  make_folder(folder, model, tensors=tensors)
  with pytest.raises(UserError, match=r"model\.norm\.weight is I32"):
    huggingface.read_model(folder)
  (folder / "config.json").write_text('{"model_type": "llama"}')
  with pytest.raises(UserError, match=r"no vocab_size, hidden_size, .* in it"):
    huggingface.read_model(folder)
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match=r"got a folder without a config\.json"):
    huggingface.read_model(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_that_are_not_finite_are_named(value, dtype, tmp_path):
  model = make_model("llama")
  tensors = {
    n: x.astype(jnp.dtype(dtype)) for n, x in make_tensors(model).items()
  }
  name = "model.layers.1.mlp.up_proj.weight"
  tensors[name][3, 5] = value
  folder = make_folder(tmp_path, model, tensors=tensors)
  with pytest.raises(
    UserError, match=rf"tensor {name} has 1 of 320 values that"
  ):
    huggingface.read_model(folder)


def test_a_model_that_does_not_fit_the_dtype_is_refused(tmp_path):
  model = make_model("llama")
  model.params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = -1e5
  for make in (huggingface.write_model, two_of_four.write_model):
    with pytest.raises(
      UserError, match=r"layers\.1\.mlp\.up_proj\.weight has a value of 100000,"
    ):
      make(tmp_path / "made", model, dtype="float16")
  assert not (tmp_path / "made").exists()
  model.params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = 1e-9
  with pytest.warns(
    UserWarning, match=r"1 non-zeros .* in tensor .*\.1\.mlp\.up_proj"
  ):
    huggingface.write_model(tmp_path / "made", model, dtype="float16")
  model.params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = np.nan
  with pytest.raises(UserError, match="1 of 320 values that are NaN"):
    huggingface.write_model(tmp_path / "made", model)
  with pytest.raises(
    UserError, match="layers/mlp/up/kernel has 1 of 640 values"
  ):
    packed_model.pack(model, dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_refused_in_words(dtype, tmp_path):
  model = make_model("llama")
  tensors = make_tensors(model)
  name = "model.layers.0.mlp.up_proj.weight"
  tensors[name] = tensors[name].astype(jnp.dtype(dtype))
  folder = make_folder(tmp_path, model, tensors=tensors)
  with pytest.raises(
    UserError, match=rf"{name} is F8_E\w+, .* save it in bfloat"
  ):
    huggingface.read_model(folder)


STORED_DENSE = {
  "format": "dense",
  "sparsity_structure": "2:4",
  "targets": ["L"],
}


@pytest.mark.parametrize(
  ("stored", "reads"),
  [
    ({"sparsity_config": STORED_DENSE}, True),
    ({"compression_config": {"sparsity_config": STORED_DENSE}}, True),
    (
      {
        "quantization_config": {
          "quant_method": "compressed-tensors",
          "sparsity_config": STORED_DENSE,
        }
      },
      True,
    ),
    (
      {"sparsity_config": {**STORED_DENSE, "format": "sparse-24-bitmask"}},
      False,
    ),
    ({"quantization_config": {"quant_method": "fp8"}}, False),
    (
      {
        "quantization_config": {
          "config_groups": {"group_0": {}},
          "sparsity_config": STORED_DENSE,
        }
      },
      False,
    ),
  ],
)
def test_sparsity_of_dense_tensors_is_read_and_not_written(
  stored, reads, tmp_path
):
  """vLLM refuses a sparsity_config with targets, even of dense tensors."""
  model = make_model("llama")
  folder = make_folder(tmp_path / "given", model, **stored)
  if not reads:
    with pytest.raises(UserError, match="only models whose tensors are plain"):
      huggingface.read_model(folder)
    return
  huggingface.write_model(tmp_path / "made", huggingface.read_model(folder))
  raw = json.loads((tmp_path / "made" / "config.json").read_text())
  assert not raw.keys() & stored.keys()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  old, new = make_model("llama"), make_model("llama")
  huggingface.write_model(tmp_path, old)
  new.params["norm"]["scale"][:] = 7.0

  def fails(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(safetensors, "save_file", fails)
    with pytest.raises(OSError, match="full"):
      huggingface.write_model(tmp_path, new)
  check_equal(huggingface.read_model(tmp_path).params, old.params)
  assert not list(tmp_path.glob("*.part"))
  huggingface.write_model(tmp_path, new)
  check_equal(huggingface.read_model(tmp_path).params, new.params)


def test_what_is_not_written(tmp_path):
  model = make_model("llama")
  with pytest.raises(UserError, match="no dtype of tensors is called 'int8'"):
    huggingface.write_model(tmp_path, model, dtype="int8")
  both = dataclasses.replace(LLAMA, qkv_bias=True, window=3)
  with pytest.raises(UserError, match="both qkv_bias and a window"):
    huggingface.write_model(tmp_path, model._replace(config=both))
  small = dataclasses.replace(LLAMA, vocab_size=256)
  with pytest.raises(UserError, match="257 tokens, wanted at most 256"):
    huggingface.write_model(tmp_path, model._replace(config=small))
  other = model._replace(config=CONFIGS["mistral"])
  with pytest.raises(UserError, match=r"key/kernel: got \(2, 16, 12\), wanted"):
    huggingface.write_model(tmp_path, other)
  assert not list(tmp_path.iterdir())


def test_a_tokenizer_must_fit_the_model(tmp_path):
  model = make_model("llama")
  exact = dataclasses.replace(LLAMA, vocab_size=257)
  check_vocabulary(model._replace(config=exact))
  model.tokenizer.backend.add_tokens(["<a>", "<b>", "<c>", "<d>"])
  with pytest.raises(UserError, match="261 tokens, wanted at most 260"):
    huggingface.read_model(make_folder(tmp_path, model))


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_is_written(tmp_path, name):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  model = make_model(name)
  huggingface.write_model(tmp_path, model)
  peer = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, attn_implementation="eager"
  )
  assert peer.config.model_type == name.removesuffix("3")
  tokens = np.random.default_rng(1).integers(260, size=30)
  with torch.no_grad():
    got = peer(torch.tensor(tokens[None])).logits[0].numpy()
  wanted, _ = forward(model.config, model.params, tokens)
  np.testing.assert_allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_writes_is_read(tmp_path, name):
  transformers = pytest.importorskip("transformers", reason=PEERS)
  torch = pytest.importorskip("torch", reason=PEERS)
  torch.manual_seed(0)
  made = make_json(CONFIGS[name])
  made = transformers.AutoConfig.for_model(**made, initializer_range=0.4)
  peer = transformers.AutoModelForCausalLM.from_config(
    made, attn_implementation="eager"
  )
  peer.save_pretrained(tmp_path)
  extras.write_files(tmp_path, tokenizer.to_files(tokenizer.byte_level()))
  model = huggingface.read_model(tmp_path)
  assert model.config == CONFIGS[name]
  tokens = np.random.default_rng(1).integers(260, size=30)
  with torch.no_grad():
    wanted = peer(torch.tensor(tokens[None])).logits[0].numpy()
  got = jax.jit(llama.Network(model.config).apply)(
    {"params": model.params}, tokens[None]
  )
  np.testing.assert_allclose(got[0], wanted, atol=1e-3)
