"""The perplexity of a text, and of examples."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.errors import UserError
from experiments.llm.families.protocol import (
  Config,
  EncoderDecoder,
  Network,
  check_length,
  check_tokens,
)
from experiments.llm.text.examples import Examples


def perplexity(
  network: Network,
  params: Any,
  tokens: np.ndarray,
  *,
  window: int,
  stride: int,
  batch: int,
) -> tuple[float, int]:
  """Computes exp(mean over tokens of -log p(token | tokens before it)).

  The model reads windows of the text, each `stride` tokens after the last, and
  each token but the very first is scored once, by the first window that
  predicts it: in every later window only the last `stride` predictions count,
  whose contexts have more than `window - stride` tokens. Papers on pruning have
  stride = window; a smaller stride costs more, and usually gives a lower
  perplexity.

  Args:
    network: the model.
    params: its parameters.
    tokens: int[n], the text.
    window: the number of tokens that the model reads at once.
    stride: tokens from the start of a window to that of the next.
    batch: windows to run at a time, which changes no result.

  Returns:
    The perplexity, and the number of tokens scored, n - 1.

  Raises:
    UserError: window is beyond the model's context, stride is not from 1 to
      window, batch is below 1, or tokens are fewer than two, not a vector of
      integers, or unknown to the model.
  """
  tokens = np.asarray(tokens)
  _check(network.config, tokens, window, stride, batch)
  targets = len(tokens) - 1
  # A text shorter than a window is one window.
  window = min(window, targets)
  windows = 1 + -(-(targets - window) // stride)
  batch = min(batch, windows)
  total = 0.0
  for first in range(0, windows, batch):
    starts = np.arange(first, first + batch) * stride
    # Indices of the tokens read; the token after each is its target.
    at = starts[:, None] + np.arange(window)
    # Earlier windows have scored the predictions before these indices.
    scored = starts + np.where(starts > 0, window - stride, 0)
    counts = (at >= scored[:, None]) & (at < targets)
    # The last window, and windows that fill up the last batch, reach beyond the
    # end; attention is causal, so that what is read there affects no prediction
    # that counts.
    at = np.minimum(at, targets - 1)
    losses = _losses(network, params, tokens[at], tokens[at + 1])
    total += np.asarray(losses, np.float64)[counts].sum()
  with np.errstate(over="ignore"):  # A broken model's may be infinite.
    return float(np.exp(total / targets)), targets


def of_examples(
  network: Network | EncoderDecoder,
  params: Any,
  examples: Examples,
  *,
  batch: int,
) -> tuple[float, int]:
  """Computes exp(mean over targets of -log p(target | source, those before)).

  Args:
    network: the model.
    params: its parameters.
    examples: at least one.
    batch: examples to run at a time, which changes no result.

  Returns:
    The perplexity, and the number of targets.

  Raises:
    UserError: batch is below 1, or a token is unknown to the model.
  """
  if batch < 1:
    raise UserError(f"perplexity: batch must be at least 1, got {batch}.")
  for read in (examples.tokens, examples.source):
    if read is not None and np.issubdtype(read.dtype, np.integer):
      check_tokens(network.config, read)
  n, total = len(examples.tokens), 0.0
  for first in range(0, n, batch):
    # The last batch is filled up with examples that do not count.
    at = np.arange(first, first + batch)
    part = jax.tree.map(lambda x: x[np.minimum(at, n - 1)], examples)  # noqa: B023
    losses = _example_losses(network, params, part.inputs)
    counts = part.targets[:, 1:] & (at < n)[:, None]
    total += np.asarray(losses, np.float64)[counts].sum()
  count = int(examples.targets[:, 1:].sum())
  with np.errstate(over="ignore"):
    return float(np.exp(total / count)), count


@functools.partial(jax.jit, static_argnames="network")
def _losses(
  network: Network, params: Any, tokens: jax.Array, targets: jax.Array
) -> jax.Array:
  """Computes -log p(target | tokens up to it), float32[batch, window]."""
  logits = network.apply({"params": params}, jnp.asarray(tokens, jnp.int32))
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.asarray(targets, jnp.int32)
  )


@functools.partial(jax.jit, static_argnames="network")
def _example_losses(
  network: Network | EncoderDecoder,
  params: Any,
  inputs: Mapping[str, jax.Array | None],
) -> jax.Array:
  """Computes the losses of all tokens but the first, float32[batch, t - 1]."""
  logits = network.apply({"params": params}, **inputs)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1], jnp.asarray(inputs["tokens"][:, 1:], jnp.int32)
  )


def _check(
  config: Config, tokens: np.ndarray, window: int, stride: int, batch: int
) -> None:
  """Checks the arguments of `perplexity`."""
  check_length(config, window)
  if not 1 <= stride <= window:
    raise UserError(
      f"perplexity: got stride={stride}, wanted 1 to window={window}, so that "
      "every token is scored."
    )
  if batch < 1:
    raise UserError(f"perplexity: batch must be at least 1, got {batch}.")
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise UserError(
      f"perplexity: got tokens {tokens.dtype}{list(tokens.shape)}, wanted a "
      "vector of integers."
    )
  if len(tokens) < 2:
    raise UserError(
      "perplexity: wanted at least 2 tokens, one to read and one to predict, "
      f"got {len(tokens)}."
    )
  check_tokens(config, tokens)
