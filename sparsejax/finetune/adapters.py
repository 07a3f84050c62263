"""Adapters: a frozen base, and trained factors that change each matrix."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax import distributions
from sparsejax.distributions import Prunable
from sparsejax.finetune.matrices import LowRank, Merged
from sparsejax.finetune.protocols import Part
from sparsejax.finetune.transform import FineTuning, fine_tune
from sparsejax.nodes import node


class Factors(NamedTuple):
  """The two trained factors of an adapter.

  Attributes:
    down: The one that the input meets first.
    up: The other, zero at first, so that nothing is changed at first.
  """

  down: jax.Array
  up: jax.Array


@node(static=("scale",))
class Beside(Part):
  """A low-rank matrix beside the base.

  Attributes:
    scale: The factor of their product.
  """

  scale: float

  def matrix(self, base, factors, probe=None) -> LowRank:
    """Makes the node that the model multiplies by."""
    del probe
    return LowRank(base, *factors, self.scale)

  def merged(self, base, factors) -> jax.Array:
    """Adds the product to the base, [..., in, out]."""
    change = self.scale * factors.down @ factors.up
    return (base + change).astype(base.dtype)


# Classes, so that two of the same numbers are equal: what is compiled for one
# run then serves another.
@dataclasses.dataclass(frozen=True)
class MaskedProduct:
  """Adds a product of factors to the base's non-zeros.

  Attributes:
    scale: The factor of the product.
  """

  scale: float

  def __call__(self, base: jax.Array, factors: Factors) -> jax.Array:
    """Computes the changed matrices [..., in, out]."""
    change = self.scale * factors.down @ factors.up
    return jnp.where(base != 0, base + change, 0)


@dataclasses.dataclass(frozen=True)
class ScaledWeights:
  """Changes each weight by a multiple of itself.

  Attributes:
    rank: How many numbers there are of each input.
    scale: The factor of the change.
  """

  rank: int
  scale: float

  def __call__(self, base: jax.Array, factors: Factors) -> jax.Array:
    """Computes the changed matrices [..., in, out]."""
    inputs = jnp.repeat(factors.down, base.shape[-1] // self.rank, axis=-1)
    return base + self.scale * base * inputs * factors.up[..., None, :]


@node(static=("merge",))
class Within(Part):
  """A change of the base's non-zeros, made dense in the forward pass.

  Attributes:
    merge: `(base, factors) -> matrix`.
  """

  merge: Callable[[jax.Array, Any], jax.Array]

  def matrix(self, base, factors, probe=None) -> Merged:
    """Makes the node that the model multiplies by."""
    del probe
    return Merged(base, factors, self.merge)

  def merged(self, base, factors) -> jax.Array:
    """Computes the changed matrices, with the base's zeros."""
    return self.merge(base, factors).astype(base.dtype)


def lora(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  rank: int = 8,
  alpha: float = 16.0,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains a low-rank matrix beside each frozen one: LoRA.

  If you merge it with a sparse base, no zeros are left. Work on sparse
  fine-tuning calls it LoRA* if the result is pruned again.

  Args:
    inner: Any optax optimizer.
    key: PRNG key of the initial factors.
    rank: The rank of the factors.
    alpha: Scales their product, by alpha / rank.
    prunable: Which leaves to adapt.

  Returns:
    The transformation.

  Raises:
    ValueError: If the rank is below 1.

  References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models,
    arXiv:2106.09685, 2021, section 4.1.
  """
  part = Beside(alpha / _checked(rank))
  return fine_tune(inner, _begin(rank, part), key=key, prunable=prunable)


def masked_lora(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  rank: int = 8,
  alpha: float = 16.0,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains low-rank matrices masked by the base's non-zeros.

  So merging makes no new non-zeros. The price is a dense product of the factors
  in every step.

  Args:
    inner: Any optax optimizer.
    key: PRNG key of the initial factors.
    rank: The rank of the factors.
    alpha: Scales their product, by alpha / rank.
    prunable: Which leaves to adapt.

  Returns:
    The transformation.

  Raises:
    ValueError: If the rank is below 1.

  References:
    Munoz et al., SQFT: Low-cost Model Adaptation in Low-precision Sparse
    Foundation Models, arXiv:2410.03750, 2024 (SparsePEFT, of one rank).
  """
  part = Within(MaskedProduct(alpha / _checked(rank)))
  return fine_tune(inner, _begin(rank, part), key=key, prunable=prunable)


def spp(
  inner: optax.GradientTransformation,
  *,
  key: jax.Array,
  rank: int = 16,
  scale: float = 2.0,
  prunable: Prunable = distributions.matrices,
) -> FineTuning:
  """Trains a factor for every weight, so that zeros stay zeros: SPP.

  The change of a weight is the product of the weight, `scale`, a number of its
  output and a number of its input. Each input has `rank` numbers: the first
  serves the first outputs / rank outputs, the second the next, and so on.

  Args:
    inner: Any optax optimizer.
    key: PRNG key of the initial factors.
    rank: How many numbers each input has; it has to divide the number of
      outputs.
    scale: A constant factor of the change.
    prunable: Which leaves to adapt.

  Returns:
    The transformation. Its `start` raises a ValueError that names the leaf if
    `rank` does not divide its number of outputs.

  Raises:
    ValueError: If the rank is below 1.

  References:
    Lu et al., SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large
    Language Models, arXiv:2405.16057, 2024; its released code.
  """
  part = Within(ScaledWeights(_checked(rank), scale))

  def begin(path, leaf, key):
    *stack, rows, columns = leaf.shape
    if columns % rank:
      raise ValueError(
        f"{path}: got {leaf.shape} and rank={rank}, wanted a rank that divides "
        f"the {columns} outputs"
      )
    down = _uniform(key, (*stack, rows, rank))
    return leaf, Factors(down, jnp.zeros((*stack, columns))), part

  return fine_tune(inner, begin, key=key, prunable=prunable)


def _begin(rank, part):
  def begin(path, leaf, key):
    del path
    *stack, rows, columns = leaf.shape
    down = _uniform(key, (*stack, rows, rank))
    return leaf, Factors(down, jnp.zeros((*stack, rank, columns))), part

  return begin


def _uniform(key, shape):
  """Draws U(-b, b) with b = 1 / sqrt(inputs), as LoRA's released code."""
  bound = shape[-2] ** -0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _checked(rank):
  if rank < 1:
    raise ValueError(f"got rank={rank}, wanted at least 1")
  return rank
