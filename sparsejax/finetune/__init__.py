"""Sparse fine-tuning of pretrained weights: deltas, non-zeros, adapters.

    tx = finetune.seft(finetune.adamw(1e-4), k=..., t_end=..., key=key)
    values, state = sparsejax.init(tx, params)      # params with zeros

    now = tx.moves(step)                            # False on most steps
    value_and_grad = sparsejax.value_and_grad(loss_fn, tx)
    loss, grads = value_and_grad(values, state, batch, update_masks=now)
    updates, state = tx.update(grads, state, values, update_masks=now)
    values = optax.apply_updates(values, updates)
    params = finetune.merge(values, state)          # no more non-zeros

The loop is the same as in masked, packed and kernel training.
`loss_fn(params, batch)` gets the params of the model, which has to multiply by
`sparsejax.matmul`. Only trained values have optimizer state and gradients that
outlast the backward pass. The dense gradient of a matrix exists only within its
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
from sparsejax.finetune.deprecated import join
from sparsejax.finetune.optimizers import scale_by_aged_adam
from sparsejax.finetune.transform import (
  FineTuneState,
  FineTuning,
  fine_tune,
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
