"""The model, from a spectrogram and tokens to float32 logits."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.errors import UserError
from experiments.llm.families import encoder_decoder, layers
from experiments.llm.families.encoder_decoder import Entered
from experiments.llm.families.protocol import SPECTROGRAMS, check_length
from experiments.llm.families.whisper.block import PARTS
from experiments.llm.families.whisper.config import sinusoids


class Convolution(nn.Module):
  """A convolution over three frames, with a zero before and one after.

  Its `weight` [features, in, 3] is no matrix, so not called `kernel`: it stays
  dense, and floats in packed files.

  Attributes:
    features: the size of the output's last axis.
    stride: frames from one output to the next.
    dtype: in which to compute.
  """

  features: int
  stride: int = 1
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x[batch, frames, in] to [batch, frames / stride, features]."""
    shape = (self.features, x.shape[-1], 3)
    weight = self.param("weight", layers.INIT, shape)
    bias = self.param("bias", nn.initializers.zeros, shape[:1])
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      jnp.asarray(weight, self.dtype),
      window_strides=(self.stride,),
      padding=((1, 1),),
      dimension_numbers=("NWC", "OIW", "NWC"),
    )
    return y + jnp.asarray(bias, self.dtype)


class Encoder(encoder_decoder.Encoder):
  """The encoder's blocks, after two convolutions: `conv1` and `conv2`."""

  parts = PARTS

  def setup(self) -> None:
    """Makes the layers."""
    super().setup()
    c = self.config
    self.conv1 = Convolution(c.dim, dtype=self.dtype)
    self.conv2 = Convolution(c.dim, stride=2, dtype=self.dtype)
    # A parameter since files hold it, but not learned.
    shape = (c.source_context, c.dim)
    self.positions = self.param("positions", lambda _: sinusoids(*shape))

  def listen(self, source: jax.Array) -> jax.Array:
    """Maps a spectrogram [batch, frames, mels] to [batch, frames / 2, dim]."""
    x = nn.gelu(self.conv1(source), approximate=False)
    x = nn.gelu(self.conv2(x), approximate=False)
    return x + jax.lax.stop_gradient(self.positions).astype(x.dtype)


class Decoder(encoder_decoder.Decoder):
  """The decoder's blocks, with learned `positions` before them."""

  parts = PARTS

  def setup(self) -> None:
    """Makes the layers."""
    super().setup()
    c = self.config
    self.positions = self.param("positions", layers.INIT, (c.context, c.dim))

  def place(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Adds the positions int32[batch or 1, t] to x [batch, t, dim]."""
    return x + jnp.asarray(self.positions, x.dtype)[positions]


class Network(encoder_decoder.EncoderDecoder):
  """The model: an `EncoderDecoder` whose source is a spectrogram.

  Layers: `embed`, which is the head too, `encoder` of `conv1`, `conv2`,
  `positions`, `layers` and `norm`, and `decoder` of `positions`, `layers` and
  `norm`. A source is [batch, config.frames, config.mels], as `log_mel` makes
  it; silence at its end is heard, so there is no `source_real`.

  Attributes:
    config: the model's, a `Config`.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
  """

  encoder_class = Encoder
  decoder_class = Decoder
  source_kind = SPECTROGRAMS

  def read(self, source: jax.Array, source_real: jax.Array | None) -> Entered:
    """Makes the encoder's first x of a spectrogram.

    Args:
      source: [batch, config.frames, config.mels].
      source_real: None.

    Returns:
      The stream [batch, config.source_context, dim], and nothing beside it.

    Raises:
      UserError: the spectrogram has another shape, or a part of it is padding.
    """
    c = self.config
    wanted = (c.frames, c.mels)
    if source.shape[1:] != wanted:
      raise UserError(
        f"whisper: got a source of shape {source.shape}, wanted [batch, "
        f"{wanted[0]}, {wanted[1]}], as log_mel pads recordings."
      )
    if source_real is not None:
      raise UserError(
        "whisper: got source_real, wanted None, for the encoder hears the "
        "silence that recordings are padded with."
      )
    return self.encoder.listen(layers.split_batch(source)), {}

  def embed(
    self, tokens: jax.Array, *, positions: jax.Array, length: int
  ) -> Entered:
    """Makes the decoder's first x of tokens int32[batch, t]."""
    del length
    check_length(self.config, tokens.shape[1])
    x = layers.split_batch(self.embedding(tokens))
    return self.decoder.place(x, positions), {}

  @nn.nowrap
  def blank(self) -> np.ndarray:
    """Returns a source of one sequence, of zeros."""
    return np.zeros((1, self.config.frames, self.config.mels), np.float32)
