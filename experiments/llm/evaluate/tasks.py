"""What a language model is trained on and judged by, as configs name it.

A task has rows of tokens to train on, a text to draw calibration windows from,
and a number that says how good a model is.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import calling
from experiments.data.failures import DataError
from experiments.errors import UserError
from experiments.llm.evaluate import generate
from experiments.llm.evaluate.perplexity import perplexity
from experiments.llm.families.protocol import Network
from experiments.llm.io.model import Model
from experiments.llm.io.tokenizer import Tokenizer
from experiments.llm.prune import kernels
from experiments.llm.text import corpora, questions
from experiments.llm.text.questions import Question

MEASURES = ("perplexity", "accuracy")


class Examples(NamedTuple):
  """Sequences to train on.

  Attributes:
    tokens: int32[n, length].
    targets: bool[n, length], the tokens whose prediction counts; never the
      first of a row.
    real: bool[n, length], those that are no padding.
  """

  tokens: np.ndarray
  targets: np.ndarray
  real: np.ndarray


class Task(NamedTuple):
  """A task.

  Attributes:
    examples: What to train on.
    text: int32[m], what calibration windows are drawn from.
    measure: The number that tells how good a model is, of MEASURES.
    lower_is_better: Whether less of it is better.
    evaluate: `(model, params) -> numbers` by name.
  """

  examples: Examples
  text: np.ndarray
  measure: str
  lower_is_better: bool
  evaluate: Callable[[Network, Any], dict[str, float]]


def make(model: Model, config: Mapping[str, Any]) -> Task:
  """Makes the task that a part of a config describes, for a model.

  Args:
    model: Its tokenizer is used, and its context must be long enough.
    config: `name`, one of TASKS, and that function's keywords.

  Returns:
    The task.

  Raises:
    UserError: If a name, a keyword or a value is wrong, or data is missing.
  """
  return calling.call("task", TASKS, config, model)


def evaluate(model: Model, task: Task) -> dict[str, Any]:
  """Computes the task's metrics and the kernels' nnz and size of a model."""
  params = jax.device_put(model.params)
  scores = task.evaluate(model.network(), params)
  return {**scores, **kernels.count(model.params)._asdict()}


def text(
  model: Model,
  *,
  train: Mapping[str, Any],
  test: Mapping[str, Any],
  length: int = 512,
  window: int | None = None,
  stride: int | None = None,
  batch: int = 8,
  test_tokens: int | None = None,
) -> Task:
  """Language modelling, judged by perplexity.

  Args:
    model: The model.
    train: The text to train on, a name of `corpora.TEXTS` and keywords.
    test: The text to test on, likewise.
    length: Tokens of a row to train on.
    window: Tokens that the model reads at once in a test; as `length` if None.
    stride: From the start of a window to that of the next; as `window` if None.
    batch: Windows to test at a time.
    test_tokens: How many of the first tokens to test on; all if None.

  Returns:
    The task.
  """
  _check_length(model, length)
  tokens = _tokens(model, train)
  tested = _tokens(model, test)[:test_tokens]
  n = len(tokens) // length
  if n < 1:
    raise DataError(
      f"the text to train on has {len(tokens)} tokens, fewer than a row of "
      f"{length}; take more text, or shorter rows"
    )
  rows = tokens[: n * length].reshape(n, length)
  targets = np.ones(rows.shape, bool)
  targets[:, 0] = False
  window = window or length

  def evaluate(network, params):
    value, scored = perplexity(
      network,
      params,
      tested,
      window=window,
      stride=stride or window,
      batch=batch,
    )
    return {"perplexity": value, "tokens": scored}

  return Task(
    examples=Examples(rows, targets, np.ones(rows.shape, bool)),
    text=tokens,
    measure="perplexity",
    lower_is_better=True,
    evaluate=evaluate,
  )


def reasoning(
  model: Model,
  *,
  task: str,
  train: int,
  test: int,
  length: int = 128,
  new_tokens: int | None = None,
  batch: int = 32,
  seed: int = 0,
  options: Mapping[str, Any] | None = None,
) -> Task:
  """Questions of a task of reasoning-gym, judged by its own verifier.

  Args:
    model: The model.
    task: One of `questions.TASKS`.
    train: How many questions to train on.
    test: How many to draw for the test.
    length: Tokens of a row to train on, a question with its answer.
    new_tokens: The most that an answer may take; what the longest of the test
      takes if None.
    batch: Questions to answer at a time.
    seed: Of both draws.
    options: Of the task, in place of some of those in `questions.TASKS`.

  Returns:
    The task.
  """
  drawn = questions.split(
    task, train=train, test=test, seed=seed, **(options or {})
  )
  return _questions(model, *drawn, length, new_tokens, batch)


def gsm8k(
  model: Model,
  *,
  data_dir: str,
  length: int = 512,
  new_tokens: int = 256,
  batch: int = 32,
) -> Task:
  """GSM8K's word problems, judged by the number that ends an answer.

  Args:
    model: The model.
    data_dir: The folder of train.jsonl and test.jsonl.
    length: Tokens of a row to train on, a question with its answer.
    new_tokens: The most that an answer may take.
    batch: Questions to answer at a time.

  Returns:
    The task.
  """
  drawn = (questions.gsm8k(data_dir, split=name) for name in ("train", "test"))
  return _questions(model, *drawn, length, new_tokens, batch)


TASKS = {"text": text, "reasoning": reasoning, "gsm8k": gsm8k}


def _questions(
  model: Model,
  train: Sequence[Question],
  test: Sequence[Question],
  length: int,
  new_tokens: int | None,
  batch: int,
) -> Task:
  _check_length(model, length)
  tokens, targets = questions.batch(model.tokenizer, train, length=length)
  # What follows the last token of an answer is padding.
  real = np.flip(np.maximum.accumulate(np.flip(targets, 1), axis=1), 1)
  answers = [model.tokenizer.encode(question.answer) for question in test]
  steps = new_tokens or max(map(len, answers)) + 1
  answer = functools.partial(_accuracy, model.tokenizer, test, steps, batch)
  return Task(
    examples=Examples(tokens, targets, real),
    text=tokens[real],
    measure="accuracy",
    lower_is_better=False,
    evaluate=answer,
  )


def _accuracy(
  tokenizer: Tokenizer,
  test: Sequence[Question],
  steps: int,
  batch: int,
  network: Network,
  params: Any,
) -> dict[str, float]:
  """The share of questions whose answer the verifier takes for right."""
  prompts = [questions.prompt(tokenizer, x.question) for x in test]
  right = 0
  for i in range(0, len(test), batch):
    several = prompts[i : i + batch]
    full = several + [several[-1]] * (min(batch, len(test)) - len(several))
    rows = generate.greedy(
      network, params, full, steps=steps, stop=tokenizer.eos
    )
    for question, row in zip(test[i : i + batch], rows, strict=False):
      right += questions.score(question, tokenizer.decode(row)) == 1.0
  return {"accuracy": right / len(test), "questions": len(test)}


def _tokens(model: Model, config: Mapping[str, Any]) -> np.ndarray:
  documents = calling.call("text", corpora.TEXTS, config)
  return corpora.tokens(documents, model.tokenizer)


def _check_length(model: Model, length: int) -> None:
  if not 2 <= length <= model.config.context:
    raise UserError(
      f"task: got rows of length {length}, wanted 2 to {model.config.context}, "
      "the model's context"
    )
