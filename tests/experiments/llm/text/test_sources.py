"""Spans that are left out of texts, and pairs of texts."""

import numpy as np
import pytest

from experiments.data.failures import DataError
from experiments.llm.io import tokenizer
from experiments.llm.text import sources

WORDS = tokenizer.byte_level(sentinels=8)
SENTINELS = list(range(257, 265))
SEQUENCES = np.random.default_rng(0).integers(
  256, size=(50, 40), dtype=np.int32
)


def corrupted(**options):
  return sources.corrupt_spans(SEQUENCES, WORDS, start=0, seed=1, **options)


def filled(source, target):
  """Puts the spans of a target back into a source; returns their lengths."""
  assert source[-1] == target[-1] == WORDS.eos
  spans, at = {}, None
  for token in target[:-1]:
    if token in SENTINELS:
      at = token
      spans[at] = []
    else:
      spans[at].append(token)
  assert list(spans) == SENTINELS[: len(spans)]
  assert spans.pop(at) == []  # The last sentinel ends the last span.
  text = []
  for token in source[:-1]:
    text += spans[token] if token in SENTINELS else [token]
  assert [t for t in source if t in SENTINELS] == list(spans)
  return text, [len(span) for span in spans.values()]


def test_spans_and_what_is_kept_make_the_text():
  examples = corrupted(density=0.2, span=2.0)
  lengths = []
  for i, sequence in enumerate(SEQUENCES):
    assert examples.tokens[i, 0] == 0
    text, spans = filled(
      examples.source[i].tolist(), examples.tokens[i, 1:].tolist()
    )
    assert text == sequence.tolist()
    assert sum(spans) == 8
    assert len(spans) == 4
    lengths += spans
  assert {1, 2, 3, 4} <= set(lengths) <= {1, 2, 3, 4, 5}
  assert not examples.targets[:, 0].any()
  assert examples.targets[:, 1:].all()
  assert examples.real.all()
  assert examples.source_real.all()
  inputs = examples.inputs
  assert list(inputs) == ["tokens", "real", "source", "source_real"]


def test_the_seed_says_where():
  same, other = (
    sources.corrupt_spans(SEQUENCES, WORDS, start=0, seed=seed)
    for seed in (1, 2)
  )
  np.testing.assert_array_equal(corrupted().source, same.source)
  assert (corrupted().source != other.source).any()


def test_all_ways_to_cut_are_equally_likely():
  rng = np.random.default_rng(0)
  parts = sources._random_parts(rng, 6000, 4, 3)
  kinds, counts = np.unique(parts, axis=0, return_counts=True)
  assert kinds.tolist() == [[1, 1, 2], [1, 2, 1], [2, 1, 1]]
  assert counts.min() > 1850
  assert sources._random_parts(rng, 2, 5, 1).tolist() == [[5], [5]]


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"density": 0.6, "span": 1.0}, "8 sentinels .* wanted 17, for 16 spans"),
    ({"density": 0.01}, "density=0.01 and span=3.0, wanted a share"),
    ({"density": 1.0}, "density=1.0"),
    ({"span": 0.5}, "span=0.5"),
  ],
)
def test_what_leaves_nothing_out_or_too_much(options, match):
  with pytest.raises(DataError, match=match):
    corrupted(**options)


def test_pairs_end_and_are_padded():
  made = sources.from_pairs(
    ["ab", "c"], ["x", "yz"], WORDS, start=0, length=4, target_length=4
  )
  a, b, c, x, y, z = b"abcxyz"
  assert made.source.tolist() == [[a, b, 256, 0], [c, 256, 0, 0]]
  assert made.source_real.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
  assert made.tokens.tolist() == [[0, x, 256, 0], [0, y, z, 256]]
  assert made.real.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
  assert made.targets.tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize(
  ("pairs", "match"),
  [
    (([], []), "0 sources and 0 targets"),
    ((["a"], ["b", "c"]), "1 sources and 2 targets"),
    ((["a", "abcd"], ["", ""]), "source of pair 1 has 5 tokens, .* most 4"),
    ((["a"], ["abc"]), "target of pair 0 has 5 tokens, wanted at most 4"),
  ],
)
def test_pairs_that_do_not_fit(pairs, match):
  with pytest.raises(DataError, match=match):
    sources.from_pairs(*pairs, WORDS, start=0, length=4, target_length=4)
