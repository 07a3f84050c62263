"""What a fine-tuning method implements: parts, and how positions move.

Matrices are [..., in, out]; leading axes are layers that a model scans over.
"""

from typing import Any, Literal, Protocol

import jax

from sparsejax.finetune.moving import Phase, Schedule
from sparsejax.finetune.optimizers import Seeds
from sparsejax.finetune.slots import Slots, Swap
from sparsejax.nodes import Matrix, Probe


class Begin(Protocol):
  """How to split a leaf into frozen and trained arrays."""

  def __call__(
    self, path: str, leaf: jax.Array, key: jax.Array
  ) -> tuple[Any, Any, "Part"]:
    """Parts one leaf.

    Args:
      path: Its key path.
      leaf: The pretrained matrices, [..., in, out].
      key: PRNG key of its own.

    Returns:
      The base, which is frozen; the values, a pytree that is trained; and the
      part that joins them. `optax.MaskedNode()` for what there is none of.
    """


class Part(Protocol):
  """How the base and the trained values of a leaf make matrices.

  A pytree node of arrays that are not trained, kept in `FineTuneState.parts`.
  """

  def matrix(
    self, base: Any, values: Any, probe: Probe | None = None
  ) -> Matrix:
    """Makes the node that the model multiplies by.

    Args:
      base: The frozen array, [..., in, out], or a hole.
      values: The trained values of the leaf.
      probe: What to read from the dense gradient.

    Returns:
      The node, of shape [..., in, out].
    """

  def merged(self, base: Any, values: Any) -> jax.Array:
    """Makes the dense matrices [..., in, out], of the base's dtype."""

  def rebased(self, base: Any, values: Any) -> Any:
    """Returns the base [..., in, out] after a step that led to `values`.

    It stays as it is, where a part does not say otherwise.
    """
    del values
    return base


class Evolution(Protocol):
  """How the positions of `Slots` move.

  A hashable value, which is a constant of the compiled step. Each leaf has a
  `harvest`, a pytree of arrays that the method chooses;
  `FineTuneState.harvest` keeps it from step to step.

  Attributes:
    schedule: When positions move.
  """

  schedule: Schedule

  def empty(self, base: jax.Array, k: int) -> Any:
    """Makes the harvest before the first step.

    Args:
      base: Matrices [..., in, out].
      k: How many slots each has.
    """

  def probe(
    self,
    base: jax.Array,
    slots: Slots,
    harvest: Any,
    phase: Phase,
    key: jax.Array,
  ) -> Probe | None:
    """Makes the probe that reads the dense gradients of a leaf in a step.

    Args:
      base: Matrices [..., in, out].
      slots: Their slots, of arrays [..., k].
      harvest: Their harvest.
      phase: What the step does besides its gradient step.
      key: PRNG key of the step and leaf.

    Returns:
      The probe, of arrays with the matrices' leading axes; None if dense
      gradients are not needed. If what it reads does not add up over several
      products, its `dense` is float32[..., in, out].
    """

  def gathered(
    self,
    harvest: Any,
    slots: Slots,
    gradients: jax.Array,
    columns: int,
    *,
    phase: Phase | Literal[False],
    found: Any,
  ) -> tuple[Any, jax.Array]:
    """Adds a step's gradients to the harvest.

    Args:
      harvest: The harvest so far.
      slots: Slots, of arrays [..., k].
      gradients: float32[..., k], of the deltas.
      columns: out.
      phase: What the step does besides; False on an ordinary step.
      found: What the probe has read; None if there was none.

    Returns:
      The new harvest, and float32[..., k], the gradients to train by.
    """

  def move(
    self,
    base: jax.Array,
    slots: Slots,
    deltas: jax.Array,
    harvest: Any,
    n: jax.Array,
    key: jax.Array,
  ) -> Swap:
    """Moves the slots of one matrix.

    Args:
      base: [in, out], with the deltas.
      slots: Its slots, of arrays [k].
      deltas: float32[k].
      harvest: Its harvest.
      n: int32 scalar: how many slots move at most.
      key: uint32[2], raw data of a PRNG key.

    Returns:
      What became of the slots.
    """

  def seeds(self, harvest: Any, swap: Swap) -> Seeds | None:
    """Makes the first moments of the newly trained weights of one matrix."""

  def after_move(self, harvest: Any) -> Any:
    """Returns the part of the harvest to keep after positions have moved."""
