"""Sparse fine-tuning of pretrained weights: deltas, non-zeros, adapters.

    tx = finetune.seft(finetune.adamw(1e-4), k=..., t_end=..., key=key)
    values, state = sparsejax.init(tx, params)      # params with zeros

    def loss(values, probes):
      return model_loss(finetune.join(values, state, probes), batch)

    phase = tx.phase(step)                          # None on most steps
    probes = tx.probes(state, phase)
    grads, signal = jax.grad(loss, (0, 1))(values, probes)
    updates, state = tx.update(grads, state, values, phase=phase, signal=signal)
    values = optax.apply_updates(values, updates)
    params = finetune.merge(values, state)          # no more non-zeros

The model multiplies by `sparsejax.matmul`. Only what is trained has gradients
that last and optimizer state: the dense gradient of a matrix lives within its
own backward pass.
"""

from sparsejax.finetune.adapters import lora, masked_lora, spp
from sparsejax.finetune.deltas import (
  adamw,
  as_many_as_lora,
  magnitude,
  saliency,
  seft,
  spiel,
  spiel_sm3,
)
from sparsejax.finetune.optimizers import scale_by_aged_adam
from sparsejax.finetune.transform import (
  FineTuneState,
  FineTuning,
  fine_tune,
  join,
  merge,
)
from sparsejax.finetune.whole import fixed, full

__all__ = [
  "FineTuneState",
  "FineTuning",
  "adamw",
  "as_many_as_lora",
  "fine_tune",
  "fixed",
  "full",
  "join",
  "lora",
  "magnitude",
  "masked_lora",
  "merge",
  "saliency",
  "scale_by_aged_adam",
  "seft",
  "spiel",
  "spiel_sm3",
  "spp",
]
