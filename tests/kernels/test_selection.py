"""The selection kernel against counting, which is tested against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import kernels
from sparsejax.select import counting

SIZE = 2**20 + 3

needs_kernel = pytest.mark.skipif(
  not kernels.available(quiet=True), reason="there is no C++ compiler"
)


def scores(kind):
  rng = np.random.default_rng(0)
  normal = rng.normal(size=SIZE)
  return {
    "distinct": normal,
    "tied": np.round(normal, 1),
    "equal": np.zeros(SIZE),
    "not finite": np.where(rng.random(SIZE) < 0.1, np.nan, normal),
  }[kind]


@needs_kernel
@pytest.mark.parametrize("kind", ["distinct", "tied", "equal", "not finite"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_marks_what_counting_marks(kind, dtype):
  x = jnp.asarray(scores(kind)).astype(dtype)
  where = jnp.asarray(np.random.default_rng(1).random(SIZE) < 0.3)
  assert counting.for_kernel(x)
  by_counting = jax.jit(
    lambda x, k, among: counting.by_counting([x], k, [among], several=False)[0]
  )
  for k in (0, 1, SIZE // 10, SIZE - 1, SIZE + 1):
    for among in (None, where):
      marked = counting.by_kernel(x, jnp.int32(k), among)
      wanted = by_counting(x, jnp.int32(k), among)
      np.testing.assert_array_equal(marked, wanted)


@pytest.mark.mesh
@needs_kernel
def test_it_is_not_asked_on_several_devices_or_for_few_scores(monkeypatch):
  def is_asked(size, several=False):
    x = jnp.zeros(size)
    program = jax.make_jaxpr(
      lambda x: counting.on_cpu([x], jnp.int32(3), [None], several)
    )
    return "sparsejax_top_k" in str(program(x))

  assert not is_asked(2**20, several=True)
  assert is_asked(2**20)
  assert is_asked(2**16)
  assert not is_asked(2**16 - 1)
  monkeypatch.setattr(kernels, "loaded", lambda: False)
  assert is_asked(2**20)
  assert not is_asked(2**20 - 1)
