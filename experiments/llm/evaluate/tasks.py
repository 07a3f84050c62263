"""Tasks of language models, by the names that configs have for them.

A task has examples to train on, a text to draw calibration windows from, and a
metric.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import calling
from experiments.errors import UserError
from experiments.llm.audio import examples as speech_examples
from experiments.llm.audio import recordings
from experiments.llm.evaluate import generate, transcribe
from experiments.llm.evaluate.perplexity import of_examples, perplexity
from experiments.llm.families.protocol import (
  SPECTROGRAMS,
  TOKENS,
  Network,
  source_kind,
)
from experiments.llm.io.model import Model
from experiments.llm.io.tokenizer import Tokenizer
from experiments.llm.prune import kernels
from experiments.llm.text import corpora, examples, questions, sources
from experiments.llm.text.examples import Examples
from experiments.llm.text.questions import Question

MEASURES = ("perplexity", "accuracy")


class Task(NamedTuple):
  """A task.

  Attributes:
    examples: What to train on.
    text: int32[m], the tokens that calibration windows are drawn from; for an
      encoder-decoder the examples.
    measure: The metric by which models are compared, one of MEASURES.
    lower_is_better: Whether a lower value of it is better.
    evaluate: `(network, params) -> metrics` by name.
    context: How many tokens the model reads at once in a test at most; of an
      encoder-decoder those of a text before spans are left out, or of a source.
  """

  examples: Examples
  text: np.ndarray | Examples
  measure: str
  lower_is_better: bool
  evaluate: Callable[[Network, Any], dict[str, float]]
  context: int | None = None

  def tested_on(self, numbers: Mapping[str, Any]) -> str:
    """Says what metrics are of, for people."""
    of = next(name for name in ("tokens", "questions") if name in numbers)
    context = f", context {self.context:,}" if self.context else ""
    return f"{numbers[of]:,} {of}{context}"


def make(model: Model, config: Mapping[str, Any]) -> Task:
  """Makes a model's task from a part of a config.

  Args:
    model: The model, whose tokenizer and context the task uses.
    config: `name`, one of TASKS, and that function's keywords.

  Returns:
    The task.

  Raises:
    UserError: If a name, a keyword or a value is wrong, or data is missing.
  """
  name, reads = config.get("name"), source_kind(model.family.Network)
  fitting = [task for task in TASKS if _SOURCES.get(task) == reads]
  if name in TASKS and name not in fitting:
    raise UserError(
      f"task: got {name} for a model of the family {model.family.NAME}, wanted "
      f"one of {', '.join(fitting)}: "
      + (f"its encoder reads {reads}" if reads else "it has no encoder")
    )
  return calling.call("task", TASKS, config, model)


def evaluate(model: Model, task: Task) -> dict[str, Any]:
  """Computes the task's metrics and the kernels' nnz and size of a model."""
  params = jax.device_put(model.params)
  scores = task.evaluate(model.network(), params)
  nnz, size = kernels.count(model.params)
  return {**scores, "nnz": nnz, "size": size}


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
  """Makes the task of language modelling, whose metric is perplexity.

  Args:
    model: The model.
    train: The text to train on, a name of `corpora.TEXTS` and keywords.
    test: The text to test on, a name and keywords.
    length: Tokens of an example to train on.
    window: Tokens that the model reads at once in a test; `length` if None.
    stride: Tokens from the start of a window to that of the next; `window` if
      None.
    batch: Windows to test at a time.
    test_tokens: The number of tokens to test on, the first; all if None.

  Returns:
    The task.
  """
  _check_length(model, length)
  tokens = _tokens(model, train)
  tested = _tokens(model, test)[:test_tokens]
  window = window or length

  def measure(network: Network, params: Any) -> dict[str, float]:
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
    examples=examples.from_text(tokens, length=length),
    text=tokens,
    measure="perplexity",
    lower_is_better=True,
    evaluate=measure,
    context=window,
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
  """Makes a task of reasoning-gym, whose metric is its verifier's accuracy.

  Args:
    model: The model.
    task: One of `questions.TASKS`.
    train: The number of questions to train on.
    test: The number of questions to draw for the test.
    length: Tokens of an example to train on, a question with its answer.
    new_tokens: The most tokens of an answer; those of the test's longest answer
      if None.
    batch: Questions to answer at a time.
    seed: Of both draws.
    options: Of the task, instead of some of those in `questions.TASKS`.

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
  """Makes the task of GSM8K, whose metric is the accuracy of final numbers.

  Args:
    model: The model.
    data_dir: The folder of train.jsonl and test.jsonl.
    length: Tokens of an example to train on, a question with its answer.
    new_tokens: The most tokens of an answer.
    batch: Questions to answer at a time.

  Returns:
    The task.
  """
  drawn = (questions.gsm8k(data_dir, split=name) for name in ("train", "test"))
  return _questions(model, *drawn, length, new_tokens, batch)


