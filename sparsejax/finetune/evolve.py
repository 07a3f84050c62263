"""When and by what the places of trained weights move: gather, then swap.

The dense gradient of a matrix exists only within its backward pass. What is
needed of it, candidates and their gradients, comes out as the cotangents of
zeros that go in; see `matrices.Probe`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.finetune import support
from sparsejax.finetune.matrices import Probe, node, read
from sparsejax.finetune.optimizers import Seeds
from sparsejax.finetune.support import Candidates, Slots, Swap


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


class Evolution(NamedTuple):
  """How places move.

  Attributes:
    first: The number of steps before the first move, at its end.
    every: Steps from one move to the next.
    accumulate: Over how many steps gradients are gathered for a move.
    fraction: `step -> share` of the slots that move then, in [0, 1].
    most: The largest of these shares.
    candidates: How many places may grow, in multiples of the slots.
    stop: The number of steps from which on nothing moves any more.
    revive: Whether zeros of the base may grow.
    at_random: Whether places grow at random instead of by the gradient.
    fold: Whether what is dropped keeps its delta, as a weight of the base.
    sensitivity: `(weights, gradients) -> rank` by which a matrix is pruned
      back to its budget, the lowest first; None if it is not.
  """

  first: int
  every: int
  accumulate: int
  fraction: Callable[[jax.Array], jax.Array]
  most: float
  candidates: float
  stop: int
  revive: bool
  at_random: bool
  fold: bool
  sensitivity: Callable[[jax.Array, jax.Array], jax.Array] | None

  def phase(self, step: int) -> Phase | None:
    """What happens at a step, counted from 0; None for a gradient step only."""
    ahead = (self.first - step - 1) % self.every
    move = step + 1 + ahead
    if ahead >= self.accumulate or not self.first <= move < self.stop:
      return None
    return Phase(first=ahead == self.accumulate - 1, last=ahead == 0)

  def nothing(self, base: jax.Array, k: int) -> Harvest:
    """The harvest of matrices [..., in, out] before there is any."""
    *stack, rows, columns = base.shape
    size = rows * columns
    grow = min(size, int(k * self.candidates))
    # As many again as can be exempt, for they have just grown.
    prune = min(size, 2 * int(k * self.most)) if self.sensitivity else 0

    def empty(c):
      return Candidates(
        indices=jnp.full((*stack, c), size, jnp.int32),
        first=jnp.zeros((*stack, c)),
        second=jnp.zeros((*stack, c)),
      )

    return Harvest(empty(grow), empty(prune))

  def asked(self, harvest: Harvest, phase: Phase) -> "Asked":
    """What a step asks of the dense gradients of matrices."""
    rows = 3 if phase.first else 1
    found = tuple(
      jnp.zeros((*part.first.shape[:-1], rows, part.first.shape[-1]))
      for part in harvest
    )
    return Asked(found, self, phase)

  def probe(self, asked: "Asked", harvest: Harvest, key: jax.Array) -> Probe:
    """The same, with all that it takes to answer."""
    places = tuple(part.indices for part in harvest)
    if not asked.phase.first:
      return Probe(asked.found, places, _look_again)
    keys = jax.random.split(key, harvest.grow.first.shape[:-1])
    given = (*places, jax.random.key_data(keys))
    return Probe(asked.found, given, self.look)

  def look(self, gradient: jax.Array, base: jax.Array, given):
    """Chooses candidates by a dense gradient: rows, columns, gradients."""
    grow, prune, key = given
    if self.at_random:
      key = jax.random.wrap_key_data(key, impl="threefry2x32")
      rank = jax.random.uniform(key, base.shape)
    else:
      rank = jnp.abs(gradient)
    where = jnp.ones(base.shape, bool) if self.revive else base != 0
    chosen = [support.best(rank, grow.shape[0], where)]
    if self.sensitivity:
      rank = -self.sensitivity(base.astype(jnp.float32), gradient)
      chosen.append(support.best(rank, prune.shape[0], base != 0))
    else:
      chosen.append(prune)
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
    self, harvest: Harvest, answer: "Asked", columns: int
  ) -> Harvest:
    """The harvest after another step, from the gradient of what it asked."""

    def add(part, seen):
      gradient = seen[..., -1, :]
      if answer.phase.first:
        # Rows and columns are exact in float32 up to 2**24.
        row, column = (seen[..., i, :].astype(jnp.int32) for i in (0, 1))
        return Candidates(row * columns + column, gradient, gradient**2)
      return part._replace(
        first=part.first + gradient, second=part.second + gradient**2
      )

    return Harvest(*map(add, harvest, answer.found))

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
    gradients = grow.first / self.accumulate
    rank = jnp.abs(gradients)
    if self.at_random:
      key = jax.random.wrap_key_data(key, impl="threefry2x32")
      rank = jax.random.uniform(key, rank.shape)
    finite = jnp.all(jnp.isfinite(grow.first))
    finite &= jnp.all(jnp.isfinite(prune.first))
    n = jnp.where(finite, n, 0)
    swapped = support.swap(base, slots, deltas, grow, rank, n, fold=self.fold)
    if self.sensitivity is None:
      return swapped
    weights = read(swapped.base, prune.indices).astype(jnp.float32)
    gradients = prune.first / self.accumulate
    return support.adapt(swapped, prune, self.sensitivity(weights, gradients))

  def seeds(self, harvest: Harvest, swap: Swap) -> Seeds:
    """What the moments of newly trained weights begin from."""
    mean, square = (
      x.at[swap.source].get(mode="fill", fill_value=0) / self.accumulate
      for x in (harvest.grow.first, harvest.grow.second)
    )
    there = swap.source < harvest.grow.first.shape[-1]
    return Seeds(mean, square, jnp.where(there, self.accumulate, 0))


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
