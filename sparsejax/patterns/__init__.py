"""Patterns: the shapes that zeros may take.

A pattern says which masks are allowed: how many weights they may keep, which
of them keeps the best scores, and how a mask changes. `sparsejax.distributions`
decides how many weights each leaf keeps.
"""

from sparsejax.patterns.base import Pattern, Patterns, for_layer, for_leaf
from sparsejax.patterns.groups import n_of_m, transposable_n_of_m
from sparsejax.patterns.mixed import by_path, distribution, named, resolve
from sparsejax.patterns.parts import blocks, channels, heads
from sparsejax.patterns.simple import fan_in, unstructured

__all__ = [
  "Pattern",
  "Patterns",
  "blocks",
  "by_path",
  "channels",
  "distribution",
  "fan_in",
  "for_layer",
  "for_leaf",
  "heads",
  "n_of_m",
  "named",
  "resolve",
  "transposable_n_of_m",
  "unstructured",
]
