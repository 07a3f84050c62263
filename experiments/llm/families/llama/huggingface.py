"""How the folders of Hugging Face's transformers hold these models."""

from collections.abc import Mapping
from typing import Any

from experiments.errors import UserError
from experiments.llm.families import reading
from experiments.llm.families.llama.config import Config

_CLASSES = {
  "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
}
MODEL_TYPES = tuple(_CLASSES)

TENSORS = {
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
# The rotary frequencies, which files of the first LLaMA models hold.
IGNORED = (".self_attn.rotary_emb.inv_freq",)

_KEYS = {
  "vocab_size": "vocab_size",
  "dim": "hidden_size",
  "layers": "num_hidden_layers",
  "heads": "num_attention_heads",
  "hidden": "intermediate_size",
  "context": "max_position_embeddings",
  "norm_eps": "rms_norm_eps",
}
# Options of transformers that `Network` lacks: the only value that is read.
_FIXED = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "use_sliding_window": False,
  "partial_rotary_factor": 1.0,
}
_LLAMA3 = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "original_max_position_embeddings",
)


def read_config(raw: Mapping[str, Any], *, path: Any) -> Config:
  """Makes the config from the object in config.json.

  Args:
    raw: the object, whose `model_type` is one of MODEL_TYPES.
    path: of config.json, for errors.

  Returns:
    The config.

  Raises:
    UserError: a value is missing, or asks for what `Network` does not compute.
  """
  kind = raw["model_type"]
  # Newer files have rope_theta among the other parameters of the embedding.
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  for name, wanted in _FIXED.items():
    for got in (raw.get(name), rope.get(name)):
      if got is not None:
        reading.check(name, got, [wanted], path=path)
  if set(raw.get("layer_types") or ()) - {"full_attention"}:
    raise UserError(
      f"{path}: layer_types mixes kinds of attention; only models whose layers "
      "are all alike are read."
    )
  values = reading.sizes(raw, _KEYS, path=path)
  heads = values["heads"]
  return Config(
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
  path: Any, rope: Mapping[str, Any]
) -> tuple[float, ...] | None:
  """Reads `Config.rope_scaling` from the parameters of the embedding."""
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


def config_json(config: Config) -> dict[str, Any]:
  """Makes the object for config.json, but for dtypes and special tokens.

  Args:
    config: the model's.

  Returns:
    What `read_config` and transformers read.

  Raises:
    UserError: no model type of transformers has this config.
  """
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
    "architectures": [_CLASSES[kind]],
    "model_type": kind,
    "hidden_act": "silu",
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "rope_theta": config.rope_theta,
    "tie_word_embeddings": config.tied,
  }
  made |= {theirs: getattr(config, ours) for ours, theirs in _KEYS.items()}
  if kind == "mistral":
    made["sliding_window"] = config.window
  if config.rope_scaling is not None:
    scaling = dict(zip(_LLAMA3, config.rope_scaling, strict=True))
    # transformers warns if this one is no integer.
    scaling[_LLAMA3[-1]] = int(scaling[_LLAMA3[-1]])
    made["rope_scaling"] = {"rope_type": "llama3"} | scaling
  return made


def duplicates(config: Config) -> dict[str, str]:
  """Returns tensors that files may hold beside the one that they repeat.

  Args:
    config: the model's.

  Returns:
    The original's name by the duplicate's.
  """
  if not config.tied:
    return {}
  return {TENSORS["head/kernel"]: TENSORS["embed/embedding"]}
