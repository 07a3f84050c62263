"""When and by what the places of trained weights move: gather, then swap.

The dense gradient of a matrix exists only within its backward pass. What is
needed of it, candidates and their gradients, comes out as the cotangents of
zeros that go in; see `nodes.Probe`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.finetune import slots as support
from sparsejax.finetune.matrices import read
from sparsejax.finetune.optimizers import Seeds
from sparsejax.finetune.slots import Candidates, Slots, Swap
from sparsejax.nodes import Probe, node


class Phase(NamedTuple):
  """What a step does besides its gradient step.

  Attributes:
    first: Whether candidates are chosen, by this step's gradient; if not,
      those that were chosen before are looked at once more.
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

  def phase(self, step: int) -> Phase | None:
    """What happens at a step, counted from 0; None for a gradient step only."""
    ahead = (self.first - step - 1) % self.every
    move = step + 1 + ahead
    if ahead >= self.accumulate or not self.first <= move < self.stop:
      return None
    return Phase(first=ahead == self.accumulate - 1, last=ahead == 0)


class Evolution(NamedTuple):
  """How places move by the dense gradient.

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

  def nothing(self, base: jax.Array, k: int) -> Harvest:
    """The harvest of matrices [..., in, out] before there is any."""
    *stack, rows, columns = base.shape

    def empty(c):
      return Candidates(
        indices=jnp.full((*stack, c), rows * columns, jnp.int32),
        first=jnp.zeros((*stack, c)),
        second=jnp.zeros((*stack, c)),
      )

    return self.lasting(Harvest(*map(empty, self.counts(rows * columns, k))))

  def lasting(self, harvest: Harvest) -> Harvest:
    """What of it has to be kept from step to step.

    Nothing, if all is gathered in the step that moves places.
    """
    if self.schedule.accumulate > 1:
      return harvest
    return jax.tree.map(lambda x: x[..., :0], harvest)

  def counts(self, size: int, k: int) -> tuple[int, int]:
    """How many candidates there are of a matrix, to grow and to be pruned."""
    grow = min(size, int(k * self.candidates))
    # As many again as can be exempt, for they have just grown.
    prune = min(size, 2 * int(k * self.most)) if self.sensitivity else 0
    return grow, prune

  def asked(self, base: jax.Array, slots: Slots, phase: Phase) -> "Asked":
    """What a step asks of the dense gradients of matrices [..., in, out]."""
    *stack, rows, columns = base.shape
    counts = self.counts(rows * columns, slots.indices.shape[-1])
    told = 3 if phase.first else 1
    found = tuple(jnp.zeros((*stack, told, c)) for c in counts)
    return Asked(found, self, phase)

  def probe(self, asked: "Asked", harvest: Harvest, key: jax.Array) -> Probe:
    """The same, with all that it takes to answer."""
    if not asked.phase.first:
      places = tuple(part.indices for part in harvest)
      return Probe(asked.found, places, _look_again)
    keys = jax.random.split(key, asked.found[0].shape[:-2])
    counts = tuple(found.shape[-1] for found in asked.found)
    look = functools.partial(self.look, counts)
    return Probe(asked.found, jax.random.key_data(keys), look)

  def look(
    self,
    counts: tuple[int, int],
    gradient: jax.Array,
    base: jax.Array,
    key: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Chooses candidates by a dense gradient: rows, columns, gradients."""
    grow, prune = counts
    if self.at_random:
      key = jax.random.wrap_key_data(key, impl="threefry2x32")
      rank = jax.random.uniform(key, base.shape)
    else:
      rank = jnp.abs(gradient)
    where = jnp.ones(base.shape, bool) if self.revive else base != 0
    chosen = [support.best(rank, grow, where)]
    if self.sensitivity:
      rank = -self.sensitivity(base.astype(jnp.float32), gradient)
      chosen.append(support.best(rank, prune, base != 0))
    else:
      chosen.append(jnp.zeros(prune, jnp.int32))
    columns = base.shape[-1]
    return tuple(
      jnp.stack(
        [
          *(x.astype(jnp.float32) for x in jnp.divmod(places, columns)),
          read(gradient, places),
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
    phase: Phase | None,
    answer: "Asked | None",
  ) -> tuple[Harvest, jax.Array]:
    """What a step adds to the harvest, and the gradients to train by.

    Args:
      harvest: What there was, of matrices [..., in, out].
      slots: Their slots.
      gradients: float32[..., k], of the deltas.
      columns: out.
      phase: What the step does besides.
      answer: The gradient of what was asked, if something was.

    Returns:
      The new harvest, and the gradients as they are.
    """
    del slots
    if phase is None:
      return harvest, gradients
    if answer is None:
      raise ValueError(
        f"got {phase} without a signal, wanted the gradient of "
        "`tx.probes(state, phase)`: tx.update(..., phase=phase, signal=signal)"
      )

    def add(part, seen):
      gradient = seen[..., -1, :]
      if phase.first:
        # Rows and columns are exact in float32 up to 2**24.
        row, column = (seen[..., i, :].astype(jnp.int32) for i in (0, 1))
        return Candidates(row * columns + column, gradient, gradient**2)
      return part._replace(
        first=part.first + gradient, second=part.second + gradient**2
      )

    return Harvest(*map(add, harvest, answer.found)), gradients

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
      key = jax.random.wrap_key_data(key, impl="threefry2x32")
      rank = jax.random.uniform(key, rank.shape)
    finite = jnp.all(jnp.isfinite(grow.first))
    finite &= jnp.all(jnp.isfinite(prune.first))
    n = jnp.where(finite, n, 0)
    swapped = support.swap(
      base, slots, deltas, grow.indices, rank, n, fold=self.fold
    )
    if self.sensitivity is None:
      return swapped
    weights = read(swapped.base, prune.indices).astype(jnp.float32)
    gradients = prune.first / self.schedule.accumulate
    rank = self.sensitivity(weights, gradients)
    return support.adapt(swapped, prune.indices, rank)

  def seeds(self, harvest: Harvest, swap: Swap) -> Seeds:
    """What the moments of newly trained weights begin from."""
    batches = self.schedule.accumulate
    mean, square = (
      x.at[swap.source].get(mode="fill", fill_value=0) / batches
      for x in (harvest.grow.first, harvest.grow.second)
    )
    there = swap.source < harvest.grow.first.shape[-1]
    return Seeds(mean, square, jnp.where(there, batches, 0))


@node("found", static=("evolution", "phase"))
class Asked:
  """What a step asks of the dense gradients of matrices [..., in, out].

  Attributes:
    found: Zeros, float32[..., rows, c] for either kind of candidates. Their
      gradient is the answer: row, column and gradient of each candidate, or
      the gradient only.
    evolution: Who asks.
    phase: When.
  """

  found: tuple[jax.Array, jax.Array]
  evolution: Evolution
  phase: Phase


def _look_again(gradient, base, given):
  del base
  return tuple(read(gradient, places)[None] for places in given)
