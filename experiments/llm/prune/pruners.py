"""Methods of one-shot pruning by the names that configs have for them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.config import calling
from experiments.errors import UserError
from experiments.llm.io.model import Model
from experiments.llm.prune import layerwise, methods, structured
from experiments.llm.text import corpora, examples
from experiments.llm.text.examples import Examples


def prune(
  model: Model,
  text: np.ndarray | Examples,
  config: Mapping[str, Any],
  *,
  advance: Callable[[int], None] = lambda layer: None,
) -> Model:
  """Prunes a model by the method in a part of a config.

  Args:
    model: The model.
    text: int32[n], the tokens that calibration windows are drawn from; for an
      encoder-decoder examples to draw from.
    config: `name`, one of METHODS, and keywords of `_prune`.
    advance: Called with the number of pruned layers.

  Returns:
    The pruned model.

  Raises:
    UserError: If a name, a keyword or a value is wrong, or the text too short.
  """
  return calling.call(
    "one-shot method", METHODS, config, model, text, advance=advance
  )


def calibration(
  text: np.ndarray | Examples, *, sequences: int, length: int, seed: int
) -> layerwise.Tokens:
  """Draws what statistics are computed of.

  Args:
    text: int32[n], tokens to draw windows from; or examples.
    sequences: The number of windows or examples.
    length: Tokens of a window; examples are taken whole.
    seed: Of the draws.

  Returns:
    int32[sequences, length], or a network's inputs by name.
  """
  if isinstance(text, Examples):
    return examples.draw(text, count=sequences, seed=seed).inputs
  return corpora.windows(text, length=length, count=sequences, seed=seed)


def _prune(
  name: str,
  model: Model,
  text: np.ndarray | Examples,
  *,
  advance: Callable[[int], None],
  sparsity: float | None = None,
  n_of_m: Sequence[int] = (),
  per_output: bool | None = None,
  owl: bool = False,
  threshold: float = 5.0,
  deviation: float = 0.08,
  dsnot: bool = False,
  int8: str | None = None,
  group: int | None = None,
  sequences: int = 128,
  length: int = 2048,
  seed: int = 0,
) -> Model:
  """Draws calibration windows and prunes by one method.

  Args:
    name: The method's.
    model: The model.
    text: int32[n], the tokens that calibration windows are drawn from; for an
      encoder-decoder examples to draw from.
    advance: Called with the number of pruned layers.
    sparsity: The share of zeros, in (0, 1); not with `n_of_m`.
    n_of_m: (n, m), to keep n of every m inputs.
    per_output: Which weights are compared; see `methods.make`.
    owl: Whether layers differ in their sparsity, by their outliers.
    threshold: OWL's ratio of an outlier's score to the mean score.
    deviation: OWL's lambda, half the difference of the densest layer's density
      from the sparsest's.
    dsnot: Whether to grow and prune afterwards by DSnoT.
    int8: How kernels are rounded to INT8, if at all; see `methods.make`.
    group: How many neighbouring inputs share a scale; all by default.
    sequences: The number of calibration windows or examples.
    length: Tokens of a window; examples are taken whole.
    seed: Of the windows.

  Returns:
    The pruned model.
  """
  if (sparsity is None) == (not n_of_m):
    raise UserError(
      f"{name}: got sparsity={sparsity} and n_of_m={tuple(n_of_m)}, wanted one "
      "of them"
    )
  if owl and n_of_m:
    raise UserError(
      f"{name}: got owl=True and n_of_m={tuple(n_of_m)}, but OWL gives layers "
      "densities of their own, while N:M fixes all at n / m"
    )
  tokens = calibration(text, sequences=sequences, length=length, seed=seed)
  if isinstance(text, Examples):
    length = text.source.shape[1]
  method = methods.make(
    name,
    n_of_m=n_of_m,
    per_output=per_output,
    dsnot=dsnot,
    length=length,
    int8=int8,
    group=group,
  )
  if n_of_m:
    sparsity = 1 - n_of_m[0] / n_of_m[1]
  if not 0 < sparsity < 1:
    raise UserError(
      f"{name}: got sparsity={sparsity}, wanted a share in (0, 1)"
    )
  sparsities = [sparsity] * model.config.layers
  if owl:
    sparsities = layerwise.owl(
      model, tokens, sparsity, threshold=threshold, deviation=deviation
    )
  return layerwise.prune(model, tokens, method, sparsities, advance=advance)


def _structured(
  model: Model,
  text: np.ndarray,
  *,
  advance: Callable[[int], None],
  sparsity: float,
  score: str = "wanda",
  round_to: int = 8,
  sequences: int = 128,
  length: int = 2048,
  seed: int = 0,
) -> Model:
  """Draws calibration windows and takes heads and hidden units out.

  Args:
    model: The model.
    text: int32[n], the tokens that calibration windows are drawn from.
    advance: Called with the number of pruned layers.
    sparsity: The share of heads, and of hidden units, that leave, in (0, 1).
    score: What is summed over a unit: "wanda", "magnitude" or "random".
    round_to: What the hidden units that are kept are a multiple of.
    sequences: The number of calibration windows.
    length: Tokens of a window.
    seed: Of the windows, and of random scores.

  Returns:
    The narrower model.
  """
  tokens = corpora.windows(text, length=length, count=sequences, seed=seed)
  return structured.prune(
    model,
    tokens,
    sparsity,
    score=score,
    round_to=round_to,
    seed=seed,
    advance=advance,
  )


METHODS = {
  name: functools.partial(_prune, name)
  for name in (*methods.SCORES, "sparsegpt")
} | {"structured": _structured}
