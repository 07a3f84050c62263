"""Attention to a cache, against NumPy in float64.

Every instruction set runs this in test_masked.py.
"""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import kernels
from sparsejax.kernels import attention

pytestmark = [
  pytest.mark.core,
  pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None,
    reason="there is no C++ compiler: install g++",
  ),
]


def inputs(heads, queries, tokens, length, width, dtype):
  assert kernels.available()
  rng = np.random.default_rng(0)
  query = 3 * rng.normal(size=(heads, queries, width)).astype(np.float32)
  key, value = (
    jnp.asarray(rng.normal(size=(heads, length, width)), dtype)
    for _ in range(2)
  )
  ends = rng.integers(1, length + 1, (heads, tokens))
  spans = np.stack([rng.integers(0, ends), ends], axis=-1).astype(np.int32)
  bias = rng.normal(size=(heads, queries, length)).astype(np.float32)
  return query, key, value, spans, bias


def reference(query, key, value, spans, bias, scale):
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  scores = scale * query @ key.swapaxes(1, 2) + bias
  at = np.arange(key.shape[1])
  seen = (at >= spans[..., :1]) & (at < spans[..., 1:])
  seen = np.tile(seen, (1, query.shape[1] // spans.shape[1], 1))
  scores = np.where(seen, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True) @ value


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  "sizes", [(3, 3, 1, 72, 64), (2, 8, 2, 33, 5), (4, 4, 1, 1200, 80)]
)
def test_attention_is_exact(sizes, dtype):
  query, key, value, spans, some = inputs(*sizes, dtype)
  for bias, scale in ((some, 0.3), (None, 8.0)):
    y = attention.attend(query, key, value, spans, bias, scale=scale)
    given = 0 if bias is None else bias
    wanted = reference(query, key, value, spans, given, scale)
    np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=5e-6)


def test_what_is_not_finite_is_told():
  query, key, value, spans, _ = inputs(2, 3, 1, 20, 16, jnp.float32)
  spans[:] = [2, 9]
  key = key.at[0, 5, 0].set(jnp.nan).at[1, 9, 0].set(jnp.inf)
  y = attention.attend(query, key, value, spans, scale=1.0)
  assert np.isnan(y[0]).all()
  assert np.isfinite(y[1]).all()  # It is not seen.


@pytest.mark.parametrize("span", [(0, 0), (-1, 3), (0, 21), (7, 5)])
def test_spans_out_of_range_are_refused(span):
  query, key, value, spans, _ = inputs(2, 3, 1, 20, 16, jnp.float32)
  spans[1] = span
  errors = jax.errors.JaxRuntimeError, ValueError
  with pytest.raises(errors, match="positions that the cache does not have"):
    attention.attend(query, key, value, spans, scale=1.0).block_until_ready()
