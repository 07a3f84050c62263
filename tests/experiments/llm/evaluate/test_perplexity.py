"""Perplexity against a count in float64, target by target."""

import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate.perplexity import perplexity
from experiments.llm.families import llama
from tests.experiments.small_llama import (
  CONFIG,
  forward,
  make_params,
  make_tokens,
)

MODEL = llama.Network(CONFIG)
PARAMS = make_params(CONFIG)
TOKENS = make_tokens(24)


def naive(tokens, window, stride):
  """Each target from the first window in which it is predicted."""
  losses = []
  for target in range(1, len(tokens)):
    first = 0
    while target > first + window:
      first += stride
    logits, _ = forward(CONFIG, PARAMS, tokens[first:target])
    p = np.exp(logits[-1] - logits[-1].max())
    losses.append(-np.log(p[tokens[target]] / p.sum()))
  return np.exp(np.mean(losses))


# 23 targets: windows that fit exactly, that do not, and one that holds all.
@pytest.mark.parametrize(
  ("n", "stride"),
  [(24, 8), (24, 3), (24, 5), (24, 1), (17, 8), (9, 8), (9, 2), (10, 8)],
)
def test_every_target_is_scored_once_by_the_first_window(n, stride):
  wanted = naive(TOKENS[:n], 8, stride)
  for batch in (2, 3):
    got, scored = perplexity(
      MODEL, PARAMS, TOKENS[:n], window=8, stride=stride, batch=batch
    )
    assert scored == n - 1
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_text_shorter_than_a_window():
  wanted = naive(TOKENS[:6], 8, 8)
  for window in (5, 8, 80):
    got, scored = perplexity(
      MODEL, PARAMS, TOKENS[:6], window=window, stride=window, batch=3
    )
    assert scored == 5
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_overlap_matters():
  values = [naive(TOKENS, 8, stride) for stride in (1, 3, 5, 8)]
  assert np.ptp(values) > 0.01
  assert len(set(np.round(values, 4))) == 4


def test_a_model_that_knows_nothing_is_as_good_as_a_die():
  params = jax.tree.map(np.zeros_like, PARAMS)
  got, _ = perplexity(MODEL, params, TOKENS, window=8, stride=8, batch=2)
  np.testing.assert_allclose(got, CONFIG.vocab_size, rtol=1e-6)


def test_a_broken_model_is_infinitely_bad():
  params = {**PARAMS, "norm": {"scale": np.full(16, 1e6, np.float32)}}
  got, _ = perplexity(MODEL, params, TOKENS, window=8, stride=8, batch=2)
  assert got == np.inf


@pytest.mark.parametrize(
  ("tokens", "change", "match"),
  [
    (TOKENS, {"window": 81}, "sequences of 81 tokens, wanted at most 80"),
    (TOKENS, {"stride": 9}, "stride=9, wanted 1 to window=8"),
    (TOKENS, {"stride": 0}, "got stride=0"),
    (TOKENS, {"batch": 0}, "batch must be at least 1, got 0"),
    (TOKENS[:1], {}, "at least 2 tokens.* got 1"),
    (TOKENS.reshape(2, -1), {}, r"int64\[2, 12\], wanted a vector"),
    (TOKENS / 1, {}, r"float64\[24\]"),
    (TOKENS + 2, {}, "wanted 0 to 22"),
  ],
)
def test_errors(tokens, change, match):
  options = {"window": 8, "stride": 8, "batch": 2} | change
  with pytest.raises(UserError, match=match):
    perplexity(MODEL, PARAMS, tokens, **options)
