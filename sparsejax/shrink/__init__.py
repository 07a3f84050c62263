"""Smaller models: tracing finds slices of params to remove together.

It works for any function that JAX can trace. Removal is exact: the smaller
model computes what the whole model does with these slices at zero.
Experimental. To train with structured masks, use `sparsejax.patterns`.
"""

from sparsejax.shrink.checking import verify
from sparsejax.shrink.costs import milliseconds
from sparsejax.shrink.plan import Plan, trace
from sparsejax.shrink.removal import Frozen, Group, Removal

__all__ = [
  "Frozen",
  "Group",
  "Plan",
  "Removal",
  "milliseconds",
  "trace",
  "verify",
]
