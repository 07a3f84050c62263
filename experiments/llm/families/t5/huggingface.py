"""How the folders of Hugging Face's transformers hold these models."""

from collections.abc import Mapping
from typing import Any

from experiments.llm.families import reading
from experiments.llm.families.t5.config import Config

MODEL_TYPES = ("t5", "mt5")

_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
_MLP = {"up": "wi", "gate": "wi_0", "linear": "wi_1", "down": "wo"}


def _block(stack: str, *, cross: bool) -> dict[str, str]:
  """Makes the names of one stack's tensors."""
  parts = [("attention", "SelfAttention", _ATTENTION)]
  if cross:
    parts += [("cross_attention", "EncDecAttention", _ATTENTION)]
  parts += [("mlp", "DenseReluDense", _MLP)]
  names = {}
  for i, (ours, theirs, kernels) in enumerate(parts):
    at = f"{stack}.block.{{}}.layer.{i}"
    norm = ours.replace("cross_attention", "cross") + "_norm"
    names[f"{stack}/layers/{norm}/scale"] = f"{at}.layer_norm.weight"
    for our, their in kernels.items():
      path = f"{stack}/layers/{ours}/{our}/kernel"
      names[path] = f"{at}.{theirs}.{their}.weight"
  bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  names[f"{stack}/relative_bias/embedding"] = f"{stack}.{bias}"
  names[f"{stack}/norm/scale"] = f"{stack}.final_layer_norm.weight"
  return names


TENSORS = {
  "embed/embedding": "shared.weight",
  **_block("encoder", cross=False),
  **_block("decoder", cross=True),
  "head/kernel": "lm_head.weight",
}
# Of no use: cross-attention has no positions. The first T5 files hold it.
IGNORED = (".EncDecAttention.relative_attention_bias.weight",)

_KEYS = {
  "vocab_size": "vocab_size",
  "dim": "d_model",
  "encoder_layers": "num_layers",
  "heads": "num_heads",
  "head_dim": "d_kv",
  "hidden": "d_ff",
  "buckets": "relative_attention_num_buckets",
  "max_distance": "relative_attention_max_distance",
  "norm_eps": "layer_norm_epsilon",
}
# What transformers takes where a config.json does not say; the first T5 files
# have no distance.
_DEFAULTS = {"relative_attention_max_distance": 128}
_GATED = {"relu": False, "gated-gelu": True}
# Of version 1.1, whose config.json has none; T5 was trained on sequences of it.
_CONTEXT = 512


def read_config(raw: Mapping[str, Any], *, path: Any) -> Config:
  """Makes the config from the object in config.json.

  Args:
    raw: the object, whose `model_type` is one of MODEL_TYPES.
    path: of config.json, for errors.

  Returns:
    The config; its context is `n_positions`, or 512 where there is none.

  Raises:
    UserError: a value is missing, or asks for what `Network` does not compute.
  """
  raw = {**_DEFAULTS, **raw}
  kind = raw.get("feed_forward_proj", "relu")
  reading.check("feed_forward_proj", kind, _GATED, path=path)
  start = "decoder_start_token_id"
  values = reading.sizes(raw, _KEYS, also=[start], path=path)
  # transformers 5 writes that all heads are tied, and of those that are not
  # this.
  tied = all(
    raw.get(name) is not False
    for name in ("tie_word_embeddings", "scale_decoder_outputs")
  )
  return Config(
    **values,
    decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
    context=raw.get("n_positions") or _CONTEXT,
    gated=_GATED[kind],
    tied=tied,
    decoder_start=raw[start],
  )


def config_json(config: Config) -> dict[str, Any]:
  """Makes the object for config.json, but for dtypes and special tokens.

  Args:
    config: the model's.

  Returns:
    What `read_config` and transformers read.
  """
  made = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "num_decoder_layers": config.decoder_layers,
    "n_positions": config.context,
    "feed_forward_proj": "gated-gelu" if config.gated else "relu",
    "dropout_rate": 0.0,
    "tie_word_embeddings": config.tied,
    "decoder_start_token_id": config.decoder_start,
    "pad_token_id": config.decoder_start,
  }
  return made | {
    theirs: getattr(config, ours) for ours, theirs in _KEYS.items()
  }


def duplicates(config: Config) -> dict[str, str]:
  """Returns tensors that files may hold beside the one that they repeat.

  Args:
    config: the model's.

  Returns:
    The original's name by the duplicate's.
  """
  names = [f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
  if config.tied:
    names.append(TENSORS["head/kernel"])
  return dict.fromkeys(names, TENSORS["embed/embedding"])
