"""Which weights of one matrix are fine-tuned, and how these places move.

A matrix has k slots. A slot holds a place in the flat matrix, the weight that
the base had there when the slot took it, and the delta that is trained. All
functions are of one matrix; callers map them over layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import select
from sparsejax.finetune.matrices import Delta, gather, scatter
from sparsejax.masks import places


class Slots(NamedTuple):
  """The places of k trained weights; the base holds their deltas already.

  Attributes:
    indices: int32[..., k], in the flat matrix; in * out for an empty slot.
    start: [..., k], the base's weights there without the deltas, in its dtype.
    budget: int32[...], how many non-zeros the matrix may have at most.
  """

  indices: jax.Array
  start: jax.Array
  budget: jax.Array

  def matrix(self, base, deltas, probe=None) -> Delta:
    """Makes the node that the model multiplies by."""
    return Delta(base, deltas, self.indices, probe)

  def merged(self, base, deltas) -> jax.Array:
    """Makes the matrices [..., in, out]."""
    return self.rebased(base, deltas)

  def rebased(self, base, deltas) -> jax.Array:
    """Writes start + deltas into the base, [..., in, out]."""
    return scatter(base, self.indices, self.start + deltas)


class Candidates(NamedTuple):
  """Places whose gradients are read, in one or several batches.

  Attributes:
    indices: int32[c], in the flat matrix; in * out where there is none.
    first: float32[c], the sum of their gradients.
    second: float32[c], the sum of their squared gradients.
  """

  indices: jax.Array
  first: jax.Array
  second: jax.Array


class Swap(NamedTuple):
  """What became of the slots of a matrix.

  Attributes:
    base: The matrix.
    slots: Its slots.
    kept: bool[k], the slots that still train what they trained.
    source: int32[k], the candidate that a slot was given to, where not kept; c
      where it is left empty.
  """

  base: jax.Array
  slots: Slots
  kept: jax.Array
  source: jax.Array


def draw(key: jax.Array, base: jax.Array, k: int, where: jax.Array) -> Slots:
  """Draws slots uniformly from the places where a mask is True.

  Args:
    key: PRNG key.
    base: The matrix, [in, out].
    k: How many slots; some stay empty if there are fewer places.
    where: bool[in, out].

  Returns:
    The slots; the budget is the number of non-zeros of the matrix.
  """
  drawn = select.top_k_mask(jax.random.uniform(key, base.shape), k, where)
  indices = places(drawn, k)
  budget = jnp.sum(base != 0, dtype=jnp.int32)
  return Slots(indices, gather(base, indices), budget)


def best_places(scores: jax.Array, count: int, where: jax.Array) -> jax.Array:
  """Lists the places, ascending, of the `count` highest scores in a mask."""
  return places(select.top_k_mask(scores, count, where), count)


def swap(
  base: jax.Array,
  slots: Slots,
  deltas: jax.Array,
  candidates: jax.Array,
  rank: jax.Array,
  n: jax.Array,
  *,
  fold: bool = False,
) -> Swap:
  """Drops the n smallest deltas, and gives their slots to other places.

  What is dropped falls back to the base's own weight. A place that is dropped
  and would grow again stays as it is. If there are fewer places to grow, as
  many fewer slots are dropped.

  Args:
    base: The matrix with its deltas, [in, out].
    slots: Its slots.
    deltas: float32[k].
    candidates: int32[c], places that may grow; in * out where there is none.
    rank: float32[c], by which they do, the highest first.
    n: int32, how many.
    fold: Whether what is dropped keeps its delta instead, as a weight of the
      base.

  Returns:
    What became of the slots.

  References:
    Ansell et al., Scaling Sparse Fine-Tuning to Large Language Models,
    arXiv:2401.16405, 2024: drop and grow of SpIEL.
  """
  size, k, c = base.size, deltas.shape[0], rank.shape[0]
  taken = slots.indices < size
  # Empty slots are the first to be given away.
  dropped = select.top_k_mask(jnp.where(taken, -jnp.abs(deltas), jnp.inf), n)
  slot = _slot_of(slots.indices, size, candidates)
  held = slot < k
  falls = held & dropped.at[slot].get(mode="fill", fill_value=False)
  grown = select.top_k_mask(rank, n, (candidates < size) & (falls | ~held))
  regrown = jnp.where(grown, slot, k)
  stays = jnp.zeros(k, bool).at[regrown].set(True, mode="drop")
  dropped &= ~stays
  grown &= ~held
  dropped = select.top_k_mask(
    jnp.where(taken, -jnp.abs(deltas), jnp.inf), jnp.sum(grown), dropped
  )
  source = _paired(dropped, grown)
  if not fold:
    base = scatter(base, jnp.where(dropped, slots.indices, size), slots.start)
  grown_at = candidates.at[source].get(mode="fill", fill_value=size)
  indices = jnp.where(dropped, grown_at, slots.indices)
  start = jnp.where(dropped, gather(base, indices), slots.start)
  slots = slots._replace(indices=indices, start=start)
  return Swap(base, slots, ~dropped, jnp.where(dropped, source, c))


def _slot_of(indices, size, wanted):
  """Finds the slot [c] that holds each of the wanted places; k if none."""
  k = indices.shape[0]
  slot = jnp.full(size, k, jnp.int32)
  slot = slot.at[indices].set(jnp.arange(k, dtype=jnp.int32), mode="drop")
  return slot.at[wanted].get(mode="fill", fill_value=k)


def _paired(dropped, grown):
  """Gives the i-th dropped slot the i-th growing candidate; c to others."""
  c = grown.shape[0]
  order = jnp.where(grown, jnp.cumsum(grown) - 1, c)
  nth = jnp.full(c, c, jnp.int32)
  nth = nth.at[order].set(jnp.arange(c, dtype=jnp.int32), mode="drop")
  turn = jnp.where(dropped, jnp.cumsum(dropped) - 1, c)
  return nth.at[turn].get(mode="fill", fill_value=c)


def prune_to_budget(
  swapped: Swap, candidates: jax.Array, rank: jax.Array
) -> Swap:
  """Prunes a matrix back to its budget of non-zeros.

  Every place of a slot counts as a non-zero, also while its weight is still 0.
  What has just grown is exempt: its weight times its gradient is 0, and it
  would be pruned at once.

  Args:
    swapped: What `swap` left.
    candidates: int32[c], places that may be pruned; in * out for none.
    rank: float32[c], by which they are, the lowest first.

  Returns:
    What became of the slots, after pruning.
  """
  base, slots, kept, source = swapped
  size = base.size
  over = jnp.maximum(support_size(base, slots.indices) - slots.budget, 0)
  slot = _slot_of(slots.indices, size, candidates)
  fresh = ~kept.at[slot].get(mode="fill", fill_value=True)
  there = gather(base, candidates) != 0
  pruned = select.top_k_mask(-rank, over, there & ~fresh)
  zeros = jnp.zeros(pruned.shape)
  base = scatter(base, jnp.where(pruned, candidates, size), zeros)
  emptied = jnp.where(pruned, slot, kept.shape[0])
  indices = slots.indices.at[emptied].set(size, mode="drop")
  start = slots.start.at[emptied].set(0, mode="drop")
  kept = kept.at[emptied].set(False, mode="drop")
  slots = slots._replace(indices=indices, start=start)
  return Swap(base, slots, kept, source)


def support_size(base: jax.Array, indices: jax.Array) -> jax.Array:
  """Counts the weights that are non-zero or in a slot, int32."""
  idle = (indices < base.size) & (gather(base, indices) == 0)
  return jnp.sum(base != 0, dtype=jnp.int32) + jnp.sum(idle, dtype=jnp.int32)
