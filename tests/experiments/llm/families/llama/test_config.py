"""The sizes of LLaMAs that can be, and the frequencies of their embedding."""

import dataclasses

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.families.llama.config import rope_frequencies
from tests.experiments.small_llama import CONFIG, SCALED, turning


def close(x, y, rtol=1e-5, atol=1e-5):
  np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def test_published_frequencies():
  """Of LLaMA 3.1: heads of 128, theta 500,000, 8 times 8,192 positions."""
  config = dataclasses.replace(
    CONFIG,
    head_dim=128,
    rope_theta=5e5,
    rope_scaling=(8.0, 1.0, 4.0, 8192.0),
  )
  got = rope_frequencies(config)
  assert got.shape == (64,)
  close(got, [turning(config, i) for i in range(64)], rtol=1e-12, atol=0)
  plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
  close(plain[1], 0.8146, rtol=1e-4)  # 500,000 ** (-1 / 64)
  assert (got[:29] == plain[:29]).all()  # wavelengths below 2,048
  assert (plain[29:35] / 8 < got[29:35]).all()
  assert (got[29:35] < plain[29:35]).all()
  close(got[35:], plain[35:] / 8, rtol=1e-12, atol=0)  # beyond 8,192
  three = [turning(SCALED, i) for i in range(3)]
  close(rope_frequencies(SCALED), three)
  plain = rope_frequencies(CONFIG)
  assert three[0] == plain[0]
  assert plain[1] / 8 < three[1] < plain[1]
  close(three[2], plain[2] / 8)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"heads": 3}, "multiple of kv_heads, got 3 and 2"),
    ({"head_dim": 7}, "even.* got 7"),
    ({"layers": 0}, "layers must be positive, got 0"),
    ({"window": 0}, "window must be positive, got 0"),
    ({"norm_eps": -1e-5}, "norm_eps must be positive"),
    ({"rope_scaling": (8.0, 1.0, 4.0)}, "tuple of four"),
    ({"rope_scaling": [8.0, 1.0, 4.0, 99.0]}, "tuple of four"),
    ({"rope_scaling": (8.0, 4.0, 4.0, 99.0)}, "a higher high_freq_factor"),
    ({"rope_scaling": (0.0, 1.0, 4.0, 99.0)}, "positive numbers"),
  ],
)
def test_configs_that_cannot_be(change, match):
  with pytest.raises(UserError, match=match):
    dataclasses.replace(CONFIG, **change)
