"""Places of what is True, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import masks


@pytest.mark.parametrize("size", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
def test_places_are_those_that_are_true(size, density):
  mask = np.random.default_rng(size).random(size) < density
  found = np.flatnonzero(mask)
  places = jax.jit(masks.places, static_argnums=1)
  for k in (0, len(found) // 2, len(found), len(found) + 40):
    wanted = np.full(k, size)
    wanted[: len(found)] = found[:k]
    ours = places(jnp.asarray(mask), k)
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours, wanted)
