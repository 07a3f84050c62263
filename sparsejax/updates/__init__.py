"""Mask updates: how masks begin and how they change.

A mask update is to masks what a gradient transformation is to updates: two
pure functions. `sparsify` decides when it changes the masks. This table lists
the mask update, scores and schedule of each algorithm (w: weights, g: dense
gradients, S: scores that are trained):

  algorithm      mask update       keeps by         grows by   share over time
  -------------  ----------------  ---------------  ---------  ----------------
  static         static            at random                   stays
  set_           drop_and_grow     |w|              at random  cosine to 0
  rigl           drop_and_grow     |w|              |g|        cosine to 0
  snfs           drop_and_grow     |w|              |mean g|   cosine to 0
  dst_ee         drop_and_grow     |w|              |g|+bonus  cosine to 0
  seft           drop_and_grow     |w g|            |g|        cosine to 0
  mest           drop_and_grow     |w| + lambda|g|  at random  two stages
  srigl          constant_fan_in   |w|              |g|        cosine to 0
  gmp            prune             |w|                         cubic
  granet         prune_and_regrow  |w|              |g|        cubic, cosine
  ac_dc          alternate         |w|                         phases
  ste            best              |w|                         none, or cubic
  sr_ste         best              |w|                         none
  top_kast       nested            |w|                         none
  movement       best              S                           cubic
  soft_movement  above             S                           cubic threshold
  str_           soft_threshold    |w|                         learned threshold

All of them take any of `patterns`, except srigl, which has its own pattern of
constant fan-in, and the last two, whose thresholds keep any number of weights.
The default pattern of sr_ste is 2:4. The last six are for `straight_through`,
which keeps dense weights.
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
