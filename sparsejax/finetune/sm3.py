"""Places that move by SM3's accumulators, which training goes by as well.

They are as long as a row and a column of a matrix, however many of its weights
are trained, and no dense gradient is read.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.finetune import slots as support
from sparsejax.finetune.matrices import gather, scatter
from sparsejax.finetune.moving import Phase, Schedule
from sparsejax.finetune.slots import Slots, Swap
from sparsejax.nodes import each


class Accumulators(NamedTuple):
  """Sums of squared gradients, by row and by column.

  Both of a weight's are upper bounds of the sum of its own.

  Attributes:
    rows: float32[..., in].
    columns: float32[..., out].
  """

  rows: jax.Array
  columns: jax.Array


class Sm3Evolution(NamedTuple):
  """Places move by SM3's accumulators, which also scale the gradients.

  See `protocols.Evolution`.

  Attributes:
    schedule: When places move.
    revive: Whether zeros of the base may grow.
    eps: Added to the squares before their root is taken.
  """

  schedule: Schedule
  revive: bool
  eps: float

  def empty(self, base: jax.Array, k: int) -> Accumulators:
    """Makes the accumulators of matrices [..., in, out], zero at first."""
    del k
    *stack, rows, columns = base.shape
    return Accumulators(jnp.zeros((*stack, rows)), jnp.zeros((*stack, columns)))

  def after_move(self, harvest: Accumulators) -> Accumulators:
    """Returns all of the accumulators, which outlast a move."""
    return harvest

  def probe(
    self,
    base: jax.Array,
    slots: Slots,
    harvest: Accumulators,
    phase: Phase,
    key: jax.Array,
  ) -> None:
    """Makes no probe, since dense gradients are of no use."""
    del base, slots, harvest, phase, key

  def gathered(
    self,
    harvest: Accumulators,
    slots: Slots,
    gradients: jax.Array,
    columns: int,
    *,
    phase: Phase | Literal[False],
    found: None,
  ) -> tuple[Accumulators, jax.Array]:
    """Adds squared gradients to the accumulators, and scales the gradients.

    Returns:
      The accumulators, and g / sqrt(min(row, column) + g**2 + eps).
    """
    del columns, phase, found

    def one(gradients, indices, rows, columns):
      row, column = jnp.divmod(indices, columns.size)
      squares = jnp.minimum(rows[row], columns[column]) + gradients**2
      # An empty slot has no row, and a gradient of 0, which changes no column.
      rows = rows.at[row].max(squares, mode="drop")
      columns = columns.at[column].max(squares)
      return rows, columns, gradients * jax.lax.rsqrt(squares + self.eps)

    *new, scaled = each(one, ndim=1)(gradients, slots.indices, *harvest)
    return Accumulators(*new), scaled

  def move(
    self,
    base: jax.Array,
    slots: Slots,
    deltas: jax.Array,
    harvest: Accumulators,
    n: jax.Array,
    key: jax.Array,
  ) -> Swap:
    """Moves the slots of one matrix, n of them at most."""
    del key
    k = deltas.shape[0]
    trained = jnp.zeros(base.shape, bool)
    trained = scatter(trained, slots.indices, jnp.ones(k, bool))
    where = ~trained if self.revive else ~trained & (base != 0)
    # The order is that of the products, which might underflow.
    rank = jnp.outer(jnp.sqrt(harvest.rows), jnp.sqrt(harvest.columns))
    grow = support.best_places(rank, k, where)
    n = jnp.where(jnp.all(jnp.isfinite(rank)), n, 0)
    return support.swap(base, slots, deltas, grow, gather(rank, grow), n)

  def seeds(self, harvest: Accumulators, swap: Swap) -> None:
    """Makes no seeds, since single weights have no moments."""
    del harvest, swap
