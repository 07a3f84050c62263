"""Word errors by hand, and real speech where Whisper and clips are."""

import pathlib

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.audio import recordings
from experiments.llm.evaluate import perplexity, tasks, transcribe
from experiments.llm.io import load
from experiments.llm.prune import pruners
from tests.experiments.small_whisper import make_model, write_wav

CLIPS = pathlib.Path("/usr/share/pocketsphinx/test/data/librivox")


@pytest.mark.parametrize(
  ("wanted", "got", "errors"),
  [
    ("a b c d", "a b c d", 0),
    ("a b c d", "a x c d", 1),
    ("a b c d", "a c d", 1),
    ("a b c d", "a b b c d", 1),
    ("a b c d", "b c d a", 2),
    ("a b", "", 2),
    ("", "a b c", 3),
  ],
)
def test_word_errors(wanted, got, errors):
  assert transcribe.word_errors(wanted.split(), got.split()) == errors


def test_errors_of_several_texts():
  clips = [recordings.Recording("a", None, t) for t in ("it is so", "no")]
  assert transcribe.count_errors(clips, ["It's so.", "No!"]) == (2, 4)


def test_words():
  got = transcribe.words_of("  It's “naïve”, e\u0301t\xe9;\nSTILL-life 7.")
  assert got == ["it's", "naïve", "\xe9t\xe9", "still", "life", "7"]


@pytest.mark.slow
def test_recordings_of_one_batch_are_those_of_each():
  model = make_model()
  clips = np.random.default_rng(0).normal(size=(2, 2000))
  got = transcribe.transcribe(model, [*clips, clips[0, :300]], tokens=5)
  alone = [transcribe.transcribe(model, [x], tokens=5)[0] for x in clips]
  assert got[:2] == alone


@pytest.mark.slow
def test_recordings_are_a_task(tmp_path):
  rng = np.random.default_rng(0)
  for name in "abc":
    write_wav(tmp_path / f"{name}.wav", [0.1 * rng.normal(size=1000)])
  lines = [f"<s> {'x' * n} </s> ({'abc'[n]})\n" for n in range(3)]
  (tmp_path / "transcription").write_text("".join(lines))
  folder = str(tmp_path)
  model = make_model()
  options = {"train": folder, "test": folder, "new_tokens": 3, "batch": 2}
  task = tasks.make(model, {"name": "speech", **options})
  wanda = {"name": "wanda", "sparsity": 0.5, "sequences": 4}
  student = pruners.prune(model, task.text, wanda)
  numbers = tasks.evaluate(student, task)
  assert numbers["nnz"] == numbers["size"] // 2
  # A space, the letters and the end of each.
  assert numbers["tokens"] == 3 * 2 + 3
  assert 0 <= numbers["word_error_rate"] < 10
  alone, _ = perplexity.of_examples(
    student.network(), student.params, task.examples, batch=3
  )
  np.testing.assert_allclose(numbers["perplexity"], alone, rtol=1e-5)


@pytest.mark.slow
def test_whisper_writes_down_what_is_read_aloud():
  try:
    model = load.whisper_tiny_en()
  except UserError as error:
    pytest.skip(str(error))
  if not CLIPS.is_dir():
    pytest.skip("needs Debian's package pocketsphinx-testdata")
  *_, clip = recordings.read_folder(CLIPS)
  (text,) = transcribe.transcribe(model, [clip.samples], tokens=20)
  assert text == "He might even have been made amiable himself."
  assert transcribe.words_of(text) == clip.text.split()
