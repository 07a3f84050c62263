"""How the folders of Hugging Face's transformers hold these models."""

from collections.abc import Mapping
from typing import Any

from experiments.llm.families import reading
from experiments.llm.families.whisper.config import Config

MODEL_TYPES = ("whisper",)

_LINEARS = {
  "attention/query": "self_attn.q_proj",
  "attention/key": "self_attn.k_proj",
  "attention/value": "self_attn.v_proj",
  "attention/output": "self_attn.out_proj",
  "cross_attention/query": "encoder_attn.q_proj",
  "cross_attention/key": "encoder_attn.k_proj",
  "cross_attention/value": "encoder_attn.v_proj",
  "cross_attention/output": "encoder_attn.out_proj",
  "mlp/up": "fc1",
  "mlp/down": "fc2",
}
_NORMS = {
  "attention_norm": "self_attn_layer_norm",
  "cross_norm": "encoder_attn_layer_norm",
  "mlp_norm": "final_layer_norm",
}


def _stack(stack: str) -> dict[str, str]:
  """Names the tensors of the encoder or the decoder."""
  names = {
    f"{stack}/positions": f"model.{stack}.embed_positions.weight",
    f"{stack}/norm/scale": f"model.{stack}.layer_norm.weight",
    f"{stack}/norm/bias": f"model.{stack}.layer_norm.bias",
  }
  for leaf, layers in (("kernel", _LINEARS), ("scale", _NORMS)):
    for ours, theirs in layers.items():
      if ours.startswith("cross") and stack == "encoder":
        continue
      at, name = f"{stack}/layers/{ours}", f"model.{stack}.layers.{{}}.{theirs}"
      names[f"{at}/{leaf}"] = f"{name}.weight"
      if not ours.endswith("key"):
        names[f"{at}/bias"] = f"{name}.bias"
  return names


TENSORS = {
  "embed/embedding": "model.decoder.embed_tokens.weight",
  "encoder/conv1/weight": "model.encoder.conv1.weight",
  "encoder/conv1/bias": "model.encoder.conv1.bias",
  "encoder/conv2/weight": "model.encoder.conv2.weight",
  "encoder/conv2/bias": "model.encoder.conv2.bias",
  **_stack("encoder"),
  **_stack("decoder"),
}
IGNORED = ()

_KEYS = {
  "vocab_size": "vocab_size",
  "dim": "d_model",
  "encoder_layers": "encoder_layers",
  "decoder_layers": "decoder_layers",
  "heads": "encoder_attention_heads",
  "hidden": "encoder_ffn_dim",
  "context": "max_target_positions",
  "decoder_start": "decoder_start_token_id",
  "mels": "num_mel_bins",
  "source_context": "max_source_positions",
}
# What is the same in encoder and decoder here.
_ALIKE = {
  "decoder_attention_heads": "encoder_attention_heads",
  "decoder_ffn_dim": "encoder_ffn_dim",
}
# Options of transformers that `Network` lacks: the only value that is read.
_FIXED = {
  "activation_function": "gelu",
  "scale_embedding": False,
  "tie_word_embeddings": True,
}


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
  values = reading.sizes(raw, _KEYS, path=path)
  fixed = {ours: raw[theirs] for ours, theirs in _ALIKE.items()}
  for name, wanted in (_FIXED | fixed).items():
    reading.check(name, raw.get(name, wanted), [wanted], path=path)
  return Config(**values)


def config_json(config: Config) -> dict[str, Any]:
  """Makes the object for config.json, but for dtypes and special tokens.

  Args:
    config: the model's.

  Returns:
    What `read_config` and transformers read.
  """
  made = {theirs: getattr(config, ours) for ours, theirs in _KEYS.items()}
  return made | {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "is_encoder_decoder": True,
    "num_hidden_layers": config.encoder_layers,
    **_FIXED,
    **{ours: made[theirs] for ours, theirs in _ALIKE.items()},
  }


def duplicates(config: Config) -> dict[str, str]:
  """Returns tensors that files may hold beside the one that they repeat.

  Args:
    config: the model's.

  Returns:
    The original's name by the duplicate's.
  """
  del config
  return {"proj_out.weight": TENSORS["embed/embedding"]}
