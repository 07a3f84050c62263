"""When and by what the places of trained weights move: gather, then swap.

The dense gradient of a matrix exists only within its backward pass. What is
needed of it, candidates and their gradients, comes out as the cotangents of
zeros that go in; see `nodes.Probe`.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.finetune import slots as support
from sparsejax.finetune.matrices import gather
from sparsejax.finetune.optimizers import Seeds
from sparsejax.finetune.slots import Candidates, Slots, Swap
from sparsejax.keys import wrapped
from sparsejax.nodes import Probe


class Phase(NamedTuple):
  """What a step does besides its gradient step.

  Attributes:
    first: Whether candidates are chosen, by this step's gradient; if not,
      the gradients of those chosen before are read again.
    last: Whether places move at the end of the step.
  """

  first: bool
  last: bool


class Harvest(NamedTuple):
  """What was gathered of matrices since candidates were chosen.

  Attributes:
    grow: The candidates that may grow.
    prune: Those that may be pruned; empty arrays if nothing ever is.
  """

  grow: Candidates
  prune: Candidates


class Schedule(NamedTuple):
  """When places move, and how many.

  Attributes:
    first: The number of steps before the first move, at its end.
    every: Steps from one move to the next.
    accumulate: Over how many steps gradients are gathered for a move.
    stop: The number of steps from which on nothing moves any more.
    fraction: `step -> share` of the slots that move then, in [0, 1].
  """

  first: int
  every: int
  accumulate: int
  stop: int
  fraction: Callable[[jax.Array], jax.Array]

  def phase(self, step: int) -> Phase | Literal[False]:
    """Returns the phase of a step, counted from 0; False on ordinary steps."""
    ahead = (self.first - step - 1) % self.every
    move = step + 1 + ahead
    if ahead >= self.accumulate or not self.first <= move < self.stop:
      return False
    return Phase(first=ahead == self.accumulate - 1, last=ahead == 0)


class GradientEvolution(NamedTuple):
  """Places move by the dense gradient; see `protocols.Evolution`.

  Attributes:
    schedule: When.
    most: The largest share of the slots that ever moves.
    candidates: How many places may grow, in multiples of the slots.
    revive: Whether zeros of the base may grow.
    at_random: Whether places grow at random instead of by the gradient.
    fold: Whether what is dropped keeps its delta, as a weight of the base.
    sensitivity: `(weights, gradients) -> rank` by which a matrix is pruned
      back to its budget, the lowest first; None if it is not.
  """

  schedule: Schedule
  most: float
  candidates: float
  revive: bool
  at_random: bool
  fold: bool
  sensitivity: Callable[[jax.Array, jax.Array], jax.Array] | None

  def empty(self, base: jax.Array, k: int) -> Harvest:
    """Makes the harvest of matrices [..., in, out] before the first step."""
    *stack, rows, columns = base.shape

    def empty(c: int) -> Candidates:
      return Candidates(
        indices=jnp.full((*stack, c), rows * columns, jnp.int32),
        first=jnp.zeros((*stack, c)),
        second=jnp.zeros((*stack, c)),
      )

    counts = self.counts(rows * columns, k)
    return self.after_move(Harvest(*map(empty, counts)))

  def after_move(self, harvest: Harvest) -> Harvest:
    """Returns what of the harvest is kept from step to step.

    Empty arrays, if all is gathered in the step that moves places.
    """
    if self.schedule.accumulate > 1:
      return harvest
    return jax.tree.map(lambda x: x[..., :0], harvest)

  def counts(self, size: int, k: int) -> tuple[int, int]:
    """Counts the candidates of a matrix, to grow and to be pruned."""
    grow = min(size, int(k * self.candidates))
    # As many again as can be exempt, for they have just grown.
    prune = min(size, 2 * int(k * self.most)) if self.sensitivity else 0
    return grow, prune

  def probe(
    self,
    base: jax.Array,
    slots: Slots,
    harvest: Harvest,
    phase: Phase,
    key: jax.Array,
  ) -> Probe:
    """Makes what chooses candidates, or reads their gradients again."""
    *stack, rows, columns = base.shape
    counts = self.counts(rows * columns, slots.indices.shape[-1])
    numbers = 3 if phase.first else 1  # row, column, gradient
    zeros = tuple(jnp.zeros((*stack, numbers, c)) for c in counts)
    if not phase.first:
      chosen = tuple(part.indices for part in harvest)
      return Probe(zeros, chosen, _gradients_at)
    keys = jax.random.key_data(jax.random.split(key, stack))
    choose = functools.partial(self.choose, counts)
    dense = jax.ShapeDtypeStruct(base.shape, jnp.float32)
    return Probe(zeros, keys, choose, dense)

  def choose(
    self,
    counts: tuple[int, int],
    gradient: jax.Array,
    base: jax.Array,
    key: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Chooses candidates by a dense gradient: rows, columns, gradients."""
    grow, prune = counts
    if self.at_random:
      key = wrapped(key)
      rank = jax.random.uniform(key, base.shape)
    else:
      rank = jnp.abs(gradient)
    where = jnp.ones(base.shape, bool) if self.revive else base != 0
    chosen = [support.best_places(rank, grow, where)]
    if self.sensitivity:
      rank = -self.sensitivity(base.astype(jnp.float32), gradient)
      chosen.append(support.best_places(rank, prune, base != 0))
    else:
      chosen.append(jnp.zeros(prune, jnp.int32))
    columns = base.shape[-1]
    return tuple(
      jnp.stack(
        [
          *(x.astype(jnp.float32) for x in jnp.divmod(places, columns)),
          gather(gradient, places),
        ]
      )
      for places in chosen
    )

  def gathered(
    self,
    harvest: Harvest,
    slots: Slots,
    gradients: jax.Array,
    columns: int,
    *,
    phase: Phase | Literal[False],
    found: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[Harvest, jax.Array]:
    """Adds what a step has read off; gradients stay as they are."""
    del slots
    if not phase:
      return harvest, gradients

    def add(part: Candidates, seen: jax.Array) -> Candidates:
      gradient = seen[..., -1, :]
      if phase.first:
        # Rows and columns are exact in float32 up to 2**24.
        row, column = (seen[..., i, :].astype(jnp.int32) for i in (0, 1))
        return Candidates(row * columns + column, gradient, gradient**2)
      return part._replace(
        first=part.first + gradient, second=part.second + gradient**2
      )

    return Harvest(*map(add, harvest, found)), gradients

  def move(
    self,
    base: jax.Array,
    slots: Slots,
    deltas: jax.Array,
    harvest: Harvest,
    n: jax.Array,
    key: jax.Array,
  ) -> Swap:
    """Moves the slots of one matrix, n of them at most."""
    grow, prune = harvest
    gradients = grow.first / self.schedule.accumulate
    rank = jnp.abs(gradients)
    if self.at_random:
      key = wrapped(key)
      rank = jax.random.uniform(key, rank.shape)
    finite = jnp.all(jnp.isfinite(grow.first))
    finite &= jnp.all(jnp.isfinite(prune.first))
    n = jnp.where(finite, n, 0)
    swapped = support.swap(
      base, slots, deltas, grow.indices, rank, n, fold=self.fold
    )
    if self.sensitivity is None:
      return swapped
    weights = gather(swapped.base, prune.indices).astype(jnp.float32)
    gradients = prune.first / self.schedule.accumulate
    rank = self.sensitivity(weights, gradients)
    return support.prune_to_budget(swapped, prune.indices, rank)

  def seeds(self, harvest: Harvest, swap: Swap) -> Seeds:
    """Makes the first moments of newly trained weights."""
    batches = self.schedule.accumulate
    mean, square = (
      x.at[swap.source].get(mode="fill", fill_value=0) / batches
      for x in (harvest.grow.first, harvest.grow.second)
    )
    there = swap.source < harvest.grow.first.shape[-1]
    return Seeds(mean, square, jnp.where(there, batches, 0))


def _gradients_at(gradient, base, indices):
  """Gathers the gradients of both kinds of candidates, [1, c]."""
  del base
  return tuple(gather(gradient, places)[None] for places in indices)
