"""Smaller models: slices of params that leave together, found by tracing.

For any function that JAX can trace. What is removed is removed exactly: the
smaller model computes what the whole one does with these slices at zero.
Experimental. Training with structured masks is `sparsejax.patterns`.
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
