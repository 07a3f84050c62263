"""Fine-tuning of all weights: of a pruned model's non-zeros, or of a dense one.

The non-zeros are all there is of a matrix: it is made dense within one layer,
for one moment, and gradients and optimizer state are of its non-zeros.
"""

import jax
import numpy as np
import optax

from sparsejax import distributions
from sparsejax.distributions import Prunable
from sparsejax.finetune.matrices import (
  dense_gradient,
  gather,
  gradient_of_input,
)
from sparsejax.finetune.protocols import Part
from sparsejax.finetune.transform import FineTuning, fine_tune
from sparsejax.masks import HOLE, places
from sparsejax.nodes import cotangent, each, node
from sparsejax.packed import Flat, Packed


@node("indices", static=("sizes",))
class Places(Part, Flat):
  """Where the non-zeros of a matrix are, and the `protocols.Part` of them.

  Attributes:
    indices: int32[..., nnz], ascending, in the flat matrix; in * out at the
      end of rows with fewer non-zeros. nnz is a multiple of 8.
    sizes: (in, out).
  """

  def product(self, x: jax.Array, packed: Packed) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix; sums its gradient in float32.

    Models scan over layers, so that one matrix is dense at a time; the loops of
    `packed.matmul.dense_product` are not needed.
    """
    return _product(x, packed)

  def matrix(self, base, values, probe=None) -> Packed:
    """Makes what stands for the matrix in the forward pass."""
    del base, probe
    return Packed(values, self)

  def merged(self, base, values) -> jax.Array:
    """Makes the dense matrices [..., in, out]."""
    del base
    return self.expand(values)


@jax.custom_vjp
def _product(x, packed):
  return x @ packed.structure.expand(packed.values).astype(x.dtype)


def _product_forward(x, packed):
  return _product(x, packed), (x, packed)


def _product_backward(saved, g):
  x, packed = saved
  matrix = packed.structure.expand(packed.values)
  gathered = packed.structure.gather(dense_gradient(x, g))
  gathered = gathered.astype(packed.values.dtype)
  return gradient_of_input(g, matrix), cotangent(
    packed, None, values=gathered, structure=None
  )


_product.defvjp(_product_forward, _product_backward)


def fixed(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  rest: bool = True,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains all non-zeros of a pruned model; its zeros stay.

  Args:
    inner: Any optax optimizer.
    key: PRNG key; it is not used.
    rest: Whether all other leaves are trained too.
    prunable: Which leaves are sparse.

  Returns:
    The transformation. Its `start` does not run under `jax.jit`: the number of
    non-zeros determines shapes, so it needs the values of the params.

  References:
    Kurtic et al., Sparse Fine-tuning for Inference Acceleration of Large
    Language Models, arXiv:2310.06927, 2023: masks are fixed, all weights that
    remain are trained.
  """

  def begin(path, leaf, key):
    del path, key
    counts = np.sum(np.asarray(leaf) != 0, axis=(-2, -1))
    # XLA's CPU backend takes half as long again for odd lengths.
    nnz = 8 * -(-int(np.max(counts)) // 8)

    def one(matrix):
      indices = places(matrix != 0, nnz)
      return gather(matrix, indices), indices

    values, indices = jax.jit(each(one))(leaf)
    return HOLE, values, Places(indices, leaf.shape[-2:])

  return fine_tune(inner, begin, key=key, prunable=prunable, rest=rest)


def full(
  inner: optax.GradientTransformation, *, key: jax.Array, rest: bool = True
) -> FineTuning:
  """Trains all weights of a dense model, as the baseline does.

  Args:
    inner: Any optax optimizer.
    key: PRNG key; it is not used.
    rest: Whether leaves that are no matrices are trained too.

  Returns:
    The transformation. A sparse model does not stay sparse.
  """

  def begin(path, leaf, key):
    del path, key
    return HOLE, leaf, HOLE

  prunable = distributions.matrices
  return fine_tune(inner, begin, key=key, prunable=prunable, rest=rest)
