"""What becomes of recordings and their texts."""

import dataclasses

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.audio import examples, log_mel
from experiments.llm.audio.recordings import Recording
from experiments.llm.io.model import Model
from tests.experiments import small_llama
from tests.experiments.small_whisper import CONFIG, make_model

MODEL = make_model()
MANY = MODEL._replace(config=dataclasses.replace(CONFIG, vocab_size=51_865))
CLIPS = [
  Recording("a", np.ones(2000), "it was"),
  Recording("b", np.ones(30), "no"),
]


def test_prompts():
  assert examples.prompt(MODEL, "fr") == [257, 258]
  with pytest.raises(
    UserError, match=r"no token <\|de\|>, wanted that of a Wh"
  ):
    examples.prompt(MANY, "de")
  with pytest.raises(UserError, match=r"no token <\|transcribe\|>"):
    examples.prompt(MANY, "fr")


def test_recordings_become_examples():
  got = examples.from_recordings(MODEL, CLIPS)
  begin, end = [257, 258], 256
  assert got.tokens.tolist() == [
    [*begin, *b" it was", end],
    [*begin, *b" no", end, end, end, end, end],
  ]
  assert got.real.sum(axis=1).tolist() == [10, 6]
  assert got.targets[0].tolist() == [False] * 2 + [True] * 8
  assert got.targets[1].tolist() == [False] * 2 + [True] * 4 + [False] * 4
  assert got.source.shape == (2, 16, 5)
  np.testing.assert_array_equal(
    got.source[1], log_mel.log_mel(np.ones(30), mels=5, frames=16)
  )
  assert got.source_real is None


def test_texts_and_models_that_do_not_fit():
  with pytest.raises(UserError, match="text of 19 tokens, wanted at most 16"):
    examples.from_recordings(MODEL, [CLIPS[0]._replace(text=15 * "x")])
  deaf = Model(small_llama.CONFIG, {}, MODEL.tokenizer)
  with pytest.raises(UserError, match="of the family llama, wanted one that"):
    examples.spectrograms(deaf, [np.ones(30)])