def span_corruption(
  model: Model,
  *,
  train: Mapping[str, Any],
  test: Mapping[str, Any],
  length: int = 512,
  density: float = 0.15,
  span: float = 3.0,
  batch: int = 8,
  test_tokens: int | None = None,
  seed: int = 0,
) -> Task:
  """Makes T5's task of filling in spans that were left out of a text.

  Raffel et al., arXiv 1910.10683, section 3.1.4. The metric is the perplexity
  of the targets: what was left out, the sentinels and the end.

  Args:
    model: The model, whose tokenizer has sentinels.
    train: The text to train on, a name of `corpora.TEXTS` and keywords.
    test: The text to test on, a name and keywords.
    length: Tokens of a sequence before spans are left out.
    density: The share of its tokens that is left out.
    span: The mean length of a span, in tokens.
    batch: Examples to test at a time.
    test_tokens: The number of tokens to test on, the first; all if None.
    seed: Of the spans.

  Returns:
    The task.
  """
  _check_length(model, length)
  drawn = []
  for i, (part, limit) in enumerate(((train, None), (test, test_tokens))):
    cut = examples.sequences(_tokens(model, part)[:limit], length=length)
    drawn.append(
      sources.corrupt_spans(
        cut,
        model.tokenizer,
        start=model.config.decoder_start,
        density=density,
        span=span,
        seed=2 * seed + i,
      )
    )
  return _of_sources(*drawn, batch)._replace(context=length)


def pairs(
  model: Model,
  *,
  train_path: str,
  test_path: str,
  source: str = "source",
  target: str = "target",
  prefix: str = "",
  length: int = 128,
  target_length: int = 128,
  batch: int = 8,
) -> Task:
  """Makes a task of a user's pairs of texts; its metric is perplexity.

  The files hold an object of JSON in every line, such as {"source": "Good
  morning", "target": "Guten Morgen"}.

  Args:
    model: The model.
    train_path: The file to train on.
    test_path: The file to test on.
    source: The key of what the encoder reads.
    target: The key of what the decoder is to write.
    prefix: What to put before every source, such as T5's "translate English to
      German: ".
    length: Tokens of a source, its end included; shorter ones are padded.
    target_length: Tokens of a target, its first and its end included.
    batch: Pairs to test at a time.

  Returns:
    The task.
  """
  _check_length(model, length)
  _check_length(model, target_length)
  drawn = [
    sources.from_pairs(
      [prefix + text for text in corpora.jsonl(path=path, field=source)],
      corpora.jsonl(path=path, field=target),
      model.tokenizer,
      start=model.config.decoder_start,
      length=length,
      target_length=target_length,
    )
    for path in (train_path, test_path)
  ]
  return _of_sources(*drawn, batch)._replace(context=length)


