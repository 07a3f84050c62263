"""The published algorithms: score x distribution x schedule x pattern.

Each reads like its paper's pseudo-code: a mask update (`updates`), wrapped by
`sparsify` or `straight_through`. All of them take arguments that say where
zeros may be: distribution, prunable and pattern. Those that begin with random
masks also take masks, such as those of `initial`. Those that hold inactive
weights at zero also take arguments that say what happens to weights when masks
change: step_on_update, grown_values, grown_moments and restart.
"""

from sparsejax.algorithms.baselines import dense, fixed, static
from sparsejax.algorithms.dynamic import (
  dst_ee,
  mest,
  rigl,
  seft,
  set_,
  snfs,
  srigl,
)
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
  "dst_ee",
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
