"""What two programs that compute the same have in common."""

from typing import Any

import jax
import numpy as np


def assert_same(got: Any, want: Any) -> None:
  """Asserts that two programs' trees have the same bits, as on a CPU.

  A GPU's compiler rounds by what it fuses, so there floats need only be close;
  masks and integers are the same everywhere.

  Args:
    got: A pytree of arrays.
    want: Another of its structure.
  """
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    if jax.default_backend() != "cpu" and a.dtype.kind not in "biu":
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    else:
      np.testing.assert_array_equal(a, b)
