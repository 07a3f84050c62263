"""The published algorithms: score x distribution x schedule x pattern.

Each reads like its paper's pseudo-code: a mask update (`updates`), and
`sparsify` or `straight_through`. All take where zeros may be (distribution,
prunable, pattern), and where masks begin at random also masks, such as those of
`initial`; those that hold inactive weights at zero take what becomes of weights
where masks move (step_on_update, grown_values, grown_moments, restart).
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
