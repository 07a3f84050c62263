"""What an architecture of language models gives to the code that is for all.

A new architecture is a package with the attributes of `Family`, and one row in
registry.py. Its parameters are nested dicts that keep four rules, by which
files are read, and kernels pruned and rounded:

- Everything below `layers` is stacked over the layers: [layers, ...]. Such a
  stack may lie below other names, as `encoder/layers` and `decoder/layers` do.
- A matrix is called `kernel` and is [in, out]; files hold it as [out, in].
- The layer that owns a kernel below `layers` is called with one array
  [..., in], so that pruning can observe its inputs; and with `where`, bool
  [...], if some of its positions are padding.
- The table of tokens is `embed/embedding`, of a `layers.Embed`; what makes
  logits is that table, or `head/kernel`.

An encoder-decoder is a family whose network is an `EncoderDecoder`: its tokens
follow a source, other tokens or a recording, which an encoder reads first. The
module of encoder_decoder.py has what such networks have in common.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import linen as nn

from experiments.errors import UserError
from experiments.llm.families.reading import GgufHeader

LAYERS = "layers"
EMBEDDING, HEAD = "embed/embedding", "head/kernel"
TOKENS, SPECTROGRAMS = "tokens", "spectrograms"


class Config(Protocol):
  """The sizes of one model: a frozen dataclass, whose fields JSON can hold.

  Attributes:
    vocab_size: the number of tokens that have an embedding.
    layers: the number of blocks, in an encoder-decoder of both stacks together.
    context: the length of the longest sequence, in tokens.
  """

  vocab_size: int
  layers: int
  context: int


class Network(Protocol):
  """A Linen module that computes logits; hashable, so static under jit.

  `init` and `apply` are Linen's; all methods but `block` and `init_cache` need
  parameters, as in `network.apply({"params": params}, x, method="logits")`.

  Attributes:
    config: the model's sizes.
    dtype: the dtype of the products.
  """

  config: Config
  dtype: jax.typing.DTypeLike
  init: Callable[..., Any]
  apply: Callable[..., Any]

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens int32[batch, t] to logits float32[batch, t, vocab_size]."""

  def with_hidden(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the logits and the hidden states [layers + 1, batch, t, dim].

    The first are the embeddings, the last what the logits are computed from.
    """

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens int32[batch, t] to the first block's input [batch, t, dim].

    Needs no parameters below `layers`.
    """

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps the last block's output [..., dim] to float32[..., vocab_size]."""

  def extend(
    self, tokens: jax.Array, *, positions: jax.Array, cache: Any
  ) -> tuple[jax.Array, Any]:
    """Runs tokens that follow those in a cache.

    Parameters and cache may be as `layers.apart` leaves them.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t], consecutive in each sequence and below the
        cache's length; a token sees the cache up to its own.
      cache: from `init_cache` or the last call.

    Returns:
      The last block's output [batch, t, dim], and the cache with the tokens.
    """

  def block(self) -> nn.Module:
    """Returns the module of one layer, which maps [batch, t, dim] to the same.

    Its parameters are those below `layers`, at one index of the first axis.
    """

  def init_cache(
    self, batch: int, length: int, dtype: jax.typing.DTypeLike | None = None
  ) -> Any:
    """Makes an empty cache for `batch` sequences of up to `length` tokens."""


class Stack(NamedTuple):
  """Blocks of equal shapes, one after another.

  Attributes:
    path: where their parameters are, such as "encoder/layers", stacked.
    count: the number of blocks.
    block: the module of one, which maps x [batch, t, dim] and keywords to x.
    enter: `(network, inputs, before) -> (x, keywords)` of the first block,
      to be called as `network.apply(variables, inputs, before, method=enter)`
      with parameters that need not have those below `layers`. `inputs` are the
      network's arguments by name, and `before` is the x after the last block of
      the stack before, None in the first.
  """

  path: str
  count: int
  block: nn.Module
  enter: Callable[..., tuple[jax.Array, dict[str, Any]]]


class EncoderDecoder(Protocol):
  """A Linen module whose logits are of tokens that follow a source.

  It differs from `Network` as follows; `config`, `dtype`, `init`, `apply`,
  `logits` and `extend` are alike. Its config has `decoder_start`, the token
  that every sequence of the decoder begins with.

  Attributes:
    source_kind: what the encoder reads, TOKENS or SPECTROGRAMS; the class has
      it, too.
  """

  source_kind: str

  config: Config
  dtype: jax.typing.DTypeLike
  init: Callable[..., Any]
  apply: Callable[..., Any]

  def __call__(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    source_real: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> jax.Array:
    """Maps a source and the tokens after it to logits.

    Args:
      tokens: int32[batch, t], of which the first is `decoder_start`.
      source: what the encoder reads: tokens int32[batch, s], or numbers
        [batch, ...].
      source_real: bool[batch, s], what of the source is no padding; all if
        None.
      real: bool[batch, t], the tokens that are not padding, which is on the
        right. It changes no logits but those of padding; pruning heeds it.

    Returns:
      float32[batch, t, vocab_size].
    """

  def with_hidden(
    self, tokens: jax.Array, **source: Any
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the logits, and the hidden states of encoder and decoder.

    Each are as in `Network.with_hidden`, with the encoder's own layers and
    positions: [encoder_layers + 1, batch, s, dim], the last of them normed.
    """

  def start(
    self,
    source: jax.Array,
    *,
    source_real: jax.Array | None = None,
    length: int,
    dtype: jax.typing.DTypeLike | None = None,
  ) -> Any:
    """Runs the encoder, and makes a cache for `extend`.

    It takes the place of `init_cache`, and needs parameters.

    Args:
      source: as in `__call__`.
      source_real: as in `__call__`.
      length: the most tokens that each sequence can have.
      dtype: of the keys and values; by default the compute dtype.

    Returns:
      The cache, with the keys and values of the source and none of tokens.
    """

  def stacks(self) -> tuple[Stack, Stack]:
    """Returns the encoder's blocks and the decoder's; needs no parameters."""

  def blank(self) -> np.ndarray:
    """Returns a source of one sequence, of zeros; needs no parameters."""


class HuggingFaceFiles(Protocol):
  """How folders of Hugging Face's transformers hold a family's models.

  Attributes:
    MODEL_TYPES: values of `model_type` in config.json that belong to it.
    TENSORS: the tensor's name by parameter path; {} stands for the layer.
    IGNORED: suffixes of tensors that only repeat what config.json says.
  """

  MODEL_TYPES: Collection[str]
  TENSORS: Mapping[str, str]
  IGNORED: tuple[str, ...]

  def read_config(self, raw: Mapping[str, Any], *, path: Any) -> Config:
    """Makes the config from the object in config.json.

    Raises:
      UserError: a value is missing, or asks for what the family has not.
    """

  def config_json(self, config: Config) -> dict[str, Any]:
    """Makes the object for config.json, but for dtypes and special tokens.

    Raises:
      UserError: no `model_type` has this config.
    """

  def duplicates(self, config: Config) -> Mapping[str, str]:
    """Returns tensors that files may hold beside the one that they repeat.

    Returns:
      The original's name by the duplicate's.
    """


class GgufFiles(Protocol):
  """How GGUF files hold a family's models.

  Attributes:
    ARCHITECTURES: values of `general.architecture` that belong to it.
    TENSORS: the tensor's name by parameter path; {} stands for the layer.
    CONFIG_TENSORS: tensors that belong to the config, not to the parameters.
  """

  ARCHITECTURES: Collection[str]
  TENSORS: Mapping[str, str]
  CONFIG_TENSORS: Collection[str]

  def read_config(self, header: GgufHeader) -> Config:
    """Makes the config from what the file says.

    Raises:
      UserError: a value is missing, or asks for what the family has not.
    """

  def restore(
    self, header: GgufHeader, config: Config, name: str, x: np.ndarray
  ) -> np.ndarray:
    """Undoes what the file's converter did to a tensor, [out, in] or [n]."""


class Ctranslate2Files(Protocol):
  """How folders of CTranslate2 hold a family's models.

  Attributes:
    SPECS: the kinds of model in `model.bin` that belong to it.
    START: the name of the token that sequences of the decoder begin with.
  """

  SPECS: Collection[str]
  START: str

  def read_config(
    self, variables: Mapping[str, np.ndarray], *, start: int, path: Any
  ) -> Config:
    """Makes the config from a file's variables.

    Args:
      variables: by name; indexing one that is missing raises a UserError.
      start: the token that every sequence of the decoder begins with.
      path: the file, for errors.

    Raises:
      UserError: a variable is missing, or asks for what the family has not.
    """

  def tensors(
    self, variables: Mapping[str, np.ndarray], config: Config, *, path: Any
  ) -> dict[str, np.ndarray]:
    """Makes the tensors of a folder of transformers, by name.

    Raises:
      UserError: a variable is missing, or what it holds is not in a folder.
    """

  def generation_config(
    self,
    raw: Mapping[str, Any],
    config: Config,
    token: Callable[[str], int | None],
  ) -> dict[str, Any]:
    """Makes what transformers generates by, of the object in config.json."""


class Family(Protocol):
  """An architecture; a module of these attributes is one.

  Attributes:
    NAME: its name in packed files and in configs of untrained models.
    Config: its class of configs.
    Network: makes its Linen module, `Network(config, remat=..., dtype=...)`.
      `remat` says what the backward pass recomputes: "none", the default,
      "full", which keeps only the input of each layer, or the name of a policy
      in `jax.checkpoint_policies` that takes no arguments. `dtype` is that of
      the products, float32 by default.
    from_sizes: makes the config of a model to be trained from scratch, from the
      keywords vocab_size, dim, layers, heads, kv_heads, hidden and context.
    huggingface: how folders of transformers hold its models.
    gguf: how GGUF files hold its models; None if none is read.

  Three more a family may have. `resized(config, shapes) -> Config`, if its
  models may have fewer heads and hidden units than their width suggests: it
  makes the config of the model whose layers have parameters of these shapes, by
  path. `ctranslate2`, how folders of CTranslate2 hold its models. And `FIXED`,
  the paths of parameters that are never learned, whose gradients its network
  stops: see `fixed`.
  """

  NAME: str
  Config: type
  Network: Callable[..., Network | EncoderDecoder]
  from_sizes: Callable[..., Config]
  huggingface: HuggingFaceFiles
  gguf: GgufFiles | None


def fixed(family: Family) -> Collection[str]:
  """Returns the paths of a family's parameters that training leaves alone."""
  return getattr(family, "FIXED", ())


def source_kind(network: Any) -> str | None:
  """Returns what a network, or its class, reads first; None if nothing."""
  return getattr(network, "source_kind", None)


def has_encoder(network: Any) -> bool:
  """Returns whether a network, or the class of one, is an `EncoderDecoder`."""
  return source_kind(network) is not None


def stacks(network: Network | EncoderDecoder) -> tuple[Stack, ...]:
  """Returns the stacks of blocks of any network, in the order they run."""
  if has_encoder(network):
    return network.stacks()
  layers = network.config.layers
  return (Stack(LAYERS, layers, network.block(), _embed),)


def _embed(
  network: Network, inputs: Mapping[str, jax.Array], before: None
) -> tuple[jax.Array, dict[str, Any]]:
  """Enters the only stack of a decoder; see `Stack.enter`."""
  del before
  return network.embed(inputs["tokens"]), {}


def init(network: Network | EncoderDecoder, key: jax.Array) -> Any:
  """Makes the first parameters of any network."""
  source = {"source": network.blank()} if has_encoder(network) else {}
  return network.init(key, np.zeros((1, 2), np.int32), **source)["params"]


def is_stacked(path: str) -> bool:
  """Returns whether a parameter, "a/b/c", is stacked over the layers."""
  return f"/{LAYERS}/" in f"/{path}"


def is_kernel(path: str) -> bool:
  """Returns whether a parameter is a matrix, which files hold transposed."""
  return path.endswith("/kernel")


def is_layer_kernel(path: str) -> bool:
  """Returns whether a parameter is a layer's matrix: one that is pruned."""
  return is_stacked(path) and is_kernel(path)


def check_tokens(config: Config, tokens: np.ndarray) -> None:
  """Checks that a model has all tokens; others would have logits of NaN.

  Args:
    config: the model's.
    tokens: integers on the host, of any shape.

  Raises:
    UserError: one is outside 0 to vocab_size - 1.
  """
  low, high = np.min(tokens), np.max(tokens)
  if low < 0 or high >= config.vocab_size:
    raise UserError(
      f"tokens: got some from {low} to {high}, wanted 0 to "
      f"{config.vocab_size - 1}; use the tokenizer that belongs to the model."
    )


def check_length(config: Config, length: int) -> None:
  """Checks that sequences of `length` tokens fit into a model's context.

  Raises:
    UserError: they do not.
  """
  if length > config.context:
    raise UserError(
      f"model: got sequences of {length} tokens, wanted at most "
      f"{config.context}, the model's context; cut them, or choose a model "
      "whose context is longer."
    )
