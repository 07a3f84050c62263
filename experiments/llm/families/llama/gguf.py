"""How GGUF, the format of llama.cpp, holds these models."""

import dataclasses
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.llm.families.llama.config import Config, rope_frequencies
from experiments.llm.families.reading import GgufHeader, shortest

ARCHITECTURES = ("llama", "qwen2")

TENSORS = {
  "embed/embedding": "token_embd.weight",
  "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
  "layers/attention/query/kernel": "blk.{}.attn_q.weight",
  "layers/attention/query/bias": "blk.{}.attn_q.bias",
  "layers/attention/key/kernel": "blk.{}.attn_k.weight",
  "layers/attention/key/bias": "blk.{}.attn_k.bias",
  "layers/attention/value/kernel": "blk.{}.attn_v.weight",
  "layers/attention/value/bias": "blk.{}.attn_v.bias",
  "layers/attention/output/kernel": "blk.{}.attn_output.weight",
  "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
  "layers/mlp/gate/kernel": "blk.{}.ffn_gate.weight",
  "layers/mlp/up/kernel": "blk.{}.ffn_up.weight",
  "layers/mlp/down/kernel": "blk.{}.ffn_down.weight",
  "norm/scale": "output_norm.weight",
  "head/kernel": "output.weight",
}
_ROPE_DIVISORS = "rope_freqs.weight"
CONFIG_TENSORS = (_ROPE_DIVISORS,)


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
  dim, heads = field("embedding_length"), field("attention.head_count")
  kv_heads = get("attention.head_count_kv", heads)
  hidden = field("feed_forward_length")
  if not all(isinstance(n, int) for n in (heads, kv_heads, hidden)):
    raise UserError(
      f"{header.path}: its layers differ in heads or widths; only models of "
      "equal layers are read."
    )
  head_dim = get("attention.key_length", dim // heads)
  header.check("rope.scaling.type", "none", "none")
  header.check("rope.dimension_count", head_dim, head_dim)
  header.check("attention.value_length", head_dim, head_dim)
  config = Config(
    vocab_size=header.vocab_size,
    dim=dim,
    layers=field("block_count"),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    hidden=hidden,
    context=field("context_length"),
    rope_theta=shortest(get("rope.freq_base", 10_000.0)),
    norm_eps=shortest(field("attention.layer_norm_rms_epsilon")),
    tied=TENSORS["head/kernel"] not in header.names,
    qkv_bias=header.architecture == "qwen2",
    window=get("attention.sliding_window"),
  )
  if _ROPE_DIVISORS in header.names:
    divisors = header.load(_ROPE_DIVISORS)
    config = _with_rope_scaling(header.path, config, divisors)
  return config


def _with_rope_scaling(
  path: Any, config: Config, divisors: np.ndarray
) -> Config:
  """Finds the rope_scaling from which llama.cpp has computed the divisors.

  All published LLaMA 3.1 to 3.3 differ in the factor alone.
  """
  scaled = dataclasses.replace(
    config, rope_scaling=(float(divisors.max()), 1.0, 4.0, 8192.0)
  )
  wanted = rope_frequencies(config) / rope_frequencies(scaled)
  if divisors.shape != wanted.shape or not np.allclose(
    divisors, wanted, rtol=1e-3
  ):
    raise UserError(
      f"{path}: {_ROPE_DIVISORS} is not that of LLaMA 3.1 to 3.3; read the "
      "model from its Hugging Face folder, whose config says how it scales."
    )
  return scaled


def restore(
  header: GgufHeader, config: Config, name: str, x: np.ndarray
) -> np.ndarray:
  """Undoes the permutation of queries and keys in files of `llama`.

  llama.cpp rotates neighbours, (2 i, 2 i + 1), where `Network` rotates halves,
  (i, i + d / 2), so its files hold row i of a head at 2 i, and row i + d / 2 at
  2 i + 1.

  Args:
    header: of the file.
    config: the model's.
    name: the tensor's.
    x: its values, a matrix [heads * d, in] if it is one of queries or keys.

  Returns:
    The values in the order of `Network`.
  """
  heads = {
    "attn_q.weight": config.heads,
    "attn_k.weight": config.kv_heads,
  }.get(name.split(".", 2)[-1])
  if header.architecture != "llama" or heads is None:
    return x
  rows, columns = x.shape
  pairs = x.reshape(heads, rows // heads // 2, 2, columns)
  return pairs.swapaxes(1, 2).reshape(rows, columns)
