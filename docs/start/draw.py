"""Draws the pictures of ideas.md: `python docs/start/draw.py`."""

import math
import pathlib

HERE = pathlib.Path(__file__).parent
# Okabe and Ito's, which colour-blind readers can tell apart. The ground is part
# of each picture, so that it can be read on light and dark pages.
INK, GROUND, EMPTY = "#24292f", "#f6f7f9", "#ffffff"
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8c959f"


def text(x, y, words, *, size=14, anchor="middle", fill=INK, bold=False):
  """Returns a line of text."""
  weight = ' font-weight="600"' if bold else ""
  return (
    f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
    f'fill="{fill}"{weight}>{words}</text>'
  )


def box(x, y, width, height, fill, *, stroke=INK, dashed=False):
  """Returns a rectangle."""
  dash = ' stroke-dasharray="4 3"' if dashed else ""
  return (
    f'<rect x="{x}" y="{y}" width="{width}" height="{height}" '
    f'fill="{fill}" stroke="{stroke}"{dash}/>'
  )


def line(x1, y1, x2, y2, *, stroke=INK, width=1.5, arrow=False):
  """Returns a line, or an arrow."""
  head = ' marker-end="url(#head)"' if arrow else ""
  return (
    f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{stroke}" '
    f'stroke-width="{width}"{head}/>'
  )


def write(name, title, width, height, shapes):
  """Writes a picture."""
  body = "\n  ".join(shapes)
  (HERE / name).write_text(
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    f'width="{width}" height="{height}" role="img" font-family="sans-serif">\n'
    f"  <title>{title}</title>\n"
    '  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="8" markerHeight="8" orient="auto">'
    f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>\n'
    f'  <rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>\n'
    f"  {body}\n</svg>\n"
  )


def grid(x, y, cells, colours, side=26):
  """Returns a matrix, a square for each weight."""
  return [
    box(x + side * j, y + side * i, side, side, colours[cell])
    for i, row in enumerate(cells)
    for j, cell in enumerate(row)
  ]


def masks():
  """Draws a mask update: drop the smallest, grow where gradients are large."""
  colours = {"#": BLUE, ".": EMPTY, "-": ORANGE, "+": GREEN}
  # Rows of six weights each.
  steps = [
    ("mask: 12 of 36 active", "#..#.. .#..#. #...#. ..#..# .#..#. #...#."),
    ("drop 3, smallest |w|", "-..#.. .#..#. #...#. ..#..- .#..#. -...#."),
    ("grow 3, largest |gradient|", "..+#.. .#..#. #...#+ ..#... .#..#. .+..#."),
    ("new mask: 12 of 36 again", "..##.. .#..#. #...## ..#... .#..#. .#..#."),
  ]
  shapes = []
  for i, (words, cells) in enumerate(steps):
    x = 24 + 212 * i
    shapes += grid(x, 46, cells.split(), colours)
    shapes.append(text(x + 78, 32, words, size=13, bold=True))
    if i:
      shapes.append(line(x - 50, 124, x - 8, 124, arrow=True))
  legend = {
    "active": BLUE,
    "exactly 0": EMPTY,
    "dropped": ORANGE,
    "grown, starts at 0": GREEN,
  }
  for i, (words, colour) in enumerate(legend.items()):
    x = 150 + 150 * i
    shapes.append(box(x, 222, 16, 16, colour))
    shapes.append(text(x + 24, 235, words, size=13, anchor="start"))
  write("masks.svg", "A mask moves by drop and grow", 840, 256, shapes)


def timeline():
  """Draws when masks of RigL move, and by how much."""
  shapes = [
    line(40, 150, 800, 150, arrow=True),
    text(800, 172, "step", anchor="end"),
    text(30, 30, "share of active weights that move", anchor="start", size=13),
  ]
  moves, first, width, last = 15, 88, 32, 0
  for i in range(1, moves + 1):
    x = first - 48 + width * i
    height = 90 * 0.5 * (1 + math.cos(math.pi * i / (moves + 1)))
    shapes.append(line(x, 150, x, 150 - height, stroke=ORANGE, width=6))
    last = x
  shapes += [
    text(72, 54, "fraction = 0.3", anchor="start", size=12, fill=ORANGE),
    line(40, 150, 40, 158),
    text(40, 174, "0", size=12),
    line(72, 150, 72, 158),
    text(72, 174, "delta_t", size=12),
    line(104, 150, 104, 158),
    text(116, 190, "2 delta_t", size=12),
    line(last + width, 44, last + width, 158, stroke=GREY),
    text(last + width, 174, "t_end", size=12),
    text(last + width + 10, 74, "masks stay,", anchor="start", size=13),
    text(last + width + 10, 92, "weights train on", anchor="start", size=13),
    text(
      300, 206, "between two bars: ordinary steps of the optimizer", size=13
    ),
  ]
  write("timeline.svg", "When masks move", 840, 220, shapes)


def modes():
  """Draws the memory of the three modes as boxes."""
  shapes = []
  parts = ["weights", "gradients", "Adam: 1st moment", "Adam: 2nd moment"]
  for i, part in enumerate(parts):
    shapes.append(text(258 + 140 * i, 34, part, size=13, bold=True))
  rows = [
    ("masked", "dense arrays, zeros in place", 120, False),
    ("packed", "a matrix is dense while it is multiplied", 12, True),
    ("kernels", "products skip the zeros", 12, False),
  ]
  for j, (name, words, size, momentary) in enumerate(rows):
    y = 56 + 76 * j
    shapes.append(text(24, y + 20, name, size=15, anchor="start", bold=True))
    for i in range(len(parts)):
      x = 198 + 140 * i
      if momentary and not i:
        shapes.append(box(x, y, 120, 30, EMPTY, stroke=GREY, dashed=True))
      shapes.append(box(x, y, size, 30, BLUE))
      if size == 12 and not i:
        shapes.append(box(x + 12, y, 6, 30, GREEN))
    shapes.append(text(198, y + 48, words, size=12, anchor="start"))
  legend = [
    (BLUE, "values, at 90 % zeros"),
    (GREEN, "places of the non-zeros"),
  ]
  for i, (colour, words) in enumerate(legend):
    shapes.append(box(198 + 210 * i, 282, 16, 16, colour))
    shapes.append(text(222 + 210 * i, 295, words, size=13, anchor="start"))
  shapes.append(box(618, 282, 16, 16, EMPTY, stroke=GREY, dashed=True))
  shapes.append(text(642, 295, "for a moment", size=13, anchor="start"))
  write("modes.svg", "What each mode keeps in memory", 780, 314, shapes)


if __name__ == "__main__":
  masks()
  timeline()
  modes()
