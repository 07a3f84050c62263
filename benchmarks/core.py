"""What sparse training costs over dense training: ratios in one process.

Run `python -m benchmarks.core`. Everything that is compared is interleaved,
round by round, and a ratio is the median of the rounds' ratios; so the table
means something on a busy machine too. Memory is what the compiled program
asks for beyond its arguments and results.
"""

import csv
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from rich.console import Console
from rich.table import Table

import sparsejax
from experiments import models

_CSV = flags.DEFINE_string("csv", None, "Also write the table to this file.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds of each comparison.")
_QUICKSTART = flags.DEFINE_bool("quickstart", True, "Also time quickstart.")

MIB = 2**20


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


def interleave(functions, rounds):
  """Seconds of each function, as an array [rounds, functions]."""
  for f in functions:
    f()
  times = np.empty((rounds, len(functions)))
  for r in range(rounds):
    for i, f in enumerate(functions):
      begin = time.perf_counter()
      jax.block_until_ready(f())
      times[r, i] = time.perf_counter() - begin
  return times


def ratio(times, i, j):
  """The median over rounds of one function's time to another's."""
  return float(np.median(times[:, i] / times[:, j]))


def temporary(compiled) -> float:
  """MiB that a compiled program takes beyond arguments and results."""
  return compiled.memory_analysis().temp_size_in_bytes / MIB


def training_steps(model, shape, optimizer):
  """Compiled steps: dense, sparse, and sparse with a mask update."""
  x = jax.random.normal(jax.random.key(0), shape)
  y = jax.random.randint(jax.random.key(1), shape[:1], 0, 10)
  variables = model.init(jax.random.key(2), x, train=False)
  stats = {k: v for k, v in variables.items() if k != "params"}

  def loss_fn(params, stats):
    logits, stats = model.apply(
      {"params": params, **stats}, x, train=True, mutable=list(stats)
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return loss.mean(), stats

  def compiled(tx, params, opt_state, **extra):
    def step(params, opt_state, stats):
      grads, stats = jax.grad(loss_fn, has_aux=True)(params, stats)
      updates, opt_state = tx.update(grads, opt_state, params, **extra)
      return optax.apply_updates(params, updates), opt_state, stats

    program = jax.jit(step, donate_argnums=(0, 1, 2))
    return program.lower(params, opt_state, stats).compile()

  def runner(program, params, opt_state):
    state = jax.tree.map(jnp.copy, (params, opt_state, stats))

    def run():
      nonlocal state
      state = program(*state)
      return state

    return run

  tx = sparsejax.rigl(optimizer, 0.9, key=jax.random.key(3), t_end=75_000)
  dense = variables["params"], optimizer.init(variables["params"])
  sparse = sparsejax.init(tx, variables["params"])
  programs = [
    compiled(optimizer, *dense),
    compiled(tx, *sparse, update_masks=False),
    compiled(tx, *sparse, update_masks=True),
    compiled(tx, *sparse),
  ]
  states = [dense, sparse, sparse, sparse]
  functions = [runner(p, *s) for p, s in zip(programs, states, strict=True)]
  return functions, programs


def train_rows(name, model, shape, limits, rounds):
  """Rows of one model: sparse steps against the dense one."""
  optimizer = optax.chain(
    optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)
  )
  functions, programs = training_steps(model, shape, optimizer)
  times = interleave(functions, rounds)
  what = [
    "ordinary step / dense",
    "mask-update step / dense",
    "ordinary step, lax.cond inside / dense",
  ]
  rows = []
  for i, (w, limit) in enumerate(zip(what, limits, strict=True), start=1):
    measured = ratio(times, i, 0)
    ours, dense = temporary(programs[i]), temporary(programs[0])
    memory = f"{ours:.0f} MiB (dense {dense:.0f})"
    goal = ("-", None) if limit is None else (f"<= {limit}", measured <= limit)
    rows.append(row(f"{name}: {w}", measured, *goal, memory))
  return rows


def selection_row(n, rounds):
  """One RigL mask update of an n x n matrix, against two argsort rankings."""
  w = jax.random.normal(jax.random.key(0), (n, n))
  g = jax.random.normal(jax.random.key(1), (n, n))
  mask = sparsejax.select.top_k_mask(jnp.abs(w), n * n // 10)

  def rank(scores):
    order = jnp.argsort(-scores.reshape(-1))
    ranks = jnp.zeros(scores.size, jnp.int32)
    return ranks.at[order].set(jnp.arange(scores.size)).reshape(scores.shape)

  def by_counting(w, g, mask):
    top = sparsejax.select.top_k_mask
    nnz = jnp.sum(mask, dtype=jnp.int32)
    move = (0.3 * nnz).astype(jnp.int32)
    keep = top(jnp.abs(w), nnz - move, mask)
    return keep | top(jnp.abs(g), move, ~keep)

  def by_sorting(w, g, mask):
    nnz = jnp.sum(mask, dtype=jnp.int32)
    move = (0.3 * nnz).astype(jnp.int32)
    keep = rank(jnp.where(mask, jnp.abs(w), -1)) < nnz - move
    return keep | (rank(jnp.where(keep, -1, jnp.abs(g))) < move)

  counting, sorting = (
    jax.jit(f).lower(w, g, mask).compile() for f in (by_counting, by_sorting)
  )
  args = (w, g, mask)
  assert bool(jnp.all(counting(*args) == sorting(*args)))
  times = interleave(
    [lambda: counting(*args), lambda: sorting(*args)], max(3, rounds // 3)
  )
  measured = ratio(times, 1, 0)
  ours, theirs = (temporary(p) * MIB / w.nbytes for p in (counting, sorting))
  return row(
    f"{n} x {n} mask update: two argsort rankings / ours",
    measured,
    ">= 12, <= 3 matrices",
    measured >= 12 and ours <= 3,
    f"{ours:.2f} matrices (argsort {theirs:.1f})",
  )


def quickstart_row():
  """Minutes of the quickstart, from the shell to its table."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "experiments.main"]
    begin = time.perf_counter()
    subprocess.run(
      [
        *command,
        "--config=configs/quickstart.py",
        f"--workdir={folder}/quickstart",
      ],
      check=True,
      stdout=subprocess.DEVNULL,
    )
    minutes = (time.perf_counter() - begin) / 60
  return row("quickstart, minutes", minutes, "<= 3", minutes <= 3)


def main(argv):
  """Prints the table."""
  del argv
  rounds = _ROUNDS.value
  rows = [
    *train_rows(
      "WRN-22-2, batch 128",
      models.create("wrn", 10, depth=22, width=2),
      (128, 32, 32, 3),
      (1.02, 1.04, None),
      rounds,
    ),
    *train_rows(
      "MLP 784-300-100-10, batch 128",
      models.create("lenet_300_100", 10),
      (128, 784),
      (1.05, 5, None),
      20 * rounds,
    ),
    selection_row(4096, rounds),
  ]
  if _QUICKSTART.value:
    rows.append(quickstart_row())

  table = Table(title="sparsejax against dense training")
  for i, name in enumerate(COLUMNS):
    table.add_column(name, justify="right" if i else "left")
  for line in rows:
    table.add_row(*line)
  Console(width=130).print(table)
  if _CSV.value:
    with pathlib.Path(_CSV.value).open("w", newline="") as file:
      file.write(f"# python -m benchmarks.core --csv={_CSV.value}\n")
      csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
  app.run(main)
