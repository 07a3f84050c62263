"""How CTranslate2, the format of faster-whisper, holds these models."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.llm.families.whisper import huggingface
from experiments.llm.families.whisper.config import Config

SPECS = ("WhisperSpec",)
START = "<|startoftranscript|>"
# From here on models know many languages, as whisper/model.py has it.
_MULTILINGUAL = 51_865

# Of each tensor in a folder of transformers the rows of a variable here: the
# number of parts that the variable has, one below the other, and which one.
_PARTS = {
  "attention/query": ("self_attention/linear_0", 3, 0),
  "attention/key": ("self_attention/linear_0", 3, 1),
  "attention/value": ("self_attention/linear_0", 3, 2),
  "attention/output": ("self_attention/linear_1", 1, 0),
  "attention_norm": ("self_attention/layer_norm", 1, 0),
  "cross_attention/query": ("attention/linear_0", 1, 0),
  "cross_attention/key": ("attention/linear_1", 2, 0),
  "cross_attention/value": ("attention/linear_1", 2, 1),
  "cross_attention/output": ("attention/linear_2", 1, 0),
  "cross_norm": ("attention/layer_norm", 1, 0),
  "mlp/up": ("ffn/linear_0", 1, 0),
  "mlp/down": ("ffn/linear_1", 1, 0),
  "mlp_norm": ("ffn/layer_norm", 1, 0),
}
_LEAVES = {"kernel": "weight", "scale": "gamma"}


def read_config(
  variables: Mapping[str, np.ndarray], *, start: int, path: Any
) -> Config:
  """Makes the config from a file's variables.

  Args:
    variables: by name; indexing one that is missing raises a UserError.
    start: the token that every sequence of the decoder begins with.
    path: the file, for errors.

  Returns:
    The config.

  Raises:
    UserError: a variable is missing, or asks for what `Network` does not
      compute.
  """
  vocab_size, dim = variables["decoder/embeddings/weight"].shape
  encoder_heads, heads = (
    int(variables[f"{stack}/num_heads"]) for stack in ("encoder", "decoder")
  )
  hidden = len(variables["encoder/layer_0/ffn/linear_0/weight"])
  if encoder_heads != heads or hidden != len(
    variables["decoder/layer_0/ffn/linear_0/weight"]
  ):
    raise UserError(
      f"{path}: encoder and decoder differ in heads or widths; only models "
      "where they are equal are read."
    )

  def depth(stack: str) -> int:
    name = f"{stack}/layer_{{}}/ffn/linear_0/weight"
    return sum(name.format(i) in variables for i in range(len(variables)))

  return Config(
    vocab_size=vocab_size,
    dim=dim,
    encoder_layers=depth("encoder"),
    decoder_layers=depth("decoder"),
    heads=heads,
    hidden=hidden,
    context=len(variables["decoder/position_encodings/encodings"]),
    decoder_start=start,
    mels=variables["encoder/conv1/weight"].shape[1],
    source_context=len(variables["encoder/position_encodings/encodings"]),
  )


def tensors(
  variables: Mapping[str, np.ndarray], config: Config, *, path: Any
) -> dict[str, np.ndarray]:
  """Makes the tensors of a folder of transformers from a file's variables.

  Args:
    variables: by name; indexing one that is missing raises a UserError.
    config: the model's.
    path: the file, for errors.

  Returns:
    The tensors by the names of `huggingface.TENSORS`.

  Raises:
    UserError: a variable is missing, or the keys have a bias.
  """
  made = {}
  for ours, theirs in huggingface.TENSORS.items():
    stack, _, rest = ours.partition("/layers/")
    if not rest:
      made[theirs] = variables[_outside(ours)]
      continue
    layer, _, leaf = rest.rpartition("/")
    name, parts, part = _PARTS[layer]
    leaf = _LEAVES.get(leaf, "beta" if layer.endswith("_norm") else leaf)
    for i in range(getattr(config, f"{stack}_layers")):
      whole = variables[f"{stack}/layer_{i}/{name}/{leaf}"]
      made[theirs.format(i)] = np.split(whole, parts)[part]
      if layer.endswith("key"):
        # Whisper has none, and others' would be dropped here.
        bias = variables[f"{stack}/layer_{i}/{name}/bias"]
        if np.split(bias, parts)[part].any():
          raise UserError(
            f"{path}: the keys of {stack} layer {i} have a bias, wanted none; "
            "it is a model of another kind."
          )
  return made


def generation_config(
  raw: Mapping[str, Any], config: Config, token: Callable[[str], int | None]
) -> dict[str, Any]:
  """Makes what transformers generates by.

  Args:
    raw: the object in the folder's config.json.
    config: the model's.
    token: returns the token of a name, or None.

  Returns:
    The object for generation_config.json.
  """
  made = {
    "bos_token_id": config.decoder_start,
    "decoder_start_token_id": config.decoder_start,
    "eos_token_id": token("<|endoftext|>"),
    "pad_token_id": token("<|endoftext|>"),
    "max_length": config.context,
    "is_multilingual": config.vocab_size >= _MULTILINGUAL,
    "no_timestamps_token_id": token("<|notimestamps|>"),
    "suppress_tokens": raw.get("suppress_ids"),
    "begin_suppress_tokens": raw.get("suppress_ids_begin"),
  }
  return {name: value for name, value in made.items() if value is not None}


def _outside(path: str) -> str:
  """Names the variable of a parameter that is in no layer."""
  if path == "embed/embedding":
    return "decoder/embeddings/weight"
  stack, _, rest = path.partition("/")
  theirs = {
    "positions": "position_encodings/encodings",
    "norm/scale": "layer_norm/gamma",
    "norm/bias": "layer_norm/beta",
  }.get(rest, rest)
  return f"{stack}/{theirs}"
