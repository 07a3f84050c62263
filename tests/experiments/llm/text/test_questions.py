"""Questions are drawn once, scored by their tasks, and masked to answers."""

import ast
import json
import re

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.io import tokenizer
from experiments.llm.text import questions

BYTES = tokenizer.byte_level()
CHAT = tokenizer.Tokenizer(
  BYTES.backend,
  eos=126,
  bos=94,
  chat_template="{{ bos_token }}{% for m in messages %}[{{ m['role'][0] }}]"
  "{{ m['content'] }}~{% endfor %}"
  "{% if add_generation_prompt %}[a]{% endif %}",
)


@pytest.mark.parametrize("task", questions.TASKS)
def test_questions_depend_on_the_seed_alone(task):
  made = questions.generate(task, size=40, seed=3)
  assert made == questions.generate(task, size=40, seed=3)
  assert len(made) == 40
  texts = [x.question for x in made]
  for other in (2, 4):
    others = [x.question for x in questions.generate(task, size=40, seed=other)]
    # A wrong seed would shift them all by one.
    assert sum(a == b for a, b in zip(texts[1:], others, strict=False)) < 4
    assert sum(a == b for a, b in zip(texts, others[1:], strict=False)) < 4


@pytest.mark.parametrize("task", questions.TASKS)
def test_verifiers_know_right_from_wrong(task):
  for x in questions.generate(task, size=20, seed=0):
    assert x.task == task
    assert questions.score(x, x.answer) == 1.0
    assert questions.score(x, f" {x.answer}\n") == 1.0
    assert questions.score(x, x.answer + "1") < 1.0
    assert questions.score(x, "") == 0.0


def test_answers_are_right():
  for x in questions.generate("chain_sum", size=50, seed=1):
    expression = re.search(r"problem: ([\d +-]+) =", x.question)[1]
    numbers = re.findall(r"\d+", expression)
    assert 2 <= len(numbers) <= 3
    assert max(map(len, numbers)) <= 2
    assert int(x.answer) == eval(expression)
  for x in questions.generate("word_sequence_reversal", size=50, seed=1):
    words = x.question.strip().rpartition(": ")[2].split(", ")
    assert 3 <= len(words) <= 5
    assert x.answer == ", ".join(reversed(words))
  for x in questions.generate("number_filtering", size=50, seed=1):
    rule, limit, found = re.search(
      r"(\w+) all numbers (?:\w+) than (\S+) in this list: (\[.*\])", x.question
    ).groups()
    beyond = float.__gt__ if "larger" in x.question else float.__lt__
    keeps = [
      n
      for n in ast.literal_eval(found)
      if beyond(float(n), float(limit)) == (rule == "Keep")
    ]
    assert ast.literal_eval(x.answer) == keeps


def test_options_replace_the_defaults():
  made = questions.generate(
    "chain_sum", size=9, seed=0, min_terms=5, max_terms=5
  )
  assert all(len(re.findall(r"[+-] ", x.question)) == 4 for x in made)


@pytest.mark.parametrize(
  ("task", "options", "message"),
  [
    ("chain_sums", {}, "no task is called 'chain_sums'; did you mean 'chain_s"),
    ("chain_sum", {"max_term": 3}, "option of chain_sum .* 'max_terms'"),
    ("chain_sum", {"max_terms": 1}, "max_terms must be >= min_terms"),
    ("gsm_symbolic", {"difficulty": 2.0}, r"gsm_symbolic: .*'difficulty': 2"),
    ("chain_sum", {"size": 0}, "positive size .* got 0 and 1"),
    ("chain_sum", {"seed": -1}, "not negative, got 5 and -1"),
  ],
)
def test_what_there_is_not(task, options, message):
  with pytest.raises(UserError, match=message):
    questions.generate(task, **{"size": 5, "seed": 1} | options)


def test_no_question_of_the_test_is_trained_on():
  small = {"max_terms": 2, "max_digits": 1}  # 200 questions.
  train, test = questions.split(
    "chain_sum", train=150, test=150, seed=5, **small
  )
  trained = {x.question for x in train}
  tested = [x.question for x in test]
  assert len(train) == 150
  assert not trained & set(tested)
  assert len(tested) == len(set(tested))
  drawn = questions.generate("chain_sum", size=150, seed=11, **small)
  assert set(tested) == {x.question for x in drawn} - trained
  again = questions.split("chain_sum", train=150, test=150, seed=5, **small)
  assert again == (train, test)
  with pytest.raises(UserError, match="all of the 3 questions drawn"):
    questions.split("chain_sum", train=9000, test=3, seed=5, **small)


