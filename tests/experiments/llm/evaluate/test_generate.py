"""Greedy continuations against an argmax of the whole forward pass."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import generate
from experiments.llm.families import llama
from tests.experiments.small_llama import (
  CONFIG,
  SCALED,
  forward,
  make_params,
  make_tokens,
)

# Not tied, which repeats what it reads.
MODEL = llama.Network(dataclasses.replace(SCALED, tied=False, window=4))
PARAMS = make_params(MODEL.config)
TOKENS = make_tokens(40).tolist()
PROMPTS = [TOKENS[:1], TOKENS[1:8], TOKENS[8:11], TOKENS[11:17]]
STEPS = 9


def naive(prompt):
  tokens = list(prompt)
  for _ in range(STEPS):
    logits, _ = forward(MODEL.config, PARAMS, tokens)
    tokens.append(int(np.argmax(logits[-1])))
  return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def wanted():
  return [naive(prompt) for prompt in PROMPTS]


def run(prompts, steps=STEPS, stop=(), model=MODEL):
  return generate.greedy(model, PARAMS, prompts, steps=steps, stop=stop)


def test_ragged_prompts_continue_as_each_would_alone(wanted):
  assert len({tuple(row) for row in wanted}) == 4
  assert run(PROMPTS) == wanted
  assert run(PROMPTS[::-1]) == wanted[::-1]
  assert run(PROMPTS) == wanted  # Nothing is left of the other order.


def test_a_row_ends_before_its_stop(wanted):
  tokens = {token for row in wanted for token in row}
  assert len(tokens) < CONFIG.vocab_size
  for stop in [*tokens, *list({*range(CONFIG.vocab_size)} - tokens)[:1]]:
    until = [row[: row.index(stop)] if stop in row else row for row in wanted]
    assert run(PROMPTS, stop=[stop]) == until


def test_the_loop_ends_once_all_have_stopped(wanted):
  """Steps that are not taken leave zeros, which `greedy` cuts off."""
  prompt, row = PROMPTS[1], wanted[1]
  assert 0 not in row
  tokens = np.zeros((4, 64), np.int32)
  tokens[:, : len(prompt)] = prompt
  lengths = np.full(4, len(prompt), np.int32)
  stops = set(row)
  assert len(stops) > 1
  for stop in stops:
    taken = row[: row.index(stop) + 1]
    rows, finite = generate._generate(
      MODEL, PARAMS, tokens, lengths, np.array([stop]), steps=STEPS
    )
    assert finite
    filled = taken + [0] * (STEPS - len(taken))
    np.testing.assert_array_equal(rows, [filled] * 4)


def test_few_shapes_are_compiled():
  run(PROMPTS)
  compiled = generate._generate._cache_size()
  run([TOKENS[:33], *PROMPTS[1:]], stop=[3])
  assert generate._generate._cache_size() == compiled


def test_up_to_the_end_of_the_context():
  """Prompts are padded to no more than the context leaves."""
  config = dataclasses.replace(MODEL.config, context=20)
  model = llama.Network(config)
  prompt = TOKENS[: 20 - 2]
  got = run([prompt], steps=2, model=model)
  assert got == [naive(prompt)[:2]]
  with pytest.raises(
    UserError, match="prompt 1 has 19 tokens, wanted at most 18"
  ):
    run([prompt, TOKENS[:19]], steps=2, model=model)


def test_no_prompts_no_continuations():
  assert run([]) == []


@pytest.mark.parametrize(
  ("prompts", "steps", "match"),
  [
    ([[1], []], 2, "prompt 1 has no tokens"),
    ([[1]], 0, "steps must be at least 1, got 0"),
    ([[1]], 81, "wanted at most -1"),
    ([[1, 23]], 2, "wanted 0 to 22"),
    ([[1, -2]], 2, "from -2 to 1"),
  ],
)
def test_errors(prompts, steps, match):
  with pytest.raises(UserError, match=match):
    run(prompts, steps=steps)


def test_a_model_that_is_broken_generates_nothing():
  """Argmax of NaN is token 0, and an accuracy of 0 would be no surprise."""
  params = jax.tree.map(np.array, PARAMS)
  params["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = np.nan
  with pytest.raises(UserError, match=r"logits are NaN or infinite"):
    generate.greedy(MODEL, params, PROMPTS, steps=STEPS)
