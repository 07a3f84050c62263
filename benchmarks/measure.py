"""What benchmarks share: interleaved timing, memory, tables.

Functions that are compared run in turns, round by round, and a ratio is the
median of the rounds' ratios, so that tables mean something on a busy machine.
"""

import csv
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

_CSV = flags.DEFINE_string("csv", None, "Also write the table to this file.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds of each comparison.")

MIB = 2**20
_SHORTEST = 0.05  # seconds of calls that are timed together

COLUMNS = ("what", "measured", "wanted", "met", "temporary memory")


class Row(NamedTuple):
  """A row of a table; see COLUMNS."""

  what: str
  measured: str
  wanted: str
  met: str
  memory: str


def row(
  what: str,
  measured: float,
  wanted: str = "-",
  met: bool | None = None,
  memory: str = "-",
) -> Row:
  """Formats a row of a table.

  Args:
    what: What was measured.
    measured: The number.
    wanted: The goal.
    met: Whether it was reached; None if there is none.
    memory: A remark on memory.
  """
  verdict = {None: "-", True: "yes", False: "NO"}[met]
  return Row(what, f"{measured:.3g}", wanted, verdict, memory)


def forward_and_backward(product: Callable[..., jax.Array]) -> Callable:
  """Compiles the forward and backward pass of a layer.

  Args:
    product: `(weights, structure, x) -> y`, differentiated by weights and x.

  Returns:
    `(weights, structure, x, g) -> (y, of_weights, of_x)`.
  """

  @jax.jit
  def both(w, structure, x, g):
    y, pull = jax.vjp(lambda w, x: product(w, structure, x), w, x)
    return y, *pull(g)

  return both


def interleave(
  functions: Sequence[Callable[[], Any]], rounds: int, *, pause: float = 0.0
) -> np.ndarray:
  """Times functions in turns.

  Args:
    functions: What to time. Fast ones are called several times in a row, as a
      training loop calls its step, since dispatch is asynchronous and the first
      call of a series has a latency of its own.
    rounds: Number of rounds.
    pause: Seconds before each series, in which the threads of the last one go
      to sleep.

  Returns:
    Seconds of a call, float64[rounds, functions].
  """
  repeats = []
  for f in functions:
    jax.block_until_ready(f())
    begin = time.perf_counter()
    jax.block_until_ready(f())
    seconds = time.perf_counter() - begin
    repeats.append(max(1, round(_SHORTEST / seconds)))
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


def ratio(times: np.ndarray, i: int, j: int) -> float:
  """Computes the median over rounds of times[:, i] / times[:, j]."""
  return float(np.median(times[:, i] / times[:, j]))


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
  """Counts a program's bytes beyond its arguments and results."""
  return compiled.memory_analysis().temp_size_in_bytes


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Counts all bytes of a program; donated arguments count once."""
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
  """Prints a table, and writes it to the file of --csv."""
  print_table(title, columns, rows)
  if _CSV.value:
    write_csv(_CSV.value, module, columns, rows)


def print_table(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
  """Prints a table, its first column left-aligned."""
  table = Table(title=title)
  for i, name in enumerate(columns):
    table.add_column(name, justify="right" if i else "left")
  for line in rows:
    table.add_row(*line)
  Console(width=130).print(table)


def write_csv(
  path: str, module: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
  """Writes a table below a comment with the command that made it."""
  with pathlib.Path(path).open("w", newline="") as file:
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    file.write(f"# {command}\n")
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
