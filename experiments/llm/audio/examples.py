"""Examples of speech and its transcripts, for Whisper."""

from collections.abc import Sequence

import numpy as np

from experiments.errors import UserError
from experiments.llm.audio import log_mel
from experiments.llm.audio.recordings import Recording
from experiments.llm.io.model import Model
from experiments.llm.text.examples import Examples

_START = "<|startoftranscript|>"
# From here on models know many languages, as whisper/model.py has it.
_MULTILINGUAL = 51_865


def prompt(model: Model, language: str) -> list[int]:
  """Makes what the decoder is told: what to write, and without timestamps.

  Radford et al., arXiv 2212.04356, section 2.3 and figure 1.

  Args:
    model: of the family Whisper.
    language: of the speech, "en" for example; models for English alone are not
      told.

  Returns:
    The tokens, `decoder_start` first.

  Raises:
    UserError: the tokenizer has not what belongs to such a model.
  """
  words = [_START]
  if model.config.vocab_size >= _MULTILINGUAL:
    words += [f"<|{language}|>", "<|transcribe|>"]
  tokens = []
  for word in (*words, "<|notimestamps|>"):
    tokens.append(model.tokenizer.backend.token_to_id(word))
    if tokens[-1] is None:
      raise UserError(
        f"speech: the tokenizer has no token {word}, wanted that of a Whisper "
        "model, and a language that it knows."
      )
  return tokens


def spectrograms(model: Model, recordings: Sequence[np.ndarray]) -> np.ndarray:
  """Computes what the model's encoder reads.

  Args:
    model: of the family Whisper.
    recordings: float[n] each, 16000 samples a second.

  Returns:
    float32[len(recordings), config.frames, config.mels].

  Raises:
    UserError: the model reads no spectrograms, or one is too long for it.
  """
  c = model.config
  if not hasattr(c, "mels"):
    raise UserError(
      f"speech: got a model of the family {model.family.NAME}, wanted one that "
      "hears, of the family whisper."
    )
  return np.stack(
    [log_mel.log_mel(x, mels=c.mels, frames=c.frames) for x in recordings]
  )


def from_recordings(
  model: Model, recordings: Sequence[Recording], *, language: str = "en"
) -> Examples:
  """Makes examples of recordings and what is to be written down.

  Args:
    model: of the family Whisper.
    recordings: at least one. Their texts follow the prompt after a space, as
      Whisper writes them.
    language: of the speech.

  Returns:
    An example for each: targets are the text and the end, not the prompt.

  Raises:
    UserError: a recording or a text is too long for the model.
  """
  begin = prompt(model, language)
  encode, end = model.tokenizer.encode, model.tokenizer.eos
  texts = [[*begin, *encode(f" {r.text}"), end] for r in recordings]
  length = max(map(len, texts))
  if length > model.config.context:
    raise UserError(
      f"speech: got a text of {length} tokens, wanted at most "
      f"{model.config.context}, the model's context; cut the recording."
    )
  lengths = np.array([len(text) for text in texts])[:, None]
  real = np.arange(length) < lengths
  tokens = np.full(real.shape, end, np.int32)
  tokens[real] = np.concatenate(texts)
  targets = real & (np.arange(length) >= len(begin))
  source = spectrograms(model, [r.samples for r in recordings])
  return Examples(tokens, targets, real, source)
