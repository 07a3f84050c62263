"""How the folders of Hugging Face's transformers hold these models.

MosaicML's own code, which the first folders came with, reads the same files.
transformers' class ignores `expansion_ratio`, for which it takes 4, and
`alibi_bias_max`, for which it takes 8; here both mean what MosaicML's code has
trained with.
"""

from collections.abc import Mapping
from typing import Any

from experiments.llm.families import reading
from experiments.llm.families.mpt.config import Config, check_ratio

MODEL_TYPES = ("mpt",)

TENSORS = {
  "embed/embedding": "transformer.wte.weight",
  "layers/attention_norm/scale": "transformer.blocks.{}.norm_1.weight",
  "layers/attention/qkv/kernel": "transformer.blocks.{}.attn.Wqkv.weight",
  "layers/attention/output/kernel": (
    "transformer.blocks.{}.attn.out_proj.weight"
  ),
  "layers/mlp_norm/scale": "transformer.blocks.{}.norm_2.weight",
  "layers/mlp/up/kernel": "transformer.blocks.{}.ffn.up_proj.weight",
  "layers/mlp/down/kernel": "transformer.blocks.{}.ffn.down_proj.weight",
  "norm/scale": "transformer.norm_f.weight",
}
IGNORED = ()

_KEYS = {
  "vocab_size": "vocab_size",
  "dim": "d_model",
  "layers": "n_layers",
  "heads": "n_heads",
  "context": "max_seq_len",
}
# Options that `Network` lacks: the values that are read, the default first.
_FIXED = {
  "no_bias": (True,),
  "logit_scale": (None,),
  "norm_type": ("low_precision_layernorm", "layernorm"),
  "tie_word_embeddings": (True,),
  "embedding_fraction": (1.0,),
  "attn_config.alibi": (True,),
  "attn_config.attn_type": ("multihead_attention",),
  "attn_config.attn_uses_sequence_id": (False,),
  "attn_config.prefix_lm": (False,),
  "attn_config.qk_ln": (False,),
  "attn_config.qk_gn": (False,),
  "attn_config.rope": (False,),
  "attn_config.sliding_window_size": (-1,),
  "attn_config.softmax_scale": (None,),
  "ffn_config.ffn_type": ("mptmlp",),
  "ffn_config.ffn_hidden_size": (None,),
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
  attention = raw.get("attn_config") or {}
  for name, values in _FIXED.items():
    part, _, key = name.rpartition(".")
    got = ((raw.get(part) or {}) if part else raw).get(key, values[0])
    reading.check(name, got, values, path=path)
  return Config(
    **reading.sizes(raw, _KEYS, also=["expansion_ratio"], path=path),
    hidden=raw["expansion_ratio"] * raw["d_model"],
    norm_eps=raw.get("layer_norm_epsilon", 1e-5),
    # Their code takes 0 for None.
    clip_qkv=attention.get("clip_qkv") or None,
    alibi_bias_max=attention.get("alibi_bias_max", 8),
  )


def config_json(config: Config) -> dict[str, Any]:
  """Makes the object for config.json, but for dtypes and special tokens.

  Args:
    config: the model's.

  Returns:
    What `read_config` and transformers read.

  Raises:
    UserError: its feed-forward layers are no whole number of times wider than
      the stream.
  """
  sizes = {theirs: getattr(config, ours) for ours, theirs in _KEYS.items()}
  return sizes | {
    "architectures": ["MPTForCausalLM"],
    "model_type": "mpt",
    "expansion_ratio": check_ratio(config),
    "layer_norm_epsilon": config.norm_eps,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "tie_word_embeddings": True,
    "attn_config": {
      "model_type": "",
      "alibi": True,
      "alibi_bias_max": config.alibi_bias_max,
      "clip_qkv": config.clip_qkv,
    },
  }


def duplicates(config: Config) -> dict[str, str]:
  """Returns tensors that files may hold beside the one that they repeat.

  Args:
    config: the model's.

  Returns:
    The original's name by the duplicate's.
  """
  del config
  return {"lm_head.weight": TENSORS["embed/embedding"]}
