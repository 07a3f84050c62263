"""The spectrogram against sums written out, and against transformers."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.audio import log_mel

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=3210) * np.linspace(0, 0.3, 3210)


def mel(hertz):
  """Slaney's scale: 200 Hz are 3 mel up to 1 kHz, logarithmic above."""
  linear = 3 * hertz / 200
  return np.where(
    hertz < 1000,
    linear,
    15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4),
  )


def test_filters_are_triangles_in_hertz_evenly_spaced_in_mel():
  filters = log_mel.mel_filters(80)
  hertz = np.arange(201) * 40.0
  fine = np.linspace(0, 8000, 400_001)
  corners = np.interp(np.linspace(0, mel(8000.0), 82), mel(fine), fine)
  for i in range(80):
    low, middle, high = corners[i : i + 3]
    triangle = np.interp(hertz, [low, middle, high], [0, 1, 0])
    np.testing.assert_allclose(
      filters[:, i], triangle * 2 / (high - low), atol=1e-6
    )


def test_the_spectrogram_is_the_sums_of_its_definition():
  got = log_mel.log_mel(NOISE, mels=40, frames=25)
  assert (got.shape, got.dtype) == ((25, 40), np.float32)
  padded = np.concatenate([NOISE, np.zeros(25 * 160 - len(NOISE))])
  at = np.arange(-200, 25 * 160 + 200)
  at = np.abs(at)  # reflected at both ends
  at = np.where(at >= len(padded), 2 * (len(padded) - 1) - at, at)
  wave = padded[at]
  n = np.arange(400)
  window = np.sin(np.pi * n / 400) ** 2
  filters = log_mel.mel_filters(40)
  rows = []
  for frame in range(25):
    cut = wave[160 * frame : 160 * frame + 400] * window
    turned = np.exp(-2j * np.pi * np.outer(np.arange(201), n) / 400) @ cut
    rows.append(np.log10(np.maximum(np.abs(turned) ** 2 @ filters, 1e-10)))
  wanted = np.array(rows)
  assert wanted.min() < wanted.max() - 8  # What is cut off.
  wanted = np.maximum(wanted, wanted.max() - 8)
  np.testing.assert_allclose(got, wanted / 4 + 1, atol=1e-6)


@pytest.mark.parametrize("mels", [80, 128])
def test_it_is_that_of_transformers(mels):
  reason = "needs `pip install -e '.[peers]'`"
  transformers = pytest.importorskip("transformers", reason=reason)
  peer = transformers.WhisperFeatureExtractor(feature_size=mels)
  wanted = peer(NOISE, sampling_rate=16_000, return_tensors="np")
  wanted = wanted["input_features"][0].T
  got = log_mel.log_mel(NOISE, mels=mels)
  np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(
  ("samples", "message"),
  [
    (np.zeros(0), "at most 0.25 s, got 0 s"),
    (np.zeros(4001), "at most 0.25 s, got 0.250063 s; cut it"),
    (np.zeros((2, 50)), r"got an array of shape \(2, 50\)"),
    (np.array([0, np.nan]), "all finite: False"),
  ],
)
def test_recordings_that_are_not_read(samples, message):
  with pytest.raises(UserError, match=message):
    log_mel.log_mel(samples, frames=25)
