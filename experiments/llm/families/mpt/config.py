"""The sizes of one model, and the slopes of its linear biases."""

import dataclasses
from typing import ClassVar

import numpy as np

from experiments.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes and options in which models of the family differ.

  Attributes:
    vocab_size: the number of tokens that have an embedding.
    dim: width of the residual stream.
    layers: the number of blocks.
    heads: the number of attention heads, a divisor of `dim`.
    hidden: units of the feed-forward layer.
    context: the length of the longest sequence, in tokens.
    norm_eps: what LayerNorm adds to the variance.
    clip_qkv: the largest magnitude of what queries, keys and values keep, as in
      MPT-7B-StoryWriter; None for any.
    alibi_bias_max: the exponent of the smallest slope; see `alibi_slopes`.
    tied: whether the output layer is the embedding, which it always is.

  Raises:
    UserError: a value is out of range, or does not fit another.
  """

  vocab_size: int
  dim: int
  layers: int
  heads: int
  hidden: int
  context: int
  norm_eps: float = 1e-5
  clip_qkv: float | None = None
  alibi_bias_max: int = 8
  tied: ClassVar[bool] = True

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      if value is not None and not value > 0:
        raise UserError(f"mpt: {name} must be positive, got {value!r}.")
    if self.dim % self.heads:
      raise UserError(
        f"mpt: dim must be a multiple of heads, got {self.dim} and "
        f"{self.heads}."
      )

  @property
  def kv_heads(self) -> int:
    """The number of heads of keys and values: one for each of queries."""
    return self.heads

  @property
  def head_dim(self) -> int:
    """The width of one head."""
    return self.dim // self.heads


def from_sizes(
  *, dim: int, heads: int, kv_heads: int, hidden: int, **sizes: int
) -> Config:
  """Makes the config of a model that is to be trained from scratch.

  Args:
    dim: width of the residual stream.
    heads: the number of attention heads, a divisor of `dim`.
    kv_heads: as many as `heads`.
    hidden: units of the feed-forward layer, a multiple of `dim`, since files of
      Hugging Face's give their ratio.
    **sizes: of `Config`: vocab_size, layers, context.

  Returns:
    The config.

  Raises:
    UserError: the sizes do not fit together.
  """
  if kv_heads != heads:
    raise UserError(
      f"mpt: got kv_heads={kv_heads} and heads={heads}, wanted as many: the "
      "heads of this family do not share keys and values."
    )
  config = Config(dim=dim, heads=heads, hidden=hidden, **sizes)
  check_ratio(config)
  return config


def check_ratio(config: Config) -> int:
  """Returns how many times wider than the stream the feed-forward layer is.

  Raises:
    UserError: it is no whole number.
  """
  ratio, rest = divmod(config.hidden, config.dim)
  if rest:
    raise UserError(
      f"mpt: got hidden={config.hidden} and dim={config.dim}, wanted a "
      "multiple of dim, for config.json holds the ratio as an integer. Packed "
      "files keep models of any width: `python -m experiments.export`."
    )
  return ratio


def alibi_slopes(config: Config) -> np.ndarray:
  """Computes by how much a token's score falls with its distance, by head.

  For a power of two of heads, n, with the exponents evenly spaced:

      slope[i] = 2 ** -(alibi_bias_max * (i + 1) / n)

  For others, the slopes of the next power of two, every second one first.
  Press et al., "Train Short, Test Long: Attention with Linear Biases Enables
  Input Length Extrapolation", arXiv 2108.12409, section 3; for other numbers
  of heads the order is that of MosaicML's code (llm-foundry, `gen_slopes`),
  not the paper's.

  Args:
    config: the model's.

  Returns:
    float64[heads].

  Example:
    >>> sizes = dict(vocab_size=9, dim=6, layers=1, hidden=24, context=8)
    >>> alibi_slopes(Config(heads=2, **sizes)).tolist()
    [0.0625, 0.00390625]
    >>> alibi_slopes(Config(heads=3, **sizes)).tolist()
    [0.0625, 0.00390625, 0.25]
  """
  power = 1 << (config.heads - 1).bit_length()
  slopes = 2.0 ** -(config.alibi_bias_max / power * np.arange(1, power + 1))
  if power == config.heads:
    return slopes
  return np.concatenate([slopes[1::2], slopes[::2]])[: config.heads]
