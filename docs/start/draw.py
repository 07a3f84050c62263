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
    x, y = 40 + 224 * (i % 2), 46 + 208 * (i // 2)
    shapes += grid(x, y, cells.split(), colours)
    shapes.append(text(x + 78, y - 12, words, size=14, bold=True))
  shapes += [
    line(204, 124, 256, 124, arrow=True),
    line(256, 196, 204, 240, arrow=True),
    line(204, 332, 256, 332, arrow=True),
  ]
  legend = {
    "active": BLUE,
    "exactly 0": EMPTY,
    "dropped": ORANGE,
    "grown, starts at 0": GREEN,
  }
  for i, (words, colour) in enumerate(legend.items()):
    x, y = 60 + 224 * (i % 2), 432 + 26 * (i // 2)
    shapes.append(box(x, y, 16, 16, colour))
    shapes.append(text(x + 24, y + 13, words, anchor="start"))
  write("masks.svg", "A mask moves by drop and grow", 460, 490, shapes)


def timeline():
  """Draws when masks of RigL move, and by how much."""
  shapes = [
    line(30, 150, 530, 150, arrow=True),
    text(530, 172, "step", anchor="end"),
    text(20, 28, "share of active weights that move", anchor="start"),
    text(48, 52, "fraction", anchor="start", fill=ORANGE),
  ]
  moves, first, width = 12, 54, 26
  for i in range(moves):
    x = first + width * i
    height = 90 * 0.5 * (1 + math.cos(math.pi * (i + 1) / (moves + 1)))
    shapes.append(line(x, 150, x, 150 - height, stroke=ORANGE, width=6))
  end = first + width * moves
  shapes += [
    line(30, 150, 30, 158),
    text(30, 174, "0"),
    line(54, 150, 54, 158),
    text(46, 194, "delta_t", anchor="start"),
    line(80, 150, 80, 158),
    text(72, 174, "2 delta_t", anchor="start"),
    line(end, 44, end, 158, stroke=GREY),
    text(end, 174, "t_end"),
    text(end + 10, 74, "masks stay,", anchor="start"),
    text(end + 10, 92, "weights train on", anchor="start"),
    text(275, 220, "between two bars: ordinary steps of the optimizer"),
  ]
  write("timeline.svg", "When masks move", 550, 236, shapes)


def modes():
  """Draws the memory of the three modes as boxes."""
  shapes = []
  parts = [
    ("weights", ""),
    ("gradients", ""),
    ("Adam:", "mean"),
    ("Adam:", "square"),
  ]
  for i, lines in enumerate(parts):
    x = 150 + 106 * i
    shapes += [
      text(x, 26 + 18 * j, words, bold=True) for j, words in enumerate(lines)
    ]
  rows = [
    ("masked", "dense arrays, zeros in place", 90, False),
    ("packed", "a matrix is dense while it is multiplied", 9, True),
    ("kernels", "products skip the zeros", 9, False),
  ]
  for j, (name, words, size, momentary) in enumerate(rows):
    y = 60 + 76 * j
    shapes.append(text(20, y + 20, name, size=15, anchor="start", bold=True))
    for i in range(len(parts)):
      x = 105 + 106 * i
      if momentary and not i:
        shapes.append(box(x, y, 90, 30, EMPTY, stroke=GREY, dashed=True))
      shapes.append(box(x, y, size, 30, BLUE))
      if size == 9 and not i:
        shapes.append(box(x + 9, y, 5, 30, GREEN))
    shapes.append(text(105, y + 48, words, anchor="start"))
  legend = [
    (20, BLUE, "values, at 90 % zeros"),
    (210, GREEN, "their places"),
    (350, EMPTY, "for a moment"),
  ]
  for x, colour, words in legend:
    momentary = colour == EMPTY
    edge = GREY if momentary else INK
    shapes.append(box(x, 292, 16, 16, colour, stroke=edge, dashed=momentary))
    shapes.append(text(x + 24, 305, words, anchor="start"))
  write("modes.svg", "What each mode keeps in memory", 550, 324, shapes)


if __name__ == "__main__":
  masks()
  timeline()
  modes()
