"""What every benchmark does: time in turns, tell memory, print a table.

Everything that is compared is interleaved, round by round, and a ratio is the
median of the rounds' ratios; so a table means something on a busy machine too.
"""

import csv
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

_CSV = flags.DEFINE_string("csv", None, "Also write the table to this file.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds of each comparison.")

MIB = 2**20
_AT_LEAST = 0.05  # seconds in a row


COLUMNS = ("what", "measured", "wanted", "met", "temporary memory")


class Row(NamedTuple):
  """One line of the table; see COLUMNS."""

  what: str
  measured: str
  wanted: str
  met: str
  memory: str


def row(what, measured, wanted="-", met=None, memory="-") -> Row:
  """A line; `met` is None where nothing in particular was wanted."""
  verdict = {None: "-", True: "yes", False: "NO"}[met]
  return Row(what, f"{measured:.3g}", wanted, verdict, memory)


def passes(product):
  """Forward and backward pass of a layer, compiled.

  Args:
    product: `(weights, structure, x) -> y`; gradients are those of the first
      and the last.

  Returns:
    `(weights, structure, x, g) -> (y, of_weights, of_x)`.
  """

  @jax.jit
  def both(w, structure, x, g):
    y, pull = jax.vjp(lambda w, x: product(w, structure, x), w, x)
    return y, *pull(g)

  return both


def interleave(functions, rounds, *, pause=0.0):
  """Seconds of each function, as an array [rounds, functions].

  Fast ones are called several times in a row, as a training loop calls its
  step: a call returns before its work is done, and to begin it takes a while.
  A pause before each, in seconds, lets threads of the last one go to sleep.
  """
  repeats = []
  for f in functions:
    jax.block_until_ready(f())
    begin = time.perf_counter()
    jax.block_until_ready(f())
    once = time.perf_counter() - begin
    repeats.append(max(1, round(_AT_LEAST / once)))
  times = np.empty((rounds, len(functions)))
  for r in range(rounds):
    for i, (f, n) in enumerate(zip(functions, repeats, strict=True)):
      time.sleep(pause)
      begin = time.perf_counter()
      for _ in range(n):
        last = f()
      jax.block_until_ready(last)
      times[r, i] = (time.perf_counter() - begin) / n
  return times


def ratio(times, i, j):
  """The median over rounds of one function's time to another's."""
  return float(np.median(times[:, i] / times[:, j]))


def temporary(compiled) -> int:
  """Bytes that a compiled program takes beyond arguments and results."""
  return compiled.memory_analysis().temp_size_in_bytes


def peak(compiled) -> int:
  """Bytes that a compiled program takes in all; donated arguments once."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def show(
  title: str,
  module: str,
  rows: Sequence[Row],
  *,
  columns: Sequence[str] = COLUMNS,
) -> None:
  """Prints the table, and writes it where --csv says, with its command."""
  print_table(title, columns, rows)
  if _CSV.value:
    write_csv(_CSV.value, module, columns, rows)


def print_table(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
  """Prints any table."""
  table = Table(title=title)
  for i, name in enumerate(columns):
    table.add_column(name, justify="right" if i else "left")
  for line in rows:
    table.add_row(*line)
  Console(width=130).print(table)


def write_csv(
  path: str, module: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
  """Writes any table, with the command that made it."""
  with pathlib.Path(path).open("w", newline="") as file:
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    file.write(f"# {command}\n")
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
