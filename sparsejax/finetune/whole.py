"""Fine-tuning of all weights: of a pruned model's non-zeros, or of a dense one.

The non-zeros are all there is of a matrix: it is made dense within one layer,
for one moment, and gradients and optimizer state are of its non-zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import distributions
from sparsejax.distributions import Prunable
from sparsejax.finetune.matrices import Packed, unpacked
from sparsejax.finetune.transform import HOLE, FineTuning, fine_tune
from sparsejax.masks import places
from sparsejax.nodes import each, node


@node("indices", static=("sizes",))
class Places:
  """Where the non-zeros of a matrix are.

  Attributes:
    indices: int32[..., nnz], ascending, in the flat matrix; in * out at the
      end of rows with fewer non-zeros. nnz is a multiple of 8.
    sizes: (in, out).
  """

  indices: jax.Array
  sizes: tuple[int, int]

  def matrix(self, base, values, probe=None) -> Packed:
    """What stands for the matrix in the forward pass."""
    del base, probe
    return Packed(values, self.indices, self.sizes)

  def merged(self, base, values) -> jax.Array:
    """The matrix itself."""
    del base
    fill = each(lambda _, v, i: unpacked(self.sizes, v, i))
    return fill(jnp.zeros((*values.shape[:-1], 1, 1)), values, self.indices)

  def rebased(self, base, values):
    """The base, which is a hole."""
    del values
    return base


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
    key: PRNG key; nothing is drawn.
    rest: Whether all other leaves are trained too.
    prunable: Which leaves are sparse.

  Returns:
    The transformation. Its `start` needs the params themselves, since their
    number of non-zeros sets shapes: it does not run under `jax.jit`.

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
      return matrix.reshape(-1).at[indices].get(
        mode="fill", fill_value=0
      ), indices

    values, indices = jax.jit(each(one))(leaf)
    return HOLE, values, Places(indices, leaf.shape[-2:])

  return fine_tune(inner, begin, key=key, prunable=prunable, rest=rest)


def full(
  inner: optax.GradientTransformation, *, key: jax.Array, rest: bool = True
) -> FineTuning:
  """Trains all weights of a dense model, as the baseline does.

  Args:
    inner: Any optax optimizer.
    key: PRNG key; nothing is drawn.
    rest: Whether leaves that are no matrices are trained too.

  Returns:
    The transformation. A sparse model does not stay sparse.
  """

  def begin(path, leaf, key):
    del path, key
    return HOLE, leaf, HOLE

  prunable = distributions.matrices
  return fine_tune(inner, begin, key=key, prunable=prunable, rest=rest)
