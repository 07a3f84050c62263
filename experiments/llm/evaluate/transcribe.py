"""What Whisper writes down of recordings, and how much of it is wrong."""

import unicodedata
from collections.abc import Sequence

import jax
import numpy as np

from experiments.llm.audio import examples
from experiments.llm.audio.recordings import Recording
from experiments.llm.evaluate import generate
from experiments.llm.families.protocol import EncoderDecoder
from experiments.llm.io.model import Model


def transcribe(
  model: Model,
  recordings: Sequence[np.ndarray],
  *,
  language: str = "en",
  tokens: int = 200,
  batch: int = 8,
  network: EncoderDecoder | None = None,
) -> list[str]:
  """Writes down recordings, greedily and without timestamps.

  Nothing but the most likely token is taken: none is ruled out, and there is
  no second attempt at another temperature, as OpenAI's own decoding has them.

  Args:
    model: of the family Whisper.
    recordings: float[n] each, 16000 samples a second, at most as long as the
      model's encoder reads, 30 s.
    language: of the speech; see `examples.prompt`.
    tokens: the most of each text.
    batch: recordings to hear at a time.
    network: what runs the parameters; the model's own by default.

  Returns:
    The texts.

  Raises:
    UserError: the model hears no recordings, does not know the language, or a
      recording is too long.
  """
  prompt = examples.prompt(model, language)
  network = network or model.network()
  params = jax.device_put(model.params)
  texts = []
  for i in range(0, len(recordings), batch):
    several = recordings[i : i + batch]
    made = generate.greedy(
      network,
      params,
      [prompt] * len(several),
      steps=tokens,
      stop=model.stop_tokens,
      source={"source": examples.spectrograms(model, several)},
    )
    texts += [model.tokenizer.decode(text).strip() for text in made]
  return texts


def words_of(text: str) -> list[str]:
  """Splits a text into words, without case, punctuation and hyphens.

  Args:
    text: the text.

  Returns:
    The words; apostrophes stay in them.

  Example:
    >>> words_of("Unless to be cold-hearted, isn't it?")
    ['unless', 'to', 'be', 'cold', 'hearted', "isn't", 'it']
  """
  kept = (
    c if c == "'" or unicodedata.category(c)[0] in "LNM" else " "
    for c in unicodedata.normalize("NFC", text).lower()
  )
  return "".join(kept).split()


def word_errors(wanted: Sequence[str], got: Sequence[str]) -> int:
  """Counts the words to be replaced, put in and taken out: Levenshtein's.

  Args:
    wanted: the words that were said.
    got: the words that were written.

  Returns:
    The least number.

  Example:
    >>> word_errors("he was not ill disposed".split(), "he was an ill".split())
    2
  """
  row = np.arange(len(got) + 1)
  for i, word in enumerate(wanted, 1):
    above, row = row, np.empty_like(row)
    row[0] = i
    for j, other in enumerate(got, 1):
      same = above[j - 1] + (word != other)
      row[j] = min(same, above[j] + 1, row[j - 1] + 1)
  return int(row[-1])


def count_errors(
  recordings: Sequence[Recording], texts: Sequence[str]
) -> tuple[int, int]:
  """Counts the word errors of several texts, and the words that were said.

  Args:
    recordings: with what was said.
    texts: what was written.

  Returns:
    Both; their ratio is the word error rate.
  """
  errors = words = 0
  for recording, got in zip(recordings, texts, strict=True):
    wanted = words_of(recording.text)
    errors += word_errors(wanted, words_of(got))
    words += len(wanted)
  return errors, words
