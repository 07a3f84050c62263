"""Recordings written here in the forms that WAV files have."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.audio import recordings
from tests.experiments.small_whisper import write_wav

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / 16_000)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_of_all_widths(tmp_path, width):
  got = recordings.read_wav(write_wav(tmp_path / "a.wav", [TONE], width=width))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, TONE, atol=max(2.0 ** (-8 * width), 1e-7))


def test_channels_are_averaged_and_rates_converted(tmp_path):
  tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2205) / 44_100)
  path = write_wav(tmp_path / "a.wav", [tone, 0.5 * tone], rate=44_100)
  got = recordings.read_wav(path)
  assert got.shape == (800,)
  np.testing.assert_allclose(got[50:-50], 0.75 * TONE[50:-50], atol=2e-3)


@pytest.mark.parametrize("content", [None, b"", b"ID3 no wave at all"])
def test_files_of_other_kinds(tmp_path, content):
  if content is not None:
    (tmp_path / "a.wav").write_bytes(content)
  with pytest.raises(UserError, match=r"a\.wav: wanted a WAV file"):
    recordings.read_wav(tmp_path / "a.wav")


def test_a_folder_in_the_layout_of_sphinx(tmp_path):
  for name in ("b", "a-1"):
    write_wav(tmp_path / f"{name}.wav", [TONE])
  text = "<s> it was a tone </s> (b)\n<s> four five  </s> (a-1)\n"
  (tmp_path / "the.transcription").write_text(text)
  one, other = recordings.read_folder(tmp_path)
  assert (one.name, one.text) == ("b", "it was a tone")
  assert (other.name, other.text) == ("a-1", "four five")
  np.testing.assert_allclose(other.samples, TONE, atol=1e-4)
  (tmp_path / "the.transcription").write_text("it was a tone\n")
  with pytest.raises(UserError, match=r"wanted lines like .* 'it was a tone'"):
    recordings.read_folder(tmp_path)
  (tmp_path / "the.transcription").write_text("")
  with pytest.raises(UserError, match=r"wanted lines like .* got ''"):
    recordings.read_folder(tmp_path)
  (tmp_path / "transcription").write_text(text)
  with pytest.raises(UserError, match="transcription, got 2; Debian's"):
    recordings.read_folder(tmp_path)
