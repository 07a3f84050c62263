"""Ways around what XLA does for GPUs are still needed."""

import jax
import jax.numpy as jnp
import pytest

from sparsejax import xla
from tests.compiled.harness import compile_for_h100

N, MATRICES = 1024, 4


def plain(first, values):
  """Fills each matrix as soon as XLA likes."""
  del first
  return jnp.zeros(N * N, values.dtype), values


def after(first, values):
  values = xla.begun_after(first, values)
  return xla.zeros_after(values, (N * N,)), values


@pytest.mark.parametrize(
  ("fill", "least", "most"), [(plain, 4, 6), (after, 0, 2)]
)
def test_dense_matrices_are_made_one_after_another(fill, least, most):
  def loss(x, places, values):
    for i in range(MATRICES):
      flat, own = fill(x, values[i])
      x = jnp.tanh(x @ flat.at[places[i]].set(own).reshape(N, N))
    return x

  compiled = compile_for_h100(
    loss,
    jax.ShapeDtypeStruct((64, N), jnp.float32),
    jax.ShapeDtypeStruct((MATRICES, N * N // 10), jnp.int32),
    jax.ShapeDtypeStruct((MATRICES, N * N // 10), jnp.float32),
  )
  matrices = compiled.memory_analysis().temp_size_in_bytes / (4 * N * N)
  assert least <= matrices < most
