"""Mask updates: what a mask is at first, and how it moves.

A mask update is to masks what a gradient transformation is to updates: two
pure functions. `sparsify` decides when it is called to move them.
"""

from sparsejax.updates.base import MaskState, MaskUpdate, now_key
from sparsejax.updates.choosing import alternate, best, nested
from sparsejax.updates.dynamic import (
  check_fraction,
  constant_fan_in,
  drop_and_grow,
)
from sparsejax.updates.fixed import fixed, static
from sparsejax.updates.pruning import prune, prune_and_regrow
from sparsejax.updates.thresholds import Thresholds, above, soft_threshold

__all__ = [
  "MaskState",
  "MaskUpdate",
  "Thresholds",
  "above",
  "alternate",
  "best",
  "check_fraction",
  "constant_fan_in",
  "drop_and_grow",
  "fixed",
  "nested",
  "now_key",
  "prune",
  "prune_and_regrow",
  "soft_threshold",
  "static",
]
