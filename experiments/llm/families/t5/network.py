"""The model, from a source and tokens to float32 logits."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.llm.families import encoder_decoder, layers
from experiments.llm.families.encoder_decoder import Blocks, Entered
from experiments.llm.families.protocol import TOKENS, check_length
from experiments.llm.families.t5.block import PARTS
from experiments.llm.families.t5.config import distance_buckets


class _Stack(Blocks):
  """Blocks that share one bias of relative positions, `relative_bias`."""

  parts = PARTS

  def setup(self) -> None:
    """Makes the layers."""
    super().setup()
    c = self.config
    self.relative_bias = nn.Embed(
      c.buckets,
      c.heads,
      embedding_init=nn.initializers.normal(c.dim**-0.5),
      dtype=self.dtype,
    )

  def bias(self, positions: jax.Array, length: int, *, both: bool) -> jax.Array:
    """Computes what is added to the scores of positions 0 to length - 1.

    Args:
      positions: int32[batch or 1, t], of the queries.
      length: the number of keys.
      both: whether half of the buckets are for keys after the query; if not,
        these count as at the query, and are to be masked.

    Returns:
      Of shape [batch or 1, heads, t, length].
    """
    c = self.config
    after = jnp.arange(length) - positions[..., None]
    buckets = c.buckets // 2 if both else c.buckets
    distance = jnp.abs(after) if both else jnp.maximum(-after, 0)
    table = jnp.asarray(distance_buckets(buckets, c.max_distance))
    bucket = table[jnp.minimum(distance, c.max_distance)]
    if both:
      bucket += buckets * (after > 0)
    return jnp.moveaxis(self.relative_bias(bucket), -1, 1)


class Encoder(_Stack, encoder_decoder.Encoder):
  """The encoder's blocks, after whose `norm` the decoder reads."""


class Decoder(_Stack, encoder_decoder.Decoder):
  """The decoder's blocks."""


class Network(encoder_decoder.EncoderDecoder):
  """The model: an `EncoderDecoder` whose source is tokens.

  Layers: `embed`, which both sides share, `encoder` and `decoder`, each of
  `relative_bias`, `layers` and `norm`, and unless tied `head`.

  Attributes:
    config: the model's, a `Config`.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
  """

  encoder_class = Encoder
  decoder_class = Decoder
  source_kind = TOKENS
  embedding_init = staticmethod(nn.initializers.normal(1.0))

  def setup(self) -> None:
    """Makes the layers."""
    super().setup()
    if not self.config.tied:
      self.head = layers.Linear(self.config.vocab_size, dtype=self.dtype)

  def read(self, source: jax.Array, source_real: jax.Array | None) -> Entered:
    """Makes the encoder's first x of tokens int32[batch, s]."""
    length = source.shape[1]
    positions = jnp.arange(length)[None]
    bias = self.encoder.bias(positions, length, both=True)
    return self._embedded(source), {"bias": bias, "real": source_real}

  def embed(
    self, tokens: jax.Array, *, positions: jax.Array, length: int
  ) -> Entered:
    """Makes the decoder's first x of tokens int32[batch, t]."""
    bias = self.decoder.bias(positions, length, both=False)
    return self._embedded(tokens), {"bias": bias}

  def unembed(self, x: jax.Array) -> jax.Array:
    """Maps normed [..., dim] to logits float32[..., vocab_size]."""
    if self.config.tied:
      return super().unembed(x * self.config.dim**-0.5)
    return self.head(x).astype(jnp.float32)

  @nn.nowrap
  def blank(self) -> np.ndarray:
    """Returns a source of one sequence, of zeros."""
    return np.zeros((1, 2), np.int32)

  def _embedded(self, tokens: jax.Array) -> jax.Array:
    """Embeds tokens of either side, shared out among devices."""
    check_length(self.config, tokens.shape[1])
    return layers.split_batch(self.embedding(tokens))
