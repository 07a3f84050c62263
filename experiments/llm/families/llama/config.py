"""The sizes of one model, and the frequencies of its rotary embedding."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes and options in which models of the family differ.

  Attributes:
    vocab_size: the number of tokens that have an embedding.
    dim: width of the residual stream.
    layers: the number of blocks.
    heads: the number of heads of the queries.
    kv_heads: the number of heads of keys and values, a divisor of `heads`: each
      serves heads / kv_heads heads of queries.
    head_dim: width of one head, even.
    hidden: units of the feed-forward layer.
    context: the length of the longest sequence, in tokens.
    rope_theta: base of the rotary embedding's wavelengths.
    norm_eps: what RMSNorm adds to the mean square.
    tied: whether the output layer is the embedding.
    qkv_bias: whether queries, keys and values have biases, as in Qwen2.
    window: the number of tokens a query attends to, its own included, as in
      Mistral; None for all before it.
    rope_scaling: LLaMA 3.1's (factor, low_freq_factor, high_freq_factor,
      original_context), or None; see `rope_frequencies`.

  Raises:
    UserError: a value is out of range, or does not fit another.
  """

  vocab_size: int
  dim: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  context: int
  rope_theta: float
  norm_eps: float
  tied: bool
  qkv_bias: bool = False
  window: int | None = None
  rope_scaling: tuple[float, float, float, float] | None = None

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      if name in ("tied", "qkv_bias", "rope_scaling") or value is None:
        continue
      if not value > 0:
        raise UserError(f"llama: {name} must be positive, got {value!r}.")
    if self.heads % self.kv_heads:
      raise UserError(
        f"llama: heads must be a multiple of kv_heads, got {self.heads} and "
        f"{self.kv_heads}."
      )
    if self.head_dim % 2:
      raise UserError(
        "llama: head_dim must be even, since the rotary embedding turns pairs, "
        f"got {self.head_dim}."
      )
    scaling = self.rope_scaling
    if scaling is not None and not (
      isinstance(scaling, tuple)
      and len(scaling) == 4
      and min(scaling) > 0
      and scaling[1] < scaling[2]
    ):
      raise UserError(
        "llama: rope_scaling must be a tuple of four positive numbers, factor, "
        "low_freq_factor, a higher high_freq_factor and original_context, got "
        f"{scaling!r}."
      )


def from_sizes(*, dim: int, heads: int, **sizes: int) -> Config:
  """Makes the config of a model that is to be trained from scratch.

  Args:
    dim: width of the residual stream.
    heads: the number of heads of the queries, a divisor of `dim`.
    **sizes: of `Config`: vocab_size, layers, kv_heads, hidden, context.

  Returns:
    The config: a tied embedding, and LLaMA 2's rope_theta and norm_eps.

  Raises:
    UserError: the sizes do not fit together.
  """
  if dim % heads:
    raise UserError(
      f"model: got dim={dim} and heads={heads}, wanted heads that divide dim"
    )
  return Config(
    dim=dim,
    heads=heads,
    head_dim=dim // heads,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied=True,
    **sizes,
  )


def resized(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Config:
  """Makes the config of a model whose layers have other widths.

  Args:
    config: of the model that it comes from.
    shapes: of one layer's parameters, by path.

  Returns:
    The config: heads of the width that they have, and hidden units.

  Raises:
    UserError: the widths do not fit together.
  """
  heads, kv_heads = (
    shapes[f"attention/{name}/kernel"][1] // config.head_dim
    for name in ("query", "key")
  )
  return dataclasses.replace(
    config,
    heads=heads,
    kv_heads=kv_heads,
    hidden=shapes["mlp/gate/kernel"][1],
  )


def rope_frequencies(config: Config) -> np.ndarray:
  """Computes the angles, in radians per position, that turn a head's pairs.

      frequency[i] = rope_theta ** (-2 i / head_dim)

  Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
  arXiv 2104.09864, section 3.2.2. With `rope_scaling`, LLaMA 3.1's change of
  them for long contexts (meta-llama/llama-models, `apply_scaling`):

      turns = original_context * frequency / (2 pi)
      kept = clip((turns - low_freq_factor)
                  / (high_freq_factor - low_freq_factor), 0, 1)
      frequency <- kept * frequency + (1 - kept) * frequency / factor

  Args:
    config: the model's.

  Returns:
    float64[head_dim / 2].
  """
  frequencies = config.rope_theta ** (
    -np.arange(0, config.head_dim, 2) / config.head_dim
  )
  if config.rope_scaling is None:
    return frequencies
  factor, low, high, original_context = config.rope_scaling
  turns = original_context * frequencies / (2 * np.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return kept * frequencies + (1 - kept) * frequencies / factor
