"""Questions with short answers that a program can check, to fine-tune on.

Four tasks of the package reasoning-gym, which generates any number of them, and
GSM8K from a user's files; and the examples to train on.
"""

import dataclasses
import decimal
import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import errors, names
from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.io.tokenizer import Tokenizer
from experiments.llm.text import corpora
from experiments.llm.text.examples import Examples

# The tasks, with options that keep them short; the defaults are harder.
TASKS = {
  # "3 + 25 - 7 ="
  "chain_sum": {"max_terms": 3, "max_digits": 2},
  # "Reverse this list of words: hundred, go, acute"
  "word_sequence_reversal": {"min_words": 3, "max_words": 5},
  # "Remove all numbers larger than 17 in this list: ['14', '-49', '52']"
  "number_filtering": {"max_numbers": 5, "max_decimals": 0},
  # Word problems of GSM8K's kind, from templates. Mirzadeh et al.,
  # "GSM-Symbolic", arXiv 2410.05229. There is one difficulty.
  "gsm_symbolic": {},
}
_GSM8K = "gsm8k"


class Question(NamedTuple):
  """A question and its answer.

  Attributes:
    task: of `TASKS`, or "gsm8k".
    question: the text of the question.
    answer: the text that a model is to write.
    item: what the task's verifier takes: the item of reasoning-gym's data set.
  """

  task: str
  question: str
  answer: str
  item: dict[str, Any]


def generate(
  task: str, *, size: int, seed: int, **options: Any
) -> list[Question]:
  """Generates questions, a function of the arguments.

  Args:
    task: of `TASKS`.
    size: the number of questions.
    seed: not negative; the draws of different seeds are independent.
    **options: of the task's config in reasoning-gym, instead of those in
      `TASKS`.

  Returns:
    The questions, some of which may be equal.

  Raises:
    UserError: the task or an option is unknown, or a value out of range.
  """
  if task not in TASKS:
    raise errors.unknown("task", task, TASKS)
  if size < 1 or seed < 0:
    raise UserError(
      f"{task}: wanted a positive size and a seed that is not negative, got "
      f"{size} and {seed}."
    )
  gym = optional.load("reasoning_gym")
  known = [x.name for x in dataclasses.fields(gym.factory.DATASETS[task][1])]
  known = set(known) - {"size", "seed"}
  names.check_options(task, options, known)
  options = TASKS[task] | options
  try:
    # Question i is drawn from seed + i alone, so seeds next to each other would
    # share all questions but one.
    items = gym.create_dataset(task, size=size, seed=seed << 32, **options)
  except AssertionError as error:
    raise UserError(f"{task}: {error}, got {options}.") from error
  return [Question(task, x["question"], x["answer"], x) for x in items]


def split(
  task: str, *, train: int, test: int, seed: int, **options: Any
) -> tuple[list[Question], list[Question]]:
  """Generates questions to train on and others to test on.

  Args:
    task: of `TASKS`.
    train: the number to train on.
    test: the number to draw for the test, of which those in the training set
      and duplicates are left out.
    seed: of both.
    **options: as in `generate`.

  Returns:
    The questions to train on and those to test on, fewer than `test` if the
    task has few questions.

  Raises:
    UserError: as `generate`, or no question is left to test on.
  """
  training = generate(task, size=train, seed=2 * seed, **options)
  drawn = generate(task, size=test, seed=2 * seed + 1, **options)
  seen = {x.question for x in training}
  testing = {x.question: x for x in drawn if x.question not in seen}
  if not testing:
    raise UserError(
      f"{task}: all of the {test} questions drawn for the test are among the "
      f"{train} to train on; train on fewer, or choose options that make more "
      "questions."
    )
  return training, list(testing.values())


def gsm8k(data_dir: str | pathlib.Path, *, split: str) -> list[Question]:
  """Reads GSM8K: 7,473 word problems to train on and 1,319 to test on.

  Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv
  2110.14168; the files are in the repository openai/grade-school-math, folder
  grade_school_math/data.

  Args:
    data_dir: the folder of `train.jsonl` and `test.jsonl`.
    split: "train" or "test".

  Returns:
    The questions. Answers end with the number, after "####".

  Raises:
    UserError: the file is missing or damaged, or an answer has no number.
  """
  path = pathlib.Path(data_dir) / f"{split}.jsonl"
  found = [
    Question(_GSM8K, question, answer, {"answer": answer})
    for question, answer in zip(
      corpora.jsonl(path=path, field="question"),
      corpora.jsonl(path=path, field="answer"),
      strict=True,
    )
  ]
  for question in found:
    if _number(question.answer) is None:
      raise UserError(
        f"{path}: wanted answers that end with #### and a number, got "
        f"{question.answer!r}."
      )
  return found


def score(question: Question, text: str) -> float:
  """Scores an answer by the task's own verifier.

  Args:
    question: the question.
    text: what a model has answered; spaces around it do not matter.

  Returns:
    1.0 for a right answer, less for others: 0.0, or more where the verifier
    scores partly right ones. An answer to GSM8K is right if the number after
    its first "####" is.
  """
  if question.task == _GSM8K:
    return float(_number(text) == _number(question.answer))
  return float(_verifier(question.task)(text.strip(), question.item))


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
  """Returns the tokens of a prompt that asks a question.

  Args:
    tokenizer: the model's; its chat template is used if it has one.
    question: the question's text.

  Returns:
    The tokens.
  """
  if tokenizer.chat_template is not None:
    message = {"role": "user", "content": question}
    return tokenizer.encode(tokenizer.chat([message]))
  begin = [] if tokenizer.bos is None else [tokenizer.bos]
  return begin + tokenizer.encode(f"Question: {question.strip()}\nAnswer:\n")


def examples(
  tokenizer: Tokenizer, questions: Sequence[Question], *, length: int
) -> Examples:
  """Makes examples to train on: prompt, answer, `eos`, padding.

  Args:
    tokenizer: the model's.
    questions: at least one.
    length: of the examples, in tokens.

  Returns:
    An example of each question, whose targets are the answer and `eos`.

  Raises:
    UserError: there are no questions, or one does not fit.
  """
  if not questions:
    raise UserError("questions: wanted at least one, got none.")
  # Encoded separately, as they are when the model answers: tokens must not
  # span the end of the prompt.
  prompts = [prompt(tokenizer, x.question) for x in questions]
  answers = [[*tokenizer.encode(x.answer), tokenizer.eos] for x in questions]
  lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
  if max(lengths) > length:
    raise UserError(
      f"questions: question {np.argmax(lengths)} and its answer have "
      f"{max(lengths)} tokens, wanted at most {length}; make examples longer."
    )
  tokens = np.full((len(questions), length), tokenizer.end_of_text, np.int32)
  real = np.arange(length) < np.array(lengths)[:, None]
  targets = real.copy()
  for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
    tokens[i, : lengths[i]] = p + a
    targets[i, : len(p)] = False
  return Examples(tokens, targets, real)


@functools.cache
def _verifier(task: str) -> Callable[[str, dict[str, Any]], float]:
  """Returns the verifier of a task of reasoning-gym."""
  return optional.load("reasoning_gym").get_score_answer_fn(task)


def _number(text: str) -> decimal.Decimal | None:
  """Returns the number after the first ####, its commas left out, or None."""
  match = re.search(r"####\s*\$?(-?[\d,]*\.?\d+)", text)
  return match and decimal.Decimal(match[1].replace(",", ""))
