"""How GGUF, the format of llama.cpp, holds these models."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.llm.families.mpt.config import Config

ARCHITECTURES = ("mpt",)

TENSORS = {
  "embed/embedding": "token_embd.weight",
  "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
  "layers/attention/qkv/kernel": "blk.{}.attn_qkv.weight",
  "layers/attention/output/kernel": "blk.{}.attn_output.weight",
  "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
  "layers/mlp/up/kernel": "blk.{}.ffn_up.weight",
  "layers/mlp/down/kernel": "blk.{}.ffn_down.weight",
  "norm/scale": "output_norm.weight",
}
CONFIG_TENSORS = ()


def read_config(
  fields: Mapping[str, Any],
  *,
  names: Collection[str],
  load: Callable[[str], np.ndarray],
  path: Any,
) -> Config:
  """Makes the config from a file's metadata.

  Args:
    fields: the metadata; `general.architecture` is one of ARCHITECTURES.
    names: of the file's tensors.
    load: returns the values of a tensor, float32.
    path: the file, for errors.

  Returns:
    The config.

  Raises:
    UserError: a value is missing, or asks for what `Network` does not compute.
  """
  del names, load
  heads = fields["mpt.attention.head_count"]
  slopes = fields.get("mpt.attention.max_alibi_bias", 0.0)
  # llama.cpp's converter writes 0 for models with positions of other kinds.
  if not slopes or slopes != round(slopes):
    raise UserError(
      f"{path}: mpt.attention.max_alibi_bias is {slopes!r}; only models with "
      "linear biases, where it is a positive integer, are read."
    )
  if fields.get("mpt.attention.head_count_kv", heads) != heads:
    raise UserError(
      f"{path}: mpt.attention.head_count_kv is not head_count; only models "
      "whose heads share no keys and values are read."
    )
  return Config(
    vocab_size=fields.get(
      "mpt.vocab_size", len(fields["tokenizer.ggml.tokens"])
    ),
    dim=fields["mpt.embedding_length"],
    layers=fields["mpt.block_count"],
    heads=heads,
    hidden=fields["mpt.feed_forward_length"],
    context=fields["mpt.context_length"],
    # 1e-5 for the float32 nearest to it, which is what the file has.
    norm_eps=float(str(np.float32(fields["mpt.attention.layer_norm_epsilon"]))),
    clip_qkv=fields.get("mpt.attention.clamp_kqv") or None,
    alibi_bias_max=int(slopes),
  )


def restore(
  fields: Mapping[str, Any], config: Config, name: str, x: np.ndarray
) -> np.ndarray:
  """Returns a tensor as it is: converters leave those of this family alone.

  Args:
    fields: the file's metadata.
    config: the model's.
    name: the tensor's.
    x: its values.

  Returns:
    The values.
  """
  del fields, config, name
  return x
