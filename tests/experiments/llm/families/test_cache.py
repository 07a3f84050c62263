"""Attention to a cache, by the kernel and by XLA."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.llm.families.cache import Cache, Spans
from sparsejax import kernels


def test_gradients_are_those_without_a_kernel(monkeypatch):
  draw = iter(jax.random.split(jax.random.key(0), 4))
  key, value, query, bias = (
    jax.random.normal(next(draw), shape)
    for shape in ((2, 7, 2, 4), (2, 7, 2, 4), (2, 3, 4, 4), (2, 4, 3, 7))
  )
  seen = Spans.past(jnp.array([[2, 3, 4], [4, 5, 6]], jnp.int32))

  def loss(key, value, query, bias):
    y = Cache.of(key, value).attend(query, seen, bias)
    return jnp.sum(jnp.sin(y))

  found = jax.grad(loss, range(4))(key, value, query, bias)
  monkeypatch.setattr(kernels, "available", lambda quiet=False: False)
  wanted = jax.grad(loss, range(4))(key, value, query, bias)
  for a, b in zip(found, wanted, strict=True):
    assert jnp.any(a != 0)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