def speech(
  model: Model,
  *,
  train: str,
  test: str,
  language: str = "en",
  new_tokens: int = 200,
  batch: int = 8,
) -> Task:
  """Makes the task of writing down recordings; its metric is perplexity.

  The word error rate, of texts without case and punctuation, is computed too.

  Args:
    model: The model, of the family Whisper.
    train: The folder to train on, as `recordings.read_folder` reads it.
    test: The folder to test on.
    language: Of the speech.
    new_tokens: The most tokens to write of a recording.
    batch: Recordings to test at a time.

  Returns:
    The task.
  """
  heard = recordings.read_folder(test)
  drawn = [
    speech_examples.from_recordings(model, clips, language=language)
    for clips in (recordings.read_folder(train), heard)
  ]
  task = _of_sources(*drawn, batch)

  def measure(network: Network, params: Any) -> dict[str, float]:
    written = transcribe.transcribe(
      model._replace(params=params),
      [clip.samples for clip in heard],
      language=language,
      tokens=new_tokens,
      batch=batch,
      network=network,
    )
    errors, words = transcribe.count_errors(heard, written)
    scores = task.evaluate(network, params)
    return {**scores, "word_error_rate": errors / max(words, 1)}

  return task._replace(evaluate=measure)


TASKS = {
  "text": text,
  "reasoning": reasoning,
  "gsm8k": gsm8k,
  "span_corruption": span_corruption,
  "pairs": pairs,
  "speech": speech,
}
# What an encoder reads in a task; the others are for models without one.
_SOURCES = {
  "span_corruption": TOKENS,
  "pairs": TOKENS,
  "speech": SPECTROGRAMS,
}


def _of_sources(train: Examples, test: Examples, batch: int) -> Task:
  """Makes a task of examples that have sources, whose metric is perplexity."""

  def measure(network: Network, params: Any) -> dict[str, float]:
    value, scored = of_examples(network, params, test, batch=batch)
    return {"perplexity": value, "tokens": scored}

  return Task(
    examples=train,
    text=train,
    measure="perplexity",
    lower_is_better=True,
    evaluate=measure,
  )


def _questions(
  model: Model,
  train: Sequence[Question],
  test: Sequence[Question],
  length: int,
  new_tokens: int | None,
  batch: int,
) -> Task:
  """Makes a task of questions, whose metric is accuracy."""
  _check_length(model, length)
  drawn = questions.examples(model.tokenizer, train, length=length)
  answers = [model.tokenizer.encode(question.answer) for question in test]
  steps = new_tokens or max(map(len, answers)) + 1
  return Task(
    examples=drawn,
    text=drawn.tokens[drawn.real],
    measure="accuracy",
    lower_is_better=False,
    evaluate=functools.partial(
      _accuracy, model.tokenizer, model.stop_tokens, test, steps, batch
    ),
  )


def _accuracy(
  tokenizer: Tokenizer,
  stop: Sequence[int],
  test: Sequence[Question],
  steps: int,
  batch: int,
  network: Network,
  params: Any,
) -> dict[str, float]:
  """Computes the share of questions that a model answers right."""
  prompts = [questions.prompt(tokenizer, x.question) for x in test]
  right = 0
  for i in range(0, len(test), batch):
    several = prompts[i : i + batch]
    # The last batch is filled up, so that one program serves all.
    full = several + [several[-1]] * (min(batch, len(test)) - len(several))
    answers = generate.greedy(network, params, full, steps=steps, stop=stop)
    for question, answer in zip(test[i : i + batch], answers, strict=False):
      right += questions.score(question, tokenizer.decode(answer)) == 1.0
  return {"accuracy": right / len(test), "questions": len(test)}


def _tokens(model: Model, config: Mapping[str, Any]) -> np.ndarray:
  """Reads a text by its part of a config, as tokens int32[n]."""
  documents = calling.call("text", corpora.TEXTS, config)
  return corpora.tokens(documents, model.tokenizer)


def _check_length(model: Model, length: int) -> None:
  """Checks that examples have a target and fit into the context."""
  if not 2 <= length <= model.config.context:
    raise UserError(
      f"task: got sequences of length {length}, wanted 2 to "
      f"{model.config.context}, the model's context"
    )
