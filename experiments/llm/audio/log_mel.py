"""The logarithmic mel spectrogram that networks of the family Whisper read."""

import functools

import numpy as np

from experiments.errors import UserError
from experiments.llm.audio.recordings import RATE

HOP = 160  # samples from frame to frame: 10 ms
_WINDOW = 400  # samples of a frame: 25 ms
_RANGE = 8.0  # powers of ten below the loudest that are told apart


def log_mel(
  samples: np.ndarray, *, mels: int = 80, frames: int = 3000
) -> np.ndarray:
  """Computes the spectrogram of a recording, padded with silence.

  The power spectrum of each frame under Hann's window, in triangular bands that
  are evenly spaced in mel; of these the logarithm to base 10, cut off 8 below
  the largest, then (x + 4) / 4. Radford et al., "Robust Speech Recognition via
  Large-Scale Weak Supervision", arXiv 2212.04356, section 2.2; the details are
  those of whisper/audio.py in openai/whisper.

  Args:
    samples: [n], from -1 to 1, 16000 a second.
    mels: the number of bands, 80 or, in Whisper large-v3, 128.
    frames: the number of frames, of 10 ms each; 3000 are the 30 s that Whisper
      was trained on.

  Returns:
    float32[frames, mels].

  Raises:
    UserError: the recording is empty, longer than the frames, or not one
      channel of finite numbers.

  Example:
    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    >>> x = log_mel(tone, frames=100)
    >>> x.shape, int(x[50].argmax())
    ((100, 80), 26)
  """
  samples = np.asarray(samples, np.float64)
  if samples.ndim != 1 or not np.isfinite(samples).all():
    raise UserError(
      f"log_mel: wanted one channel of finite samples [n], got an array of "
      f"shape {samples.shape}, all finite: {bool(np.isfinite(samples).all())}."
    )
  if not 0 < len(samples) <= frames * HOP:
    raise UserError(
      f"log_mel: wanted a recording of at most {frames * HOP / RATE:g} s, got "
      f"{len(samples) / RATE:g} s; cut it, at pauses."
    )
  x = np.pad(samples, (0, frames * HOP - len(samples)))
  x = np.pad(x, _WINDOW // 2, mode="reflect")
  cut = np.lib.stride_tricks.sliding_window_view(x, _WINDOW)[::HOP][:frames]
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
  power = np.abs(np.fft.rfft(cut * window)) ** 2
  y = np.log10(np.maximum(power @ mel_filters(mels), 1e-10))
  y = np.maximum(y, y.max() - _RANGE)
  return ((y + 4.0) / 4.0).astype(np.float32)


@functools.cache
def mel_filters(mels: int) -> np.ndarray:
  """Computes how much of each frequency each band has.

  Triangles whose corners are evenly spaced in mel from 0 to 8 kHz, each
  scaled to an area of 1. Slaney, "Auditory Toolbox", 1998: mel is linear up to
  1 kHz and logarithmic above.

  Args:
    mels: the number of bands.

  Returns:
    float64[201, mels], for the frequencies 0, 40, ... 8000 Hz.
  """
  # 15 mel are 1 kHz; 27 more are 6.4 times as much.
  corners = np.linspace(0.0, 15 + 27 * np.log(8.0) / np.log(6.4), mels + 2)
  corners = np.where(
    corners < 15, corners * 200 / 3, 1000 * 6.4 ** ((corners - 15) / 27)
  )
  low, middle, high = corners[:-2], corners[1:-1], corners[2:]
  at = np.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)[:, None]
  rising = (at - low) / (middle - low)
  falling = (high - at) / (high - middle)
  triangles = np.maximum(0.0, np.minimum(rising, falling))
  return triangles * 2 / (high - low)
