"""Reads and writes the folders of models of Hugging Face's transformers.

Files: config.json, model.safetensors (or several, with an index), and the
tokenizer's; see tokenizer.py.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import errors
from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.families import llama
from experiments.llm.io import files, tokenizer, weights
from experiments.llm.io.weights import Model

_ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
}
_NAMES = {
  "embed/embedding": "model.embed_tokens.weight",
  "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
  "layers/attention/query/kernel": "model.layers.{}.self_attn.q_proj.weight",
  "layers/attention/query/bias": "model.layers.{}.self_attn.q_proj.bias",
  "layers/attention/key/kernel": "model.layers.{}.self_attn.k_proj.weight",
  "layers/attention/key/bias": "model.layers.{}.self_attn.k_proj.bias",
  "layers/attention/value/kernel": "model.layers.{}.self_attn.v_proj.weight",
  "layers/attention/value/bias": "model.layers.{}.self_attn.v_proj.bias",
  "layers/attention/output/kernel": "model.layers.{}.self_attn.o_proj.weight",
  "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
  "layers/mlp/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
  "layers/mlp/up/kernel": "model.layers.{}.mlp.up_proj.weight",
  "layers/mlp/down/kernel": "model.layers.{}.mlp.down_proj.weight",
  "norm/scale": "model.norm.weight",
  "head/kernel": "lm_head.weight",
}
_EMBEDDING, _HEAD = _NAMES["embed/embedding"], _NAMES["head/kernel"]
# What files of the first LLaMA models hold although the config says it.
_ROPE_BUFFER = ".self_attn.rotary_emb.inv_freq"
DTYPES = ("float32", "float16", "bfloat16")
_IN_FILES = ("F32", "F16", "BF16")

_KEYS = {
  "vocab_size": "vocab_size",
  "dim": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "hidden": "intermediate_size",
  "context": "max_position_embeddings",
  "norm_eps": "rms_norm_eps",
}
# What a config may not ask for: the only value that is read.
_FIXED = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "use_sliding_window": False,
  "partial_rotary_factor": 1.0,
  "quantization_config": None,
}
_LLAMA3 = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
)


def read(
  folder: str | pathlib.Path, *, dtype: jax.typing.DTypeLike = np.float32
) -> Model:
  """Reads a model of type llama, mistral or qwen2.

  Args:
    folder: the model's, downloaded whole.
    dtype: of the parameters; files hold float32, float16 or bfloat16.

  Returns:
    The model, in host memory.

  Raises:
    UserError: a file is missing or damaged, the config asks for what
      `llama.Llama` does not do, or the tensors are not those of the config.
  """
  folder = pathlib.Path(folder)
  config = _read_config(folder / "config.json")
  with contextlib.ExitStack() as stack:
    tensors = _open(folder, stack)
    if config.tied and _HEAD in tensors:
      # Some files hold the one matrix twice.
      head = tensors.pop(_HEAD)[:]
      if not np.array_equal(head, tensors[_EMBEDDING][:]):
        raise UserError(
          f"{folder}: config.json ties {_HEAD} to {_EMBEDDING}, but they "
          "differ; set tie_word_embeddings to what the model was trained with."
        )
    params = weights.from_tensors(
      config,
      _NAMES,
      shapes={name: tuple(x.get_shape()) for name, x in tensors.items()},
      load=lambda name: tensors[name][:],
      where=folder,
      dtype=dtype,
    )
  model = Model(config, params, tokenizer.read(folder))
  weights.check(model)
  return model


def write(
  folder: str | pathlib.Path, model: Model, *, dtype: str = "float32"
) -> None:
  """Writes a model for `read` and for transformers.

  In float32, what is read again has the same bits. Zeros stay zeros in every
  dtype; the smallest weights become zeros in float16.

  Args:
    folder: where its files are to lie; made if need be. Each file is replaced
      when the new one is complete.
    model: the model.
    dtype: of the tensors: float32, float16 or bfloat16.

  Raises:
    UserError: the dtype is unknown, no model type has this config, or the
      parameters or the tokenizer do not belong to it.
  """
  write_files(folder, *tensors_and_config(model, dtype), model.tokenizer)


def tensors_and_config(
  model: Model, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """What the files of a model hold.

  Args:
    model: the model.
    dtype: of the tensors: float32, float16 or bfloat16.

  Returns:
    The tensors by name, and what config.json says.

  Raises:
    UserError: as `write` does.
  """
  if dtype not in DTYPES:
    raise errors.unknown("dtype of tensors", dtype, DTYPES)
  weights.check(model)
  config = _config_json(model, dtype)
  tensors = weights.to_tensors(
    model.config, _NAMES, model.params, dtype=jnp.dtype(dtype)
  )
  return tensors, config


def write_files(
  folder: str | pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  words: tokenizer.Tokenizer,
) -> None:
  """Writes the files of a model, each replaced when the new one is complete.

  Args:
    folder: where they are to lie; made if need be.
    tensors: by name.
    config: what config.json says.
    words: the tokenizer.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with files.whole(folder / "model.safetensors") as path:
    # transformers asks for this entry, whatever wrote the file.
    optional.load("safetensors.numpy").save_file(
      dict(tensors), path, metadata={"format": "pt"}
    )
  tokenizer.write(folder, words)
  with files.whole(folder / "config.json") as path:
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _open(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
  """Gives access to all tensors of a folder, without reading them."""
  safetensors = optional.load("safetensors")
  names = ["model.safetensors"]
  index = folder / "model.safetensors.index.json"
  if not (folder / names[0]).is_file() and index.is_file():
    names = sorted(set(files.read_json(index).get("weight_map", {}).values()))
  tensors = {}
  for path in (folder / name for name in names):
    if not path.is_file():
      raise UserError(f"{path}: there is no such file; download it again.")
    try:
      file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except safetensors.SafetensorError as error:
      raise UserError(
        f"{path}: not a sound safetensors file ({error}); download it again."
      ) from error
    for name in file.keys():  # noqa: SIM118, as it is no mapping.
      if name.endswith(_ROPE_BUFFER):
        continue
      tensors[name] = file.get_slice(name)
      kind = tensors[name].get_dtype()
      if kind not in _IN_FILES:
        raise UserError(
          f"{path}: tensor {name} is {kind}, wanted one of "
          f"{', '.join(_IN_FILES)}; quantized models are not read from here."
        )
  return tensors


def _read_config(path: pathlib.Path) -> llama.Config:
  raw = files.read_json(path)
  kind = raw.get("model_type")
  if kind not in _ARCHITECTURES:
    raise UserError(
      f"{path}: wanted a model_type of {', '.join(_ARCHITECTURES)}, got "
      f"{kind!r}."
    )
  # Newer files have rope_theta among the others.
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  for name, wanted in _FIXED.items():
    for got in (raw.get(name), rope.get(name)):
      if got is not None and got != wanted:
        raise UserError(
          f"{path}: {name} is {got!r}; only models where it is {wanted!r} are "
          "read."
        )
  if set(raw.get("layer_types") or ()) - {"full_attention"}:
    raise UserError(
      f"{path}: layer_types mixes kinds of attention; only models whose layers "
      "are all alike are read."
    )
  wanted = [*_KEYS.values()]
  if missing := [name for name in wanted if name not in raw]:
    raise UserError(f"{path}: there is no {', '.join(missing)} in it.")
  values = {ours: raw[theirs] for ours, theirs in _KEYS.items()}
  heads = values["heads"]
  return llama.Config(
    **values,
    kv_heads=raw.get("num_key_value_heads") or heads,
    head_dim=raw.get("head_dim") or values["dim"] // heads,
    rope_theta=raw.get("rope_theta") or rope.get("rope_theta") or 10_000.0,
    tied=bool(raw.get("tie_word_embeddings")),
    qkv_bias=kind == "qwen2",
    window=raw.get("sliding_window") if kind == "mistral" else None,
    rope_scaling=_rope_scaling(path, rope),
  )


def _rope_scaling(
  path: pathlib.Path, rope: dict[str, Any]
) -> tuple[float, ...] | None:
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind == "default":
    return None
  if kind != "llama3":
    raise UserError(
      f"{path}: its rotary embedding scales by {kind!r}; only models with "
      "'default' or 'llama3' are read."
    )
  if missing := [name for name in _LLAMA3 if name not in rope]:
    raise UserError(
      f"{path}: there is no {', '.join(missing)} in its rope_scaling."
    )
  return tuple(float(rope[name]) for name in _LLAMA3)


def _config_json(model: Model, dtype: str) -> dict[str, Any]:
  config = model.config
  if config.qkv_bias and config.window is not None:
    raise UserError(
      "huggingface: no model type has both qkv_bias and a window for all "
      f"layers, got window={config.window}."
    )
  kind = "llama"
  if config.qkv_bias:
    kind = "qwen2"
  elif config.window is not None:
    kind = "mistral"
  made = {
    "architectures": [_ARCHITECTURES[kind]],
    "model_type": kind,
    "dtype": dtype,
    "torch_dtype": dtype,
    "hidden_act": "silu",
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "rope_theta": config.rope_theta,
    "tie_word_embeddings": config.tied,
    "eos_token_id": model.tokenizer.eos,
    "bos_token_id": model.tokenizer.bos,
  }
  made |= {theirs: getattr(config, ours) for ours, theirs in _KEYS.items()}
  if kind == "mistral":
    made["sliding_window"] = config.window
  if config.rope_scaling is not None:
    scaling = dict(zip(_LLAMA3, config.rope_scaling, strict=True))
    # transformers warns of one that is no integer.
    scaling[_LLAMA3[-1]] = int(scaling[_LLAMA3[-1]])
    made["rope_scaling"] = {"rope_type": "llama3"} | scaling
  return made
