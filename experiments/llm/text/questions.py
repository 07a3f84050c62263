"""Questions with short answers that a program can check, to fine-tune on.

Four tasks of the package reasoning-gym, which makes any number of them, and
GSM8K from a user's files; and the rows of tokens to train on.
"""

import dataclasses
import decimal
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import errors
from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.io.tokenizer import Tokenizer
from experiments.llm.text import corpora

# The tasks, with options that make them small; reasoning-gym's own are harder.
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
  """A question.

  Attributes:
    task: of `TASKS`, or "gsm8k".
    question: its text.
    answer: what a model is to write.
    entry: what the task's verifier asks for.
  """

  task: str
  question: str
  answer: str
  entry: dict[str, Any]


class Batch(NamedTuple):
  """Examples as rows of one length, padded on the right.

  Attributes:
    tokens: int32[n, length].
    mask: bool[n, length]; True for tokens of the answer, its end included: a
      loss counts the predictions of those tokens.
  """

  tokens: np.ndarray
  mask: np.ndarray


def dataset(task: str, *, size: int, seed: int, **options) -> list[Question]:
  """Makes questions; equal arguments give equal questions.

  Args:
    task: of `TASKS`.
    size: how many.
    seed: not negative; the draws of different seeds are independent.
    **options: of the task's config in reasoning-gym, in place of those in
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
  for option in options:
    if option not in known:
      raise errors.unknown(f"option of {task}", option, known)
  options = TASKS[task] | options
  try:
    # Question i is drawn from seed + i alone, so seeds next to each other would
    # share all questions but one.
    made = gym.create_dataset(task, size=size, seed=seed << 32, **options)
  except AssertionError as error:
    raise UserError(f"{task}: {error}, got {options}.") from error
  return [Question(task, x["question"], x["answer"], x) for x in made]


def split(
  task: str, *, train: int, test: int, seed: int, **options
) -> tuple[list[Question], list[Question]]:
  """Makes questions to train on and others to test on.

  Args:
    task: of `TASKS`.
    train: how many to train on.
    test: how many to draw for the test; those that are in the training set, or
      for a second time in the test, are left out.
    seed: of both.
    **options: as in `dataset`.

  Returns:
    The questions to train on and those to test on, fewer than `test` if the
    task has few questions.

  Raises:
    UserError: as `dataset`, or no question is left to test on.
  """
  training = dataset(task, size=train, seed=2 * seed, **options)
  drawn = dataset(task, size=test, seed=2 * seed + 1, **options)
  seen = {x.question for x in training}
  testing = {x.question: x for x in drawn if x.question not in seen}
  if not testing:
    raise UserError(
      f"{task}: all of the {test} questions drawn for the test are among the "
      f"{train} to train on; train on fewer, or choose options that make more "
      "questions."
    )
  return training, list(testing.values())


def gsm8k(folder: str | pathlib.Path, *, split: str) -> list[Question]:
  """Reads GSM8K: 7,473 word problems to train on and 1,319 to test on.

  Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv
  2110.14168; the files are in the repository openai/grade-school-math, folder
  grade_school_math/data.

  Args:
    folder: of `train.jsonl` and `test.jsonl`.
    split: "train" or "test".

  Returns:
    The questions. Answers end with the number, after "####".

  Raises:
    UserError: the file is missing or damaged, or an answer has no number.
  """
  path = pathlib.Path(folder) / f"{split}.jsonl"
  made = [
    Question(_GSM8K, question, answer, {"answer": answer})
    for question, answer in zip(
      corpora.jsonl(path=path, field="question"),
      corpora.jsonl(path=path, field="answer"),
      strict=True,
    )
  ]
  for question in made:
    if _number(question.answer) is None:
      raise UserError(
        f"{path}: wanted answers that end with #### and a number, got "
        f"{question.answer!r}."
      )
  return made


def score(question: Question, text: str) -> float:
  """Judges what a model has written, by the task's own verifier.

  Args:
    question: the question.
    text: the answer; spaces around it do not matter.

  Returns:
    1.0 for a right answer. For a wrong one 0.0, or less than 1.0 where the
    verifier of the task gives something for coming near. For GSM8K, whether
    the number after the first "####" is the right one.
  """
  if question.task == _GSM8K:
    return float(_number(text) == _number(question.answer))
  return float(_verifier(question.task)(text.strip(), question.entry))


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
  """Returns the tokens after which a model is to answer.

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


def batch(
  tokenizer: Tokenizer, questions: Sequence[Question], *, length: int
) -> Batch:
  """Makes the rows to train on: prompt, answer, end of the answer, padding.

  Args:
    tokenizer: the model's.
    questions: at least one.
    length: of the rows, in tokens.

  Returns:
    The rows, one for each question.

  Raises:
    UserError: there are no questions, or one does not fit.
  """
  if not questions:
    raise UserError("questions: wanted at least one, got none.")
  # Apart from each other, as they are when the model answers.
  prompts = [prompt(tokenizer, x.question) for x in questions]
  answers = [[*tokenizer.encode(x.answer), tokenizer.eos] for x in questions]
  lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
  if max(lengths) > length:
    raise UserError(
      f"questions: question {np.argmax(lengths)} and its answer have "
      f"{max(lengths)} tokens, wanted at most {length}; make the rows longer."
    )
  tokens = np.full((len(questions), length), tokenizer.end_of_text, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
    tokens[i, : lengths[i]] = p + a
    mask[i, len(p) : lengths[i]] = True
  return Batch(tokens, mask)


@functools.cache
def _verifier(task: str):
  return optional.load("reasoning_gym").get_score_answer_fn(task)


def _number(text: str) -> decimal.Decimal | None:
  """The number after the first ####, without the commas of thousands."""
  match = re.search(r"####\s*\$?(-?[\d,]*\.?\d+)", text)
  return match and decimal.Decimal(match[1].replace(",", ""))
