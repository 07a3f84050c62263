"""The published algorithms: score x distribution x schedule x pattern.

Each reads like its paper's pseudo-code and is made of public pieces. What
the keywords `options` take is what the mask update behind an algorithm takes
besides (`updates.drop_and_grow`, `updates.prune`, ...): distribution, prunable,
pattern, regrow, masks to begin with, such as those of `initial`; and what
`sparsify` takes: grown_values, grown_moments, step_on_update, restart.
"""

from sparsejax.algorithms.baselines import dense, fixed, static
from sparsejax.algorithms.dynamic import mest, rigl, seft, set_, snfs, srigl
from sparsejax.algorithms.pruning import ac_dc, gmp, granet
from sparsejax.algorithms.straight import (
  movement,
  soft_movement,
  sr_ste,
  ste,
  str_,
  top_kast,
)

__all__ = [
  "ac_dc",
  "dense",
  "fixed",
  "gmp",
  "granet",
  "mest",
  "movement",
  "rigl",
  "seft",
  "set_",
  "snfs",
  "soft_movement",
  "sr_ste",
  "srigl",
  "static",
  "ste",
  "str_",
  "top_kast",
]
