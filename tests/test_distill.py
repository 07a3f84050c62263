"""Losses of fine-tuning against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import distill

KEY = jax.random.key(0)
LOGITS, TEACHER = 3 * jax.random.normal(KEY, (2, 2, 5, 7))
TARGETS = jax.random.randint(KEY, (2, 5), 0, 7)
WHERE = jnp.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def test_cross_entropy():
  logs, where = log_softmax(LOGITS), np.asarray(WHERE)
  wanted = -np.mean(
    [logs[i, j, TARGETS[i, j]] for i, j in zip(*np.nonzero(where), strict=True)]
  )
  ours = distill.cross_entropy(LOGITS, TARGETS, WHERE)
  np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence(temperature):
  student, teacher = (
    log_softmax(np.asarray(x, np.float64) / temperature)
    for x in (LOGITS, TEACHER)
  )
  each = np.sum(np.exp(teacher) * (teacher - student), axis=-1)
  wanted = np.mean(each[np.asarray(WHERE)]) * temperature**2
  ours = distill.kl_divergence(LOGITS, TEACHER, WHERE, temperature=temperature)
  np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_square_head():
  features = jax.random.normal(KEY, (3, 2, 5, 4))
  scale = jnp.array([1.0, 10.0, 0.01])[:, None, None, None]
  teacher = scale * jax.random.normal(jax.random.key(1), features.shape)
  where = np.asarray(WHERE)
  wanted = 0
  for f, t in zip(*np.asarray([features, teacher], np.float64), strict=True):
    f, t = f[where], t[where]
    wanted += np.mean((f - t) ** 2) / (np.mean(t**2) + 2**-7)
  ours = distill.square_head(features, teacher, WHERE)
  np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_bfloat16_is_summed_in_float32():
  features = jnp.ones((1, 64, 64), jnp.bfloat16)
  teacher = features * 1.5
  where = jnp.ones(64, bool)
  ours = distill.square_head(features, teacher, where)
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, 0.25 / (2.25 + 2**-7), rtol=1e-6)


def test_what_is_wrong_is_told():
  features = jnp.ones((2, 3, 4))
  with pytest.raises(ValueError, match=r"\(2, 3, 4\) and .* \(1, 3, 4\)"):
    distill.square_head(features, features[:1], jnp.ones(3, bool))
  with pytest.raises(ValueError, match="temperature=0"):
    distill.kl_divergence(LOGITS, TEACHER, WHERE, temperature=0)
