"""What benchmarks share: interleaved timing, memory, tables.

Functions that are compared run in turns, round by round, and a ratio is the
median of the rounds' ratios, so that tables mean something on a busy machine.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.tables import text

_CSV = flags.DEFINE_string("csv", None, "Also write the table to this file.")
# Of the benchmarks that list what they measure.
ONLY = flags.DEFINE_list("only", [], "What to measure; all by default.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds of each comparison.")
# Of those that measure language models.
WORKDIR = flags.DEFINE_string("workdir", None, "Where the models are.")
DATA = flags.DEFINE_string(
  "data_dir", "data/sotu/package/data", "The State of the Union addresses."
)

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
  *,
  least: float | None = None,
  most: float | None = None,
  goal: tuple[str, bool | None] = ("-", None),
  memory: str = "-",
) -> Row:
  """Formats a row of a table.

  Args:
    what: What was measured.
    measured: The number.
    least: The goal, if it is the least number wanted.
    most: The goal, if it is the largest number wanted.
    goal: Any other goal in words, and whether it was reached; None if there is
      none.
    memory: A remark on memory.
  """
  if least is not None:
    goal = (f">= {least:g}", measured >= least)
  elif most is not None:
    goal = (f"<= {most:g}", measured <= most)
  wanted, met = goal
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


def gain(
  ours: Callable[[], Any],
  theirs: Callable[[], Any],
  rounds: int,
  *,
  pause: float = 0.0,
) -> float:
  """Measures how many times as long `theirs` takes as `ours`.

  Args:
    ours: A function to time.
    theirs: What it is compared with.
    rounds: As for `interleave`.
    pause: As for `interleave`.
  """
  return ratio(interleave([ours, theirs], rounds, pause=pause), 1, 0)


def ranks_by_sorting(scores: jax.Array) -> jax.Array:
  """Ranks scores by two argsorts, the highest first, as others do."""
  order = jnp.argsort(-scores.reshape(-1))
  ranks = jnp.zeros(scores.size, jnp.int32)
  return ranks.at[order].set(jnp.arange(scores.size)).reshape(scores.shape)


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
  rows: Sequence[Sequence[str]],
  *,
  columns: Sequence[str] = COLUMNS,
) -> None:
  """Prints a table, and writes it to the file of --csv."""
  lines = [columns, *rows]
  text.print_table(title, lines, rest="the file of --csv")
  if _CSV.value:
    text.write_csv(pathlib.Path(_CSV.value), lines, module=module)
