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
  """

  tokens: np.ndarray
  targets: np.ndarray
  real: np.ndarray


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
  n = len(tokens) // length
  if n < 1:
    raise DataError(
      f"the text to train on has {len(tokens)} tokens, fewer than a sequence "
      f"of {length}; take more text, or shorter sequences"
    )
  sequences = tokens[: n * length].reshape(n, length)
  targets = np.ones(sequences.shape, bool)
  targets[:, 0] = False
  return Examples(sequences, targets, np.ones(sequences.shape, bool))