@pytest.fixture
def gsm8k(tmp_path):
  for split, rows in {
    "train": [("How many?", "2 * 500 = <<2*500=1000>>1000.\n#### 1,000")],
    "test": [("What?", "So -2.\n#### -2"), ("Which?", "#### 0.50")],
  }.items():
    lines = [json.dumps({"question": q, "answer": a}) for q, a in rows]
    (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
  return tmp_path


def test_gsm8k_counts_the_number_after_the_marks(gsm8k):
  (question,) = questions.gsm8k(gsm8k, split="train")
  assert question.question == "How many?"
  for right in (question.answer, "#### 1000", "x #### $1,000.", "####1000.00"):
    assert questions.score(question, right) == 1.0
  for wrong in ("1000", "#### 100", "#### -1000", "#### 1000.5", "####", ""):
    assert questions.score(question, wrong) == 0.0
  assert questions.score(question, "#### 1000\n#### 7") == 1.0
  assert questions.score(question, "#### 7\n#### 1000") == 0.0
  first, second = questions.gsm8k(gsm8k, split="test")
  assert questions.score(first, "#### -2") == 1.0
  assert questions.score(first, "#### 2") == 0.0
  assert questions.score(second, "#### .5") == 1.0
  with pytest.raises(UserError, match="no such file"):
    questions.gsm8k(gsm8k, split="dev")
  (gsm8k / "test.jsonl").write_text('{"question": "Q", "answer": "5"}')
  with pytest.raises(UserError, match="#### and a number, got '5'"):
    questions.gsm8k(gsm8k, split="test")


def test_prompts_are_those_of_the_model():
  text = "How many? \n"
  assert BYTES.decode(questions.prompt(BYTES, text)) == (
    "Question: How many?\nAnswer:\n"
  )
  begun = tokenizer.Tokenizer(BYTES.backend, eos=256, bos=94)
  assert questions.prompt(begun, text) == [94, *questions.prompt(BYTES, text)]
  assert CHAT.decode(questions.prompt(CHAT, text)) == "^[u]How many? \n~[a]"


@pytest.mark.parametrize("made", [BYTES, CHAT])
def test_the_loss_covers_the_answer_and_its_end(made):
  asked = [
    questions.Question("t", "How many?", "12", {}),
    questions.Question("t", "W?", "-305", {}),
  ]
  tokens, mask, real, *_ = questions.examples(made, asked, length=40)
  assert tokens.shape == mask.shape == (2, 40)
  assert (tokens.dtype, mask.dtype) == (np.int32, bool)
  end = made.decode([made.eos])
  for x, row, used in zip(asked, tokens, mask, strict=True):
    prompt = questions.prompt(made, x.question)
    n = len(prompt)
    assert row[:n].tolist() == prompt
    assert made.decode(row[used]) == x.answer + end
    assert np.flatnonzero(used).tolist() == list(
      range(n, n + len(x.answer) + 1)
    )
    assert set(row[n + len(x.answer) + 1 :].tolist()) <= {made.end_of_text}
  np.testing.assert_array_equal(
    real.sum(1), mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)
  )
  assert (np.diff(real.astype(int), axis=1) <= 0).all()
  longest = int(mask.nonzero()[1].max()) + 1
  fits = questions.examples(made, asked, length=longest)
  np.testing.assert_array_equal(fits.tokens, tokens[:, :longest])
  with pytest.raises(
    UserError, match=rf"question [01] .* {longest} tokens, .*"
  ):
    questions.examples(made, asked, length=longest - 1)


def test_examples_of_a_chat_follow_its_template():
  asked = [questions.Question("t", "How many?", "12", {})]
  tokens, *_ = questions.examples(CHAT, asked, length=20)
  messages = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "12"},
  ]
  whole = CHAT.chat(messages, add_generation_prompt=False)
  assert CHAT.decode(tokens[0]) == whole


def test_there_must_be_questions():
  with pytest.raises(UserError, match="at least one, got none"):
    questions.examples(BYTES, [], length=5)
