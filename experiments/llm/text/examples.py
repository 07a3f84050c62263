"""Token sequences to train on."""

from typing import NamedTuple

import numpy as np

from experiments.data.failures import DataError


class Examples(NamedTuple):
  """Sequences of one length, padded on the right.

  Attributes:
    tokens: int32[n, length].
    targets: bool[n, length], the tokens whose prediction counts in a loss;
      never the first of a sequence.
    real: bool[n, length], the tokens that are not padding.
    source: what an encoder-decoder reads before the tokens, other tokens
      int32[n, s] or numbers [n, ...]; None for others.
    source_real: bool[n, s], what of it is no padding; all if None.
  """

  tokens: np.ndarray
  targets: np.ndarray
  real: np.ndarray
  source: np.ndarray | None = None
  source_real: np.ndarray | None = None

  @property
  def inputs(self) -> dict[str, np.ndarray | None]:
    """What a network is called with, by name."""
    if self.source is None:
      return {"tokens": self.tokens}
    names = ("tokens", "real", "source", "source_real")
    return {name: getattr(self, name) for name in names}


def sequences(tokens: np.ndarray, *, length: int) -> np.ndarray:
  """Cuts a text into sequences, and drops the tokens that do not fill one.

  Args:
    tokens: int32[n], the text.
    length: of the sequences, in tokens.

  Returns:
    int32[n // length, length].

  Raises:
    DataError: the text is shorter than a sequence.
  """
  n = len(tokens) // length
  if n < 1:
    raise DataError(
      f"the text to train on has {len(tokens)} tokens, fewer than a sequence "
      f"of {length}; take more text, or shorter sequences"
    )
  return tokens[: n * length].reshape(n, length)


def from_text(tokens: np.ndarray, *, length: int) -> Examples:
  """Cuts a text into sequences, and drops the tokens that do not fill one.

  Args:
    tokens: int32[n], the text.
    length: of the sequences, in tokens.

  Returns:
    n // length examples, all but whose first tokens are targets.

  Raises:
    DataError: the text is shorter than a sequence.
  """
  cut = sequences(tokens, length=length)
  targets = np.ones(cut.shape, bool)
  targets[:, 0] = False
  return Examples(cut, targets, np.ones(cut.shape, bool))


def draw(examples: Examples, *, count: int, seed: int) -> Examples:
  """Draws examples, uniformly, as calibration sets are drawn.

  Args:
    examples: at least one.
    count: how many, of which some may be the same.
    seed: of the draws.

  Returns:
    The examples.

  Raises:
    DataError: count is below 1.
  """
  if count < 1:
    raise DataError(f"examples: count must be at least 1, got {count}.")
  rng = np.random.default_rng(seed)
  chosen = rng.integers(len(examples.tokens), size=count)
  return Examples(*(x if x is None else x[chosen] for x in examples))
