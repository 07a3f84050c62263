"""Recordings of speech, and what was said in them.

WAV files of any rate, and folders in the layout of CMU Sphinx, which Debian's
package pocketsphinx-testdata holds.
"""

import math
import pathlib
import re
import wave
from typing import NamedTuple

import numpy as np
import scipy.signal

from experiments.errors import UserError

RATE = 16_000  # samples a second of all that is returned here

_LINE = re.compile(r"(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<name>[^()]+)\)\s*")


class Recording(NamedTuple):
  """A recording and its transcript.

  Attributes:
    name: of the file, without its suffix.
    samples: float32[n], from -1 to 1, 16000 a second.
    text: what is said, in lower case and without punctuation.
  """

  name: str
  samples: np.ndarray
  text: str


def read_wav(path: str | pathlib.Path) -> np.ndarray:
  """Reads a WAV file of integers, at 16 kHz.

  Channels are averaged; other rates are resampled by a polyphase filter.

  Args:
    path: the file.

  Returns:
    float32[n], from -1 to 1.

  Raises:
    UserError: there is no such file, or it is none of this kind.
  """
  try:
    with wave.open(str(path), "rb") as file:
      width, rate = file.getsampwidth(), file.getframerate()
      channels = file.getnchannels()
      content = file.readframes(file.getnframes())
  except (OSError, EOFError, wave.Error) as error:
    raise UserError(
      f"{path}: wanted a WAV file of integers, got {error or 'an empty file'}; "
      "convert it, by `ffmpeg -i FILE -ar 16000 -ac 1 out.wav` for example."
    ) from error
  x = _integers(content, width).reshape(-1, channels).mean(axis=1)
  if rate != RATE:
    common = math.gcd(rate, RATE)
    x = scipy.signal.resample_poly(x, RATE // common, rate // common)
  return x.astype(np.float32)


def _integers(content: bytes, width: int) -> np.ndarray:
  """Scales samples of `width` bytes each to -1 to 1, float64."""
  if width == 1:  # the only unsigned ones
    return np.frombuffer(content, np.uint8) / 128.0 - 1.0
  # Into the upper bytes of 32 bits, which keeps the sign.
  padded = np.zeros((len(content) // width, 4), np.uint8)
  padded[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
  return padded.view("<i4")[:, 0] / 2.0**31


def read_folder(path: str | pathlib.Path) -> list[Recording]:
  """Reads the recordings of a folder, and their transcripts.

  A file whose name ends with "transcription" has a line for each NAME.wav:
  "<s> what is said </s> (NAME)".

  Args:
    path: the folder, /usr/share/pocketsphinx/test/data/librivox for example.

  Returns:
    The recordings, in the order of the lines.

  Raises:
    UserError: there is no such file, or more than one; it has no lines, or one
      of another form; or a recording cannot be read.
  """
  folder = pathlib.Path(path)
  found = sorted(folder.glob("*transcription"))
  if len(found) != 1:
    raise UserError(
      f"{folder}: wanted one file whose name ends with transcription, got "
      f"{len(found)}; Debian's package pocketsphinx-testdata has such folders "
      "below /usr/share/pocketsphinx/test/data."
    )
  recordings = []
  for line in found[0].read_text("utf-8").splitlines() or [""]:
    match = _LINE.fullmatch(line)
    if not match:
      raise UserError(
        f"{found[0]}: wanted lines like '<s> words </s> (name)', got {line!r}."
      )
    name = match["name"]
    samples = read_wav(folder / f"{name}.wav")
    recordings.append(Recording(name, samples, match["text"].strip()))
  return recordings
