"""Word errors by hand, and real speech where Whisper and clips are."""

import pathlib

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.audio import recordings
from experiments.llm.evaluate import transcribe
from experiments.llm.io import load
from tests.experiments.small_whisper import make_model

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
