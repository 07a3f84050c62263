"""How GGUF, the format of llama.cpp, holds these models."""

import numpy as np

from experiments.errors import UserError
from experiments.llm.families.mpt.config import Config
from experiments.llm.families.reading import GgufHeader, shortest

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


def read_config(header: GgufHeader) -> Config:
  """Makes the config from what a file says.

  Args:
    header: of the file, whose architecture is one of ARCHITECTURES.

  Returns:
    The config.

  Raises:
    UserError: a value is missing, or asks for what `Network` does not compute.
  """
  field, get = header.field, header.get
  heads = field("attention.head_count")
  slopes = get("attention.max_alibi_bias", 0.0)
  # llama.cpp's converter writes 0 for models with positions of other kinds.
  if not slopes or slopes != round(slopes):
    raise UserError(
      f"{header.path}: mpt.attention.max_alibi_bias is {slopes!r}; only models "
      "with linear biases, where it is a positive integer, are read."
    )
  # Heads that share keys and values have a layout of their own.
  header.check("attention.head_count_kv", heads, heads)
  return Config(
    vocab_size=header.vocab_size,
    dim=field("embedding_length"),
    layers=field("block_count"),
    heads=heads,
    hidden=field("feed_forward_length"),
    context=field("context_length"),
    norm_eps=shortest(field("attention.layer_norm_epsilon")),
    clip_qkv=get("attention.clamp_kqv") or None,
    alibi_bias_max=int(slopes),
  )


def restore(
  header: GgufHeader, config: Config, name: str, x: np.ndarray
) -> np.ndarray:
  """Returns a tensor as it is: converters leave those of this family alone.

  Args:
    header: of the file.
    config: the model's.
    name: the tensor's.
    x: its values.

  Returns:
    The values.
  """
  del header, config, name
  return x
