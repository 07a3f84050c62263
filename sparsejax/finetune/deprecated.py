"""The old loop of fine-tuning, which will be removed after the next release.

In it you passed phases, probes and signals by hand. Each of them now warns and
says what to write instead.
"""

import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any

from sparsejax import gradients
from sparsejax.masks import PyTree
from sparsejax.nodes import node

_LOOP = (
  "now = tx.moves(step); loss, grads = sparsejax.value_and_grad(loss_fn, tx)("
  "values, state, *args, update_masks=now); updates, state = tx.update(grads, "
  "state, values, update_masks=now)"
)


@node("zeros", static=("probes", "phase"))
class OldProbes:
  """The zeros of probes, and how to make the probes anew.

  Attributes:
    zeros: A tree of float zeros; its gradient is the old `signal`.
    probes: `(values, state, phase) -> probes`.
    phase: The step's phase.
  """

  zeros: PyTree
  probes: Callable[..., PyTree]
  phase: Hashable

  def asked(self, state: Any) -> PyTree:
    """Makes the probes, of dense gradients, which add up in every loss."""
    return gradients.whole(self.probes(None, state, self.phase))


def warn(what: str, instead: str = _LOOP, *, stacklevel: int = 3) -> None:
  """Warns that something goes, and says what to write in its place."""
  warnings.warn(
    f"{what} is deprecated; write instead: {instead}",
    DeprecationWarning,
    stacklevel=stacklevel,
  )


def phases(moves: Callable[[int], Any]) -> Callable[[int], Any]:
  """Makes the old `tx.phase`: None on ordinary steps."""
  warn("finetune's tx.phase(step)", stacklevel=4)
  return lambda step: moves(step) or None


def accepting_phases(
  update: Callable[..., Any], probes: Callable[..., PyTree | None]
) -> tuple[Callable[..., Any], Callable[..., PyTree | None]]:
  """Makes `tx.update` and `tx.probes` take the old arguments as well."""

  @functools.wraps(probes)
  def new_probes(values, state, update_masks=False):
    if not hasattr(values, "harvest"):
      return probes(values, state, update_masks)
    warn("finetune's tx.probes(state, phase)")
    state, phase = values, state
    if not phase:
      return None
    zeros = gradients.zeros_of(gradients.whole(probes(None, state, phase)))
    return OldProbes(zeros, probes, phase)

  @functools.wraps(update)
  def new_update(grads, state, values, *, update_masks=None, **extra):
    if "phase" in extra or "signal" in extra:
      warn("finetune's tx.update(..., phase=phase, signal=signal)")
      update_masks = extra.pop("phase", None) or False
      signal = extra.pop("signal", None)
      if isinstance(signal, OldProbes):
        grads = gradients.attached(grads, signal.asked(state), signal.zeros)
    return update(grads, state, values, update_masks=update_masks, **extra)

  return new_update, new_probes


def join(values: PyTree, state: Any, probes: PyTree = None) -> PyTree:
  """Joins values and base; deprecated, use `sparsejax.forward_params`.

  Args:
    values: The trained values.
    state: Their optimizer state.
    probes: The result of `tx.probes(state, phase)`.

  Returns:
    The params to run the model with.
  """
  warn(
    "finetune.join(values, state)",
    "sparsejax.forward_params(values, state), which sparsejax.value_and_grad("
    "loss, tx) calls before the loss",
  )
  if isinstance(probes, OldProbes):
    probes = gradients.with_zeros(probes.asked(state), probes.zeros)
  return state.forward(values, probes)
