"""Texts continued token by token, against whole batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import generate, stream
from experiments.llm.families import llama
from sparsejax import kernels
from tests.experiments.small_llama import SCALED, make_params, make_tokens

MODEL = llama.Network(dataclasses.replace(SCALED, tied=False, window=4))
PARAMS = make_params(MODEL.config)
TOKENS = make_tokens(80).tolist()
STEPS = 6


@pytest.fixture(scope="module")
def writer():
  return stream.Writer(MODEL, PARAMS)


def wanted(text, stop=()):
  (row,) = generate.greedy(MODEL, PARAMS, [text], steps=STEPS, stop=stop)
  return row


def test_a_conversation_reads_what_is_new_only(writer):
  """Texts that grow, change in the middle, and fill the whole context."""
  assert MODEL.config.context == 80
  list(writer.write([TOKENS[0] - 1], steps=1))  # Nothing in common.
  read, compiled, written = [], [], writer.written.tokens
  shorter = [*TOKENS[:7], *TOKENS[30:35]]
  for text in (TOKENS[:9], TOKENS[:30], shorter, TOKENS[:74], TOKENS[:74]):
    before = writer.read.tokens
    assert list(writer.write(text, steps=STEPS)) == wanted(text)
    read.append(writer.read.tokens - before)
    compiled.append(writer._advance._cache_size())
  assert read == [9, 21, 5, 67, 1]
  assert len({*compiled}) == 1
  assert writer.written.tokens - written == 5 * (STEPS - 1)
  assert writer.written.rate > 0


def test_the_last_answer_is_not_read_again(writer):
  text = TOKENS[:5]
  text = [*text, *writer.write(text, steps=STEPS), 3]
  before = writer.read.tokens
  assert list(writer.write(text, steps=STEPS)) == wanted(text)
  # The last token that was made had not been run yet.
  assert writer.read.tokens - before == 2


def test_bfloat16_goes_through_the_kernels():
  if not kernels.available(quiet=True):
    pytest.skip("the kernels are not available")
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  for tied in (False, True):
    config = dataclasses.replace(MODEL.config, tied=tied)
    params = {k: x for k, x in half.items() if not tied or k != "head"}
    model = llama.Network(config, dtype=jnp.bfloat16)
    one = stream.Writer(model, params)
    given = TOKENS[:9]
    made = list(one.write(given, steps=3))
    # Of the tokens that were made each is nearly the likeliest in float32.
    logits = llama.Network(config).apply(
      {"params": jax.tree.map(lambda x: x.astype(jnp.float32), params)},
      np.array([given + made]),
    )[0, len(given) - 1 : -1]
    best = np.max(logits, axis=-1)
    chosen = np.take_along_axis(logits, np.array(made)[:, None], -1)[:, 0]
    assert np.all(best - chosen < 0.02 * np.ptp(logits))
    # All weights but norms' scales and, untied, the table of tokens.
    arrays = [x for x in one._leaves if x.dtype == jnp.bfloat16 and x.ndim == 2]
    text = one._advance.lower(
      *(one._leaves, one._cache, np.zeros((1, 1), np.int32), 0, 0)
    ).as_text()
    assert text.count("call @sparsejax_multiply_masked") == 4 * 2 + 1
    assert len(arrays) == 7 * 2 + 2 - tied


def test_it_ends_before_a_stop(writer):
  whole = wanted(TOKENS[:9])
  for stop in {*whole}:
    made = list(writer.write(TOKENS[:9], steps=STEPS, stop=[stop]))
    assert made == whole[: whole.index(stop)]


def test_tokens_are_handed_over_as_they_come(writer):
  made = writer.write(TOKENS[:9], steps=STEPS)
  first = next(made)
  cache = writer._cache
  assert [first, next(made)] == wanted(TOKENS[:9])[:2]
  assert cache[0].key.is_deleted()  # donated, not copied
  args = writer._leaves, writer._cache, np.zeros((1, 1), np.int32)
  at = np.int32(0)
  program = writer._advance.lower(*args, at, at).compile()
  written = program.memory_analysis().alias_size_in_bytes
  assert written >= writer.memory()["cache"]
  assert "copy(%cache" not in program.as_text()
  made.close()
  assert list(writer.write(TOKENS[:9], steps=STEPS)) == wanted(TOKENS[:9])


def test_memory(writer):
  list(writer.write(TOKENS[:9], steps=STEPS))
  c = MODEL.config
  assert writer.memory() == {
    "weights": sum(x.nbytes for x in jax.tree.leaves(PARAMS)),
    "cache": 2 * c.layers * 80 * c.kv_heads * c.head_dim * 4,
  }


def test_errors(writer):
  with pytest.raises(UserError, match="steps must be at least 1"):
    next(writer.write([1], steps=0))
  with pytest.raises(UserError, match="75 tokens, wanted at most 74"):
    next(writer.write(TOKENS[:75], steps=STEPS))
  params = jax.tree.map(np.array, PARAMS)
  params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = np.nan
  with pytest.raises(UserError, match=r"logits are NaN or infinite"):
    next(stream.Writer(MODEL, params).write([1], steps=2))


def drawn(sampling, positions):
  logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
  choose = jax.vmap(lambda at: stream._choose(logits, sampling, at))
  return np.asarray(choose(jnp.arange(positions)))


def test_draws_follow_temperature_and_top_p():
  shares = np.array([0.1, 0.4, 0.2, 0.3])
  for options, wanted in (
    ({"temperature": 1.0}, shares),
    ({"temperature": 0.5}, shares**2 / np.sum(shares**2)),
    ({"temperature": 1.0, "top_p": 0.5}, np.array([0, 4, 0, 3]) / 7),
    ({"temperature": 1.0, "top_p": 0.4}, np.array([0, 1, 0, 0])),
    ({"temperature": 0.0}, np.array([0, 1, 0, 0])),
  ):
    tokens = drawn(stream.Sampling(seed=1, **options), 4000)
    got = np.bincount(tokens, minlength=4) / 4000
    np.testing.assert_allclose(got, wanted, atol=0.03 * (got.max() < 1))


def test_draws_are_those_of_seed_and_position():
  first, again, other = (
    drawn(stream.Sampling(temperature=1.0, seed=seed), 40) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  assert len({*first.tolist()}) > 1
