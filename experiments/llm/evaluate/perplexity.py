"""The perplexity of a text, each of whose tokens is predicted once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.errors import UserError
from experiments.llm.families.protocol import Network, check_tokens


def perplexity(
  network: Network,
  params: Any,
  tokens: np.ndarray,
  *,
  window: int,
  stride: int,
  batch: int,
) -> tuple[float, int]:
  """The exponential of the mean negative log-likelihood of a text's tokens.

  The model reads windows of the text, each `stride` tokens after the last, and
  each token but the very first is scored by the first window that predicts it.
  So in every later window only the last `stride` predictions count, which see
  more than `window - stride` tokens. Windows do not overlap when stride is
  window, as papers on pruning have it; a smaller stride costs more, and mostly
  gives a lower perplexity.

  Args:
    network: the model.
    params: its parameters.
    tokens: int[n], the text.
    window: how many tokens the model reads at once.
    stride: from the start of a window to that of the next.
    batch: how many windows to run at a time, which changes no result.

  Returns:
    The perplexity, and how many tokens were scored, which is n - 1.

  Raises:
    UserError: window is beyond the model's context, stride is not from 1 to
      window, batch is below 1, or tokens are fewer than two, not in one row of
      integers, or unknown to the model.
  """
  tokens = np.asarray(tokens)
  _check(network.config, tokens, window, stride, batch)
  targets = len(tokens) - 1
  # Of a text that is shorter than a window there is nothing more to read.
  window = min(window, targets)
  windows = 1 + -(-(targets - window) // stride)
  batch = min(batch, windows)
  total = 0.0
  for first in range(0, windows, batch):
    starts = np.arange(first, first + batch) * stride
    # Indices of what is read; the token after each is its target.
    at = starts[:, None] + np.arange(window)
    # Windows before this one have predicted from all that is read before here.
    scored = starts + np.where(starts > 0, window - stride, 0)
    counts = (at >= scored[:, None]) & (at < targets)
    # The last window, and windows that only fill the batch, read beyond the
    # end; nothing that counts sees what stands there.
    at = np.minimum(at, targets - 1)
    losses = _losses(network, params, tokens[at], tokens[at + 1])
    total += np.asarray(losses, np.float64)[counts].sum()
  with np.errstate(over="ignore"):  # A broken model's may well be infinite.
    return float(np.exp(total / targets)), targets


@functools.partial(jax.jit, static_argnames="network")
def _losses(network, params, tokens, targets):
  """-log p(target | tokens up to here), float32[batch, window]."""
  logits = network.apply({"params": params}, jnp.asarray(tokens, jnp.int32))
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.asarray(targets, jnp.int32)
  )


def _check(config, tokens, window, stride, batch):
  if window > config.context:
    raise UserError(
      f"perplexity: got windows of {window} tokens, wanted at most "
      f"{config.context}, the model's context."
    )
  if not 1 <= stride <= window:
    raise UserError(
      f"perplexity: stride must be from 1 to window, which is {window}, or "
      f"tokens would be left out; got {stride}."
    )
  if batch < 1:
    raise UserError(f"perplexity: batch must be at least 1, got {batch}.")
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise UserError(
      "perplexity: tokens must be one row of integers, got "
      f"{tokens.dtype}{list(tokens.shape)}."
    )
  if len(tokens) < 2:
    raise UserError(
      "perplexity: wanted at least 2 tokens, one to read and one to predict, "
      f"got {len(tokens)}."
    )
  check_tokens(config, tokens)
