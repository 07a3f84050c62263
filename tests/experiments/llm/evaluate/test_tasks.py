"""What models are trained on and judged by."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import generate, tasks
from experiments.llm.families import registry
from experiments.llm.io import load, tokenizer
from experiments.llm.io.model import Model
from experiments.llm.text import questions
from tests.experiments import small_mpt, small_t5, small_whisper

MODEL = load.random(seed=0, dim=8, layers=1, heads=1, hidden=8, context=256)
TRAIN = {"name": "python_help", "test": False}
TEST = {"name": "python_help", "test": True}


def test_examples_of_a_text_follow_each_other():
  task = tasks.text(MODEL, train=TRAIN, test=TEST, length=10)
  examples = task.examples
  assert examples.tokens.shape == (len(task.text) // 10, 10)
  np.testing.assert_array_equal(
    examples.tokens.ravel(), task.text[: examples.tokens.size]
  )
  assert not examples.targets[:, 0].any()
  assert examples.targets[:, 1:].all()
  assert examples.real.all()
  assert (task.measure, task.lower_is_better) == ("perplexity", True)


def test_examples_of_questions_have_answers_as_targets_and_padding():
  pytest.importorskip("reasoning_gym")
  task = tasks.reasoning(MODEL, task="chain_sum", train=9, test=5, length=128)
  tokens, targets, real, *_ = task.examples
  tokenizer = MODEL.tokenizer
  drawn, _ = questions.split("chain_sum", train=9, test=5, seed=0)
  for i, question in enumerate(drawn):
    answer = tokens[i][targets[i]]
    assert answer[-1] == tokenizer.eos
    assert tokenizer.decode(answer[:-1].tolist()) == question.answer
    whole = tokenizer.decode(tokens[i][real[i]][:-1].tolist())
    assert whole.endswith(question.answer)
    assert question.question.strip() in whole
    n = real[i].sum()
    assert real[i][:n].all()
    assert (tokens[i][n:] == tokenizer.end_of_text).all()
  assert len(task.text) == real.sum()


@pytest.mark.parametrize("batch", [2, 4, 8])
def test_accuracy_leaves_out_what_fills_the_batch(monkeypatch, batch):
  pytest.importorskip("reasoning_gym")
  task = tasks.reasoning(
    MODEL, task="chain_sum", train=9, test=7, length=128, batch=batch
  )
  _, test = questions.split("chain_sum", train=9, test=7, seed=0)
  prompts = [tuple(questions.prompt(MODEL.tokenizer, x.question)) for x in test]
  answers = dict(zip(prompts, [x.answer for x in test], strict=True))
  wrong = set(prompts[1::2])
  sizes = set()

  def answer(llm, params, several, *, steps, stop):
    assert steps == max(len(x) for x in answers.values()) + 1
    assert stop == (MODEL.tokenizer.eos,)
    sizes.add(len(several))
    return [
      MODEL.tokenizer.encode(
        "no idea" if tuple(p) in wrong else answers[tuple(p)]
      )
      for p in several
    ]

  monkeypatch.setattr(generate, "greedy", answer)
  scores = task.evaluate(None, None)
  assert scores == {"accuracy": (len(test) + 1) // 2 / len(test),
                    "questions": len(test)}  # fmt: skip
  assert len(sizes) == 1  # One program serves all batches.


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"length": 257}, "length 257, wanted 2 to 256"),
    ({"length": 1}, "length 1, wanted 2 to 256"),
    ({"train": {"name": "python_halp"}}, "did you mean 'python_help'"),
    ({"test": {"name": "text", "data_dir": "nowhere"}}, "no files .*txt"),
    ({"windows": 3}, "did you mean 'window'"),
  ],
)
def test_errors_of_configs(changes, message):
  config = {"name": "text", "train": TRAIN, "test": TEST, "length": 8}
  with pytest.raises(UserError, match=message):
    tasks.make(MODEL, {**config, **changes})


MPT = dataclasses.replace(small_mpt.CONFIG, context=128)
FITTING = {
  "llama": ("text", "reasoning", "gsm8k"),
  "mpt": ("text", "reasoning", "gsm8k"),
  "t5": ("span_corruption", "pairs"),
  "whisper": ("speech",),
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
  """Options of every task, and its data."""
  folder = tmp_path_factory.mktemp("tasks")
  lines = {"question": "2 + 2?", "answer": "It is\n#### 4"}
  lines |= {"source": "one", "target": "two"}
  for name in ("train", "test"):
    (folder / f"{name}.jsonl").write_text(json.dumps(lines))
  small_whisper.write_wav(folder / "a.wav", [np.zeros(1000)])
  (folder / "transcription").write_text("<s> hm </s> (a)")
  texts = {"train": TRAIN, "test": TEST, "length": 12, "test_tokens": 24}
  files = (str(folder / f"{name}.jsonl") for name in ("train", "test"))
  pairs = dict(zip(("train_path", "test_path"), files, strict=True))
  return {
    "text": texts,
    "reasoning": {"task": "chain_sum", "train": 1, "test": 1},
    "gsm8k": {"data_dir": str(folder), "length": 60},
    "span_corruption": texts,
    "pairs": {**pairs, "length": 16, "target_length": 16},
    "speech": {"train": str(folder), "test": str(folder)},
  }


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("family", registry.FAMILIES)
def test_a_family_has_the_tasks_that_its_network_reads(family, name, options):
  model = {
    "llama": MODEL,
    "mpt": Model(MPT, None, tokenizer.byte_level()),
    "t5": Model(small_t5.CONFIG, None, tokenizer.byte_level(sentinels=3)),
    "whisper": small_whisper.make_model(),
  }[family]
  if name == "reasoning":
    pytest.importorskip("reasoning_gym")
  config = {"name": name, **options[name]}
  if name in FITTING[family]:
    made = tasks.make(model, config)
    assert (made.examples.source is not None) == (family in ("t5", "whisper"))
    return
  wanted = (
    f"got {name} for a model of the family {family}, wanted one of "
    f"{', '.join(FITTING[family])}: "
  )
  with pytest.raises(UserError, match=wanted):
    tasks.make(model, config)
