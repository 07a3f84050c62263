"""Examples whose tokens follow a source, for encoder-decoders.

Spans left out of a text, as T5 was trained, and pairs from a user's files.
"""

from collections.abc import Sequence

import numpy as np

from experiments.data.failures import DataError
from experiments.llm.io.tokenizer import Tokenizer
from experiments.llm.text.examples import Examples


def corrupt_spans(
  sequences: np.ndarray,
  tokenizer: Tokenizer,
  *,
  start: int,
  density: float = 0.15,
  span: float = 3.0,
  seed: int,
) -> Examples:
  """Leaves spans out of sequences, and makes these the targets.

  Of the sequence "a b c d e f", spans "b c" and "f" left out, the source is
  "a <extra_id_0> d e <extra_id_1> </s>" and the target is
  "<extra_id_0> b c <extra_id_1> f <extra_id_2> </s>".

  All examples have as many spans, and as many tokens in them, in random places
  and of random lengths: the sequence begins with what is kept, and ends with a
  span, as in T5's code. Raffel et al., arXiv 1910.10683, section 3.1.4 and
  figure 2.

  Args:
    sequences: int32[n, length].
    tokenizer: with sentinels.
    start: the token that targets begin with for the decoder.
    density: the share of the tokens that is left out.
    span: the mean length of a span, in tokens.
    seed: of the places and lengths.

  Returns:
    n examples without padding.

  Raises:
    DataError: the sequences are too short, or the tokenizer has too few
      sentinels.
  """
  n, length = sequences.shape
  noise = round(length * density)
  spans = max(round(noise / span), 1)
  if not (0 < density < 1 and span >= 1 and noise >= 1 and length > noise):
    raise DataError(
      f"spans: got sequences of {length} tokens, density={density} and "
      f"span={span}, wanted a share in (0, 1) that leaves out one token or "
      "more, in spans of one or more"
    )
  spans = min(spans, length - noise)
  sentinels = np.array(tokenizer.sentinels, np.int32)
  if len(sentinels) < spans + 1:
    raise DataError(
      f"spans: got a tokenizer with {len(sentinels)} sentinels <extra_id_...>, "
      f"wanted {spans + 1}, for {spans} spans in sequences of {length} tokens; "
      "take shorter ones, or a model with more: config.model.sentinels"
    )
  rng = np.random.default_rng(seed)
  lengths = np.stack(
    [_random_parts(rng, n, total, spans) for total in (length - noise, noise)],
    axis=-1,
  )
  left_out = np.tile([False, True], n * spans)
  left_out = np.repeat(left_out, lengths.reshape(-1)).reshape(n, length)
  first = left_out.copy()
  first[:, 1:] &= ~left_out[:, :-1]
  marks = sentinels[np.cumsum(first, axis=1) - 1]
  source = np.where(first, marks, sequences)[~left_out | first]
  both = np.stack([marks, sequences], axis=-1)
  target = both[np.stack([first, left_out], axis=-1)].reshape(n, -1)
  end = np.full((n, 1), tokenizer.eos, np.int32)
  source = np.hstack([source.reshape(n, -1), end])
  begin, last = np.full_like(end, start), np.full_like(end, sentinels[spans])
  tokens = np.hstack([begin, target, last, end])
  targets = np.ones(tokens.shape, bool)
  targets[:, 0] = False
  every = np.ones(source.shape, bool)
  return Examples(tokens, targets, np.ones_like(targets), source, every)


def from_pairs(
  sources: Sequence[str],
  targets: Sequence[str],
  tokenizer: Tokenizer,
  *,
  start: int,
  length: int,
  target_length: int,
) -> Examples:
  """Makes examples of texts and what is to follow them.

  Args:
    sources: at least one.
    targets: as many.
    tokenizer: the model's; its `eos` ends sources and targets.
    start: the token that targets begin with for the decoder, and that pads.
    length: of the sources, in tokens, `eos` included.
    target_length: of the targets, in tokens, `start` and `eos` included.

  Returns:
    The examples, padded.

  Raises:
    DataError: there are no pairs, or one does not fit.
  """
  if not sources or len(sources) != len(targets):
    raise DataError(
      f"pairs: got {len(sources)} sources and {len(targets)} targets, wanted "
      "as many, and one or more"
    )
  encode = tokenizer.encode
  read = [[*encode(text), tokenizer.eos] for text in sources]
  written = [[start, *encode(text), tokenizer.eos] for text in targets]
  source, source_real = _padded("source", read, length, start)
  tokens, real = _padded("target", written, target_length, start)
  counted = real.copy()
  counted[:, 0] = False
  return Examples(tokens, counted, real, source, source_real)


def _padded(
  what: str, rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads rows on the right; also returns what is no padding."""
  lengths = np.array([len(row) for row in rows])
  if lengths.max() > length:
    raise DataError(
      f"pairs: the {what} of pair {lengths.argmax()} has {lengths.max()} "
      f"tokens, wanted at most {length}; make examples longer, or leave it out"
    )
  real = np.arange(length) < lengths[:, None]
  tokens = np.full(real.shape, pad, np.int32)
  tokens[real] = np.concatenate([np.asarray(row, np.int32) for row in rows])
  return tokens, real


def _random_parts(
  rng: np.random.Generator, rows: int, total: int, parts: int
) -> np.ndarray:
  """Draws int[rows, parts], positive and of sum `total`, all equally likely."""
  cuts = rng.random((rows, total - 1)).argsort(axis=1)[:, : parts - 1] + 1
  ends = np.pad(np.sort(cuts, axis=1), [(0, 0), (1, 1)])
  ends[:, -1] = total
  return np.diff(ends, axis=1)
