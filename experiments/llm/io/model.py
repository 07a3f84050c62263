"""A language model: its config, its parameters and its tokenizer."""

from typing import Any, NamedTuple

from experiments.errors import UserError
from experiments.llm.families import registry
from experiments.llm.families.protocol import Config, Family, Network
from experiments.llm.io.extras import Extras
from experiments.llm.io.tokenizer import Tokenizer


class Model(NamedTuple):
  """A language model.

  Attributes:
    config: of one of the families.
    params: the parameters of `network()`; read from a file they are NumPy
      arrays, which `jax.device_put` puts on devices.
    tokenizer: its tokenizer.
    extras: what else its files hold, to be handed through. Tokenizer files are
      among them, so another tokenizer needs other extras.
  """

  config: Config
  params: Any
  tokenizer: Tokenizer
  extras: Extras = Extras()

  @property
  def family(self) -> Family:
    """The architecture that `config` belongs to."""
    return registry.of(self.config)

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """All tokens that end an answer, of the tokenizer and of the configs."""
    return tuple(sorted({self.tokenizer.eos, *self.extras.stop_tokens()}))

  def network(self) -> Network:
    """Makes the Linen module, in float32 and without rematerialization."""
    return registry.network(self.config)


def check_vocabulary(model: Model) -> None:
  """Checks that a model has all tokens of its tokenizer.

  Args:
    model: the model.

  Raises:
    UserError: the tokenizer has more tokens.
  """
  got, limit = model.tokenizer.vocab_size, model.config.vocab_size
  if got > limit:
    raise UserError(
      f"the tokenizer has {got} tokens, wanted at most {limit}, as many as the "
      "model has; they are not of one model."
    )
