"""The model, from tokens to float32 logits."""

from flax import linen as nn

from experiments.llm.families.decoder import Decoder
from experiments.llm.families.llama.block import Block, rms_norm


class Network(Decoder):
  """The model: a `Decoder` of `Block`s, whose positions turn queries and keys.

  Attributes:
    config: the model's, a `Config`.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
  """

  @nn.nowrap
  def block(self) -> Block:
    """Returns the module of one layer, which runs alone."""
    return Block(self.config, self.dtype)

  @nn.nowrap
  def final_norm(self) -> nn.RMSNorm:
    """Returns the module between the last layer and the head."""
    return rms_norm(self)
