"""The sizes of one model, and the positions of its encoder."""

import dataclasses

import numpy as np

from experiments.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes in which models of the family differ.

  Attributes:
    vocab_size: the number of tokens that have an embedding.
    dim: width of the residual streams, even.
    encoder_layers: the number of blocks of the encoder.
    decoder_layers: the number of blocks of the decoder.
    heads: the number of attention heads, a divisor of `dim`.
    hidden: units of the feed-forward layers.
    context: the most tokens of the decoder.
    decoder_start: the token that every sequence of the decoder begins with.
    mels: bands of the spectrogram.
    source_context: positions of the encoder, of 20 ms each: it reads twice as
      many frames of the spectrogram, no fewer.

  Raises:
    UserError: a value is out of range, or does not fit another.
  """

  vocab_size: int
  dim: int
  encoder_layers: int
  decoder_layers: int
  heads: int
  hidden: int
  context: int
  decoder_start: int
  mels: int = 80
  source_context: int = 1500

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      if name != "decoder_start" and not value > 0:
        raise UserError(f"whisper: {name} must be positive, got {value!r}.")
    if not 0 <= self.decoder_start < self.vocab_size:
      raise UserError(
        f"whisper: decoder_start must be a token, 0 to {self.vocab_size - 1}, "
        f"got {self.decoder_start}."
      )
    if self.dim % self.heads or self.dim % 2 or self.dim < 4:
      raise UserError(
        "whisper: dim must be even, 4 or more, and a multiple of heads, got "
        f"{self.dim} and {self.heads}."
      )

  @property
  def layers(self) -> int:
    """The number of blocks in both stacks."""
    return self.encoder_layers + self.decoder_layers

  @property
  def head_dim(self) -> int:
    """The width of one head."""
    return self.dim // self.heads

  @property
  def frames(self) -> int:
    """The frames of the spectrogram that the encoder reads."""
    return 2 * self.source_context


def from_sizes(
  *, heads: int, kv_heads: int, layers: int, **sizes: int
) -> Config:
  """Makes the config of a model that is to be trained from scratch.

  Args:
    heads: the number of attention heads.
    kv_heads: as many as `heads`.
    layers: the number of blocks in the encoder, and in the decoder.
    **sizes: of `Config`: vocab_size, dim, hidden, context.

  Returns:
    The config: 80 bands, 30 s; texts begin with token 0.

  Raises:
    UserError: the sizes do not fit together.
  """
  if kv_heads != heads:
    raise UserError(
      f"whisper: got kv_heads={kv_heads} and heads={heads}, wanted as many: "
      "the heads of this family do not share keys and values."
    )
  return Config(
    heads=heads,
    encoder_layers=layers,
    decoder_layers=layers,
    decoder_start=0,
    **sizes,
  )


def sinusoids(length: int, dim: int) -> np.ndarray:
  """Computes the encoder's positions, which no model has learned.

      sin(t / w[i]) and, in the second half, cos(t / w[i]),
      w[i] = 10000 ** (i / (dim / 2 - 1))

  Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 3.5, in
  the order of whisper/model.py in openai/whisper.

  Args:
    length: the number of positions.
    dim: the width, even, 4 or more.

  Returns:
    float32[length, dim].

  Example:
    >>> sinusoids(3, 4).round(3).tolist()[1]
    [0.8410000205039978, 0.0, 0.5400000214576721, 1.0]
  """
  half = dim // 2
  wavelengths = 10_000.0 ** (np.arange(half) / (half - 1))
  angles = np.arange(length)[:, None] / wavelengths
  return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
