"""A recurrent network that reads text byte by byte."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models import layers


class CharacterGRU(nn.Module):
  """The character-level language model of RigL's paper.

  Evci et al., arXiv 1911.11134, section 4.2 and appendix I: a shared embedding,
  a GRU, and a readout of two linear layers; what comes out is compared with the
  embeddings of all characters. The paper does not say what lies between the
  layers of the readout; here it is a ReLU.

  Layers: `embed`, `cell/{ir, iz, in, hr, hz, hn}`, `readout1`, ...

  Attributes:
    num_classes: Number of characters.
    embedding: Length of a character's vector, and of the last readout.
    units: Of the GRU.
    readout: Units of the layers before the last readout.
    kernel_init: Name of the kernels' initializer.
    dtype: The compute dtype; parameters and logits are float32.
  """

  num_classes: int
  embedding: int = 128
  units: int = 512
  readout: Sequence[int] = (256,)
  kernel_init: str = "lecun_normal"
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps integers x[batch, length] to float32[batch, length, num_classes]."""
    del train
    embed = nn.Embed(
      self.num_classes, self.embedding, dtype=self.dtype, name="embed"
    )
    h = embed(x.astype(jnp.int32))
    cell = nn.GRUCell(
      self.units,
      kernel_init=layers.initializer(self.kernel_init),
      dtype=self.dtype,
      name="cell",
    )
    h = nn.RNN(cell, name="gru")(h)
    widths = (*self.readout, self.embedding)
    for i, units in enumerate(widths, 1):
      h = nn.relu(h) if i > 1 else h
      h = layers.dense(self, units, name=f"readout{i}")(h)
    return jnp.asarray(embed.attend(h), jnp.float32)
