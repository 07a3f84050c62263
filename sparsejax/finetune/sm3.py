"""Places that move by SM3's accumulators, which training goes by as well.

They are as long as a row and a column of a matrix, however many of its weights
are trained, and no dense gradient is looked at.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.finetune import slots as support
from sparsejax.finetune.matrices import read, write
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


class Sm3(NamedTuple):
  """How places move, and what gradients are divided by.

  Attributes:
    schedule: When places move.
    revive: Whether zeros of the base may grow.
    eps: Added to the squares before their root is taken.
  """

  schedule: Schedule
  revive: bool
  eps: float

  def nothing(self, base: jax.Array, k: int) -> Accumulators:
    """The accumulators of matrices [..., in, out] at first."""
    del k
    *stack, rows, columns = base.shape
    return Accumulators(jnp.zeros((*stack, rows)), jnp.zeros((*stack, columns)))

  def lasting(self, harvest: Accumulators) -> Accumulators:
    """What of them outlasts a move: all."""
    return harvest

  def asked(self, base: jax.Array, slots: Slots, phase: Phase) -> None:
    """What a step asks of dense gradients: nothing."""
    del base, slots, phase

  def gathered(
    self,
    harvest: Accumulators,
    slots: Slots,
    gradients: jax.Array,
    columns: int,
    *,
    phase: Phase | None,
    answer: None,
  ) -> tuple[Accumulators, jax.Array]:
    """The accumulators after another step, and the gradients to train by.

    Args:
      harvest: The accumulators of matrices [..., in, out].
      slots: Their slots.
      gradients: float32[..., k], of the deltas.
      columns: out.
      phase: What the step does besides.
      answer: None, for nothing was asked.

    Returns:
      The accumulators, and the gradients over the roots of what they and the
      squared gradients give.
    """
    del columns, phase, answer

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
    trained = write(trained, slots.indices, jnp.ones(k, bool))
    where = ~trained if self.revive else ~trained & (base != 0)
    # The order is that of the products, which might underflow.
    rank = jnp.outer(jnp.sqrt(harvest.rows), jnp.sqrt(harvest.columns))
    grow = support.best(rank, k, where)
    n = jnp.where(jnp.all(jnp.isfinite(rank)), n, 0)
    return support.swap(base, slots, deltas, grow, read(rank, grow), n)

  def seeds(self, harvest: Accumulators, swap: Swap) -> None:
    """What newly trained weights begin from: there is nothing per weight."""
    del harvest, swap
