"""Greedy continuation of prompts, token by token, with a cache."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.llm.families.protocol import (
  Config,
  EncoderDecoder,
  Network,
  check_tokens,
  has_encoder,
)

# Prompts are padded to multiples of this, so that few shapes are compiled.
_MULTIPLE = 64


def greedy(
  network: Network | EncoderDecoder,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  steps: int,
  stop: Sequence[int] = (),
  source: Mapping[str, Any] | None = None,
) -> list[list[int]]:
  """Continues prompts by the token of the highest logit, step by step.

  All prompts run as one batch, which ends when each has stopped. Of equal
  logits the lowest token wins. One compiled program serves all batches of the
  same number of prompts and steps, and lengths up to the same multiple of 64.

  Args:
    network: the model.
    params: its parameters.
    prompts: tokens, at least one in each prompt.
    steps: the most tokens to generate.
    stop: the tokens each of which ends a continuation.
    source: for an encoder-decoder `source` and `source_real`, as its `start`
      takes them, of as many sequences; each prompt then begins with
      `decoder_start`.

  Returns:
    The generated tokens of each prompt, without the `stop` that ended them,
    and then fewer than `steps`.

  Raises:
    UserError: a prompt is empty, has tokens that the model does not know, or
      is too long for `steps` more in the model's context; steps < 1; or the
      model's logits are not finite.
  """
  if not len(prompts):
    return []
  if has_encoder(network) != bool(source):
    raise UserError(
      "generate: an encoder-decoder needs a source, and others have none, got "
      f"{'one' if source else 'none'}."
    )
  check(network.config, prompts, steps)
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)
  room = network.config.context - steps
  padded = -(-int(lengths.max()) // _MULTIPLE) * _MULTIPLE
  tokens = np.zeros((len(prompts), min(padded, room)), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[: len(prompt)] = prompt
  stops = np.array([*stop] or [-1], np.int32)  # -1 is no token
  made, finite = _generate(
    network, params, tokens, lengths, stops, source, steps=steps
  )
  if not finite:
    raise not_finite()
  return [
    list(itertools.takewhile(lambda token: token not in stop, one))
    for one in np.asarray(made).tolist()
  ]


def check(config: Config, prompts: Sequence[Sequence[int]], steps: int) -> None:
  """Checks that prompts can be continued.

  Args:
    config: the model's.
    prompts: their tokens.
    steps: how many are to follow.

  Raises:
    UserError: as `greedy`, of prompts and steps.
  """
  if steps < 1:
    raise UserError(f"generate: steps must be at least 1, got {steps}.")
  room = config.context - steps
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise UserError(
        f"generate: prompt {i} has no tokens, wanted one or more; begin it "
        "with the tokenizer's bos."
      )
    if len(prompt) > room:
      raise UserError(
        f"generate: prompt {i} has {len(prompt)} tokens, wanted at most "
        f"{room}, which leaves {steps} steps of the model's context of "
        f"{config.context}; shorten it, or take fewer steps."
      )
    check_tokens(config, np.asarray(prompt))


def not_finite() -> UserError:
  """Makes the error of a model whose logits are not finite."""
  return UserError(
    "generate: the model's logits are NaN or infinite, wanted finite ones: "
    "some of its weights are not, or what it computes of them overflows."
  )


# Step, last tokens, which sequences have stopped, all tokens, whether all
# logits were finite, cache.
_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, Any]


@functools.partial(jax.jit, static_argnames=("network", "steps"))
def _generate(
  network: Network | EncoderDecoder,
  params: Any,
  tokens: jax.Array,
  lengths: jax.Array,
  stops: jax.Array,
  source: Mapping[str, Any] | None = None,
  *,
  steps: int,
) -> tuple[jax.Array, jax.Array]:
  """Generates int32[batch, steps] after tokens[batch, t], padded on the right.

  The tokens after one of `stops` [n] are meaningless. Also returns whether all
  logits were finite.
  """
  batch, t = tokens.shape
  run = functools.partial(network.apply, {"params": params})

  def choose(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps the last block's output [batch, 1, dim] to tokens int32[batch]."""
    logits = run(x, method="logits")[:, 0]
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, jnp.all(jnp.isfinite(logits))

  if source:
    cache = run(**source, length=t + steps, method="start")
  else:
    cache = network.init_cache(batch, t + steps)
  x, cache = run(
    tokens,
    positions=jnp.broadcast_to(jnp.arange(t), tokens.shape),
    cache=cache,
    method="extend",
  )
  last = (lengths - 1)[:, None, None]
  token, finite = choose(jnp.take_along_axis(x, last, axis=1))
  out = jnp.zeros((batch, steps), jnp.int32).at[:, 0].set(token)

  def goes_on(state: _State) -> jax.Array:
    step, _, stopped, _, finite, _ = state
    return (step < steps) & finite & ~jnp.all(stopped)

  def advance(state: _State) -> _State:
    step, token, stopped, out, _, cache = state
    x, cache = run(
      token[:, None],
      positions=(lengths + step - 1)[:, None],
      cache=cache,
      method="extend",
    )
    token, finite = choose(x)
    out = out.at[:, step].set(token)
    stopped |= jnp.isin(token, stops)
    return step + 1, token, stopped, out, finite, cache

  state = (jnp.int32(1), token, jnp.isin(token, stops), out, finite, cache)
  return jax.lax.while_loop(goes_on, advance, state)[3:5]
