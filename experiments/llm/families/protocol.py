"""What an architecture of language models gives to the code that is for all.

A new architecture is a package with the attributes of `Family`, and one row in
registry.py. Its parameters are nested dicts that keep three rules, by which
files are read and kernels are pruned:

- Everything below `layers` is stacked over the layers: [layers, ...].
- A matrix is called `kernel` and is [in, out]; files hold it as [out, in].
- The layer that owns a kernel below `layers` is called with one array
  [..., in], so that pruning can observe its inputs.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import linen as nn

from experiments.errors import UserError

LAYERS = "layers"


class Config(Protocol):
  """The sizes of one model: a frozen dataclass, whose fields JSON can hold.

  Attributes:
    vocab_size: the number of tokens that have an embedding.
    layers: the number of blocks.
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

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t]; a token sees the cache up to its own.
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

  def read_config(
    self,
    fields: Mapping[str, Any],
    *,
    names: Collection[str],
    load: Callable[[str], np.ndarray],
    path: Any,
  ) -> Config:
    """Makes the config from a file's metadata.

    Args:
      fields: the metadata; indexing one that is missing raises a UserError.
      names: of the file's tensors.
      load: returns the values of a tensor, float32.
      path: the file, for errors.

    Raises:
      UserError: a value is missing, or asks for what the family has not.
    """

  def restore(
    self, fields: Mapping[str, Any], config: Config, name: str, x: np.ndarray
  ) -> np.ndarray:
    """Undoes what the file's converter did to a tensor, [out, in] or [n]."""


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
    gguf: how GGUF files hold its models.
  """

  NAME: str
  Config: type
  Network: Callable[..., Network]
  from_sizes: Callable[..., Config]
  huggingface: HuggingFaceFiles
  gguf: GgufFiles


def is_stacked(path: str) -> bool:
  """Returns whether a parameter, "a/b/c", is stacked over the layers."""
  return path.startswith(f"{LAYERS}/")


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
