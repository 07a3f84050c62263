"""The sizes of one model, and the buckets of its relative positions."""

import dataclasses

import numpy as np

from experiments.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes and options in which models of the family differ.

  Attributes:
    vocab_size: the number of tokens that have an embedding.
    dim: width of the residual streams.
    encoder_layers: the number of the encoder's blocks.
    decoder_layers: the number of the decoder's.
    heads: the number of attention heads.
    head_dim: width of one head, which need not be dim / heads.
    hidden: units of the feed-forward layers.
    context: the length of the longest sequence, source or target, in tokens.
      Positions are relative, so the network itself has no limit.
    buckets: the number of distances that relative positions are sorted into.
    max_distance: the distance from which all are of the last bucket.
    norm_eps: what RMSNorm adds to the mean square.
    gated: whether feed-forward layers are gated by GELU, as in version 1.1;
      with ReLU and no gate if not.
    tied: whether the output layer is the embedding, and reads its input divided
      by sqrt(dim), as in version 1.0.
    decoder_start: the token that every target begins with, T5's padding.

  Raises:
    UserError: a value is out of range.
  """

  vocab_size: int
  dim: int
  encoder_layers: int
  decoder_layers: int
  heads: int
  head_dim: int
  hidden: int
  context: int
  buckets: int
  max_distance: int
  norm_eps: float
  gated: bool
  tied: bool
  decoder_start: int = 0

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      if name in ("gated", "tied", "decoder_start"):
        continue
      if not value > 0:
        raise UserError(f"t5: {name} must be positive, got {value!r}.")
    if not 0 <= self.decoder_start < self.vocab_size:
      raise UserError(
        f"t5: decoder_start must be a token, 0 to {self.vocab_size - 1}, got "
        f"{self.decoder_start}."
      )
    # Half of the encoder's are for each direction, and half of those for
    # distances of their own.
    if self.buckets % 4 or self.max_distance <= self.buckets // 2:
      raise UserError(
        "t5: buckets must be a multiple of 4, and max_distance more than half "
        f"of them, got {self.buckets} and {self.max_distance}."
      )

  @property
  def layers(self) -> int:
    """The number of blocks in both stacks."""
    return self.encoder_layers + self.decoder_layers


def from_sizes(
  *, dim: int, heads: int, kv_heads: int, layers: int, **sizes: int
) -> Config:
  """Makes the config of a model that is to be trained from scratch.

  Args:
    dim: width of the residual streams.
    heads: the number of attention heads, a divisor of `dim`.
    kv_heads: as many as `heads`.
    layers: the number of blocks in the encoder, and in the decoder.
    **sizes: of `Config`: vocab_size, hidden, context.

  Returns:
    The config: version 1.0 with a gated feed-forward layer; targets begin with
    token 0.

  Raises:
    UserError: the sizes do not fit together.
  """
  if dim % heads:
    raise UserError(
      f"model: got dim={dim} and heads={heads}, wanted heads that divide dim"
    )
  if kv_heads != heads:
    raise UserError(
      f"model: got kv_heads={kv_heads} and heads={heads}, wanted as many: t5 "
      "shares no keys between heads"
    )
  return Config(
    dim=dim,
    encoder_layers=layers,
    decoder_layers=layers,
    heads=heads,
    head_dim=dim // heads,
    buckets=32,
    max_distance=128,
    norm_eps=1e-6,
    gated=True,
    tied=True,
    **sizes,
  )


def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
  """Computes the bucket of every distance in one direction.

      d                                                 for d < buckets / 2
      h + floor(h log(d / h) / log(max_distance / h))   beyond, h = buckets / 2

  and at most buckets - 1. Raffel et al., arXiv 1910.10683, section 2.1; the
  formula is that of mesh_tensorflow/transformer/transformer_layers.py.

  Args:
    buckets: their number.
    max_distance: from which on the last bucket has all.

  Returns:
    int32[max_distance + 1].

  Example:
    >>> distance_buckets(8, 16)[[0, 3, 4, 5, 6, 8, 12, 16]].tolist()
    [0, 3, 4, 4, 5, 6, 7, 7]
  """
  near = buckets // 2
  distances = np.arange(max_distance + 1)
  # A ratio of logarithms that is a whole number may come out just below it.
  far = near * np.log(np.maximum(distances, 1) / near)
  far = near + np.floor(far / np.log(max_distance / near) + 1e-9)
  return np.where(
    distances < near, distances, np.minimum(far, buckets - 1)
  ).astype(np.int32)
