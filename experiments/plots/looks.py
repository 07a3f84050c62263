"""How each method is drawn: the same colour and marker in every picture.

Colours are those of Okabe and Ito, which the colour-blind can tell apart.
There are fewer of them than methods: methods that share a panel differ in
colour, and all that train sparse nets differ in colour or marker.
"""

import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
GREY = "#555555"  # of levels to compare with: dense, chance
FAINT = "#d8d8d8"  # of the lines of other panels
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
# How far colours of variants are mixed, with black below 0, white above.
_SHADES = (0.0, -0.4, -0.7, 0.3)

_LOOKS = {
  "dense": (GREY, "o"),
  # Dynamic sparse training.
  "static": (BLACK, "o"),
  "set": (SKY, "s"),
  "snfs": (PURPLE, "D"),
  "rigl": (RED, "o"),
  "rigl_5x": (RED, "P"),
  "rigl_itop": (RED, "^"),
  "srigl": (ORANGE, "v"),
  "mest": (GREEN, "P"),
  "mest_s": (GREEN, "X"),
  "granet": (PURPLE, "P"),
  "dst_ee": (ORANGE, "^"),
  "small_dense": (GREEN, "s"),
  # From dense to sparse.
  "gmp": (BLUE, "s"),
  "ac_dc": (ORANGE, "D"),
  "ste": (GREEN, "v"),
  "sr_ste": (GREEN, "D"),
  "top_kast": (SKY, "^"),
  "movement": (PURPLE, "v"),
  "soft_movement": (PURPLE, "X"),
  "str": (ORANGE, "P"),
  # Before and after training.
  "magnitude": (BLACK, "v"),
  "gradient": (SKY, "P"),
  "snip": (BLUE, "^"),
  "grasp": (PURPLE, "s"),
  "synflow": (GREEN, "o"),
  "force": (ORANGE, "X"),
  "random": (BLACK, "X"),
  "wanda": (ORANGE, "^"),
  "sparsegpt": (BLUE, "o"),
  "ria": (GREEN, "s"),
  "owl_wanda": (RED, "D"),
  # Fine-tuning.
  "none": (GREY, "o"),
  "lora": (ORANGE, "v"),
  "masked_lora": (ORANGE, "s"),
  "spp": (GREEN, "D"),
  "fixed_mask": (BLACK, "s"),
  "spiel": (SKY, "P"),
  "seft": (PURPLE, "o"),
  "ce": (ORANGE, "o"),
  "ce_kl": (SKY, "s"),
  "ce_squarehead": (RED, "D"),
  # Lottery tickets.
  "ticket": (RED, "o"),
  "rewound": (BLUE, "s"),
  "reinit": (ORANGE, "^"),
  "weights_0": (SKY, "o"),
  "weights_50": (GREEN, "s"),
  "weights_200": (BLUE, "D"),
  "weights_1000": (BLACK, "^"),
  "learning_rate": (RED, "P"),
  "fine_tuning": (ORANGE, "v"),
  "one_shot": (PURPLE, "X"),
}
# The same shade, marker and dash for the same variant in every picture.
_VARIANTS = (
  ("uniform", "unstructured"),
  ("first_dense", "fan_in"),
  ("erk", "n_of_m"),
  ("blocks",),
)
_OTHER_NAMES = {"pruning": "gmp"}  # as RigL's paper calls it


class Look(NamedTuple):
  """How a line or a point is drawn.

  Attributes:
    color: As #rrggbb.
    marker: As Matplotlib calls it.
    dash: The style of the line.
  """

  color: str
  marker: str
  dash: str = "-"

  def variant(self, number: int) -> "Look":
    """Returns the look of a method's variant: another shade, marker, dash."""
    number %= len(_DASHES)
    if not number:
      return self
    first = _MARKERS.index(self.marker)
    return Look(
      _mixed(self.color, _SHADES[number]),
      _MARKERS[(first + number) % len(_MARKERS)],
      _DASHES[number],
    )


def variants(names: Iterable[str]) -> dict[str, int]:
  """Numbers the variants of methods, for `Look.variant`.

  Args:
    names: What tells lines of a method apart: distributions, patterns.

  Returns:
    By name its number, which is the same in every picture for those that are
    known here; in their order, if one is not known.

  Example:
    >>> variants(["ERK", "uniform"]), variants(["mine", "ERK"])
    ({'ERK': 2, 'uniform': 0}, {'mine': 0, 'ERK': 1})
  """
  names = list(dict.fromkeys(names))
  fixed = {
    name: number
    for name in names
    for number, group in enumerate(_VARIANTS)
    if _key(name) in group
  }
  if len({*fixed.values()}) < len(names):
    return {name: number for number, name in enumerate(names)}
  return fixed


def known(name: str) -> bool:
  """Returns whether that is a method which has a look of its own."""
  return _key(name) in _LOOKS


def of(name: str) -> Look:
  """Finds the look of a method.

  Args:
    name: As configs and tables write it. What follows in brackets, after a
      comma or after `from` names a variant, which looks like its method.

  Returns:
    Its look. A method that is unknown here has one by its name, which is the
    same in every picture.

  Example:
    >>> of("rigl"), of("RigL (ERK)").color == of("rigl from snip").color
    (Look(color='#D55E00', marker='o', dash='-'), True)
  """
  words = _key(name).split("_")
  for end in range(len(words), 0, -1):
    key = _key("_".join(words[:end]))
    if key in _LOOKS:
      return Look(*_LOOKS[key])
  number = zlib.crc32(name.encode())
  marker = number // len(COLOURS) % len(_MARKERS)
  return Look(COLOURS[number % len(COLOURS)], _MARKERS[marker])


def _key(name: str) -> str:
  key = "_".join(re.findall(r"[a-z0-9]+", name.lower()))
  return _OTHER_NAMES.get(key, key)


def _mixed(color: str, share: float) -> str:
  """A colour mixed with black (-1) or white (1)."""
  end = 255 if share > 0 else 0
  parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
  mixed = (round(p + (end - p) * abs(share)) for p in parts)
  return "#" + "".join(f"{part:02x}" for part in mixed)
