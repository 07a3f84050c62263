"""Products with blocks on the device at hand, whichever kernels it has.

Numbers are small integers, whose sums are exact in any order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax import packed
from sparsejax.kernels import blocks

# On a CPU all of them are one dense product.
CASES = [
  pytest.param(side, dtype, marks=(pytest.mark.slow, pytest.mark.gpu))
  for side in blocks.SIDES
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
]


@pytest.mark.parametrize(("side", "dtype"), [(48, jnp.bfloat16), *CASES])
def test_a_layer_is_exact(side, dtype):
  rng = np.random.default_rng(side)
  there = rng.random((5, 6)) < 0.4
  there[:, 2] = False  # a column without blocks
  mask = np.kron(there, np.ones((side, side), bool))
  w, x, g = (
    rng.integers(-2, 3, shape)
    for shape in (mask.shape, (200, 5 * side), (200, 6 * side))
  )
  w = np.where(mask, w, 0)
  tree = packed.pack(jnp.asarray(w, dtype), mask, formats=packed.blocks(side))

  @jax.jit
  def layer(values, structure, x, g):
    def product(values, x):
      return sparsejax.matmul(x, packed.Packed(values, structure))

    y, pull = jax.vjp(product, values, x)
    return y, *pull(g)

  arrays = (jnp.asarray(a, dtype) for a in (x, g))
  y, of_values, of_x = layer(tree.values, tree.structure, *arrays)
  of_w = np.where(mask, tree.structure.expand(of_values), 0)
  wanted = (x @ w, np.where(mask, x.T @ g, 0), g @ w.T)
  for got, want in zip((y, of_w, of_x), wanted, strict=True):
    # Rounded once, at the end.
    np.testing.assert_array_equal(got, jnp.asarray(want).astype(dtype))
