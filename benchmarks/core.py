"""The cost of a sparse training step, against a dense one.

Run `python -m benchmarks.core`. Memory is what a compiled program takes beyond
its arguments and results.
"""

import concurrent.futures
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from flax import linen as nn

import sparsejax
from benchmarks import measure
from experiments import models

_QUICKSTART = flags.DEFINE_bool("quickstart", True, "Also time quickstart.")


class Step(NamedTuple):
  """A training step to compare with the dense one.

  Attributes:
    what: Its name in the table.
    tx: The transformation.
    update_masks: As for `tx.update`; None follows the schedule on the device.
    limit: The highest ratio wanted, or None.
  """

  what: str
  tx: sparsejax.SparseTransformation
  update_masks: bool | None
  limit: float | None


OPTIMIZER = optax.chain(
  optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9)
)


def sparse_steps(
  ordinary: float,
  update: float,
  every: float,
  inside: float | None = None,
) -> list[Step]:
  """Lists the sparse steps to time.

  Args:
    ordinary: The limit of steps without a mask update.
    update: The limit of steps with one.
    every: The limit of methods that choose masks at every step.
    inside: The limit of ordinary steps that decide by themselves.
  """
  key = jax.random.key(3)
  rigl = sparsejax.rigl(OPTIMIZER, 0.9, key=key, t_end=75_000)
  top_kast = sparsejax.top_kast(OPTIMIZER, 0.9, key=key, backward_sparsity=0.8)
  return [
    Step("ordinary step", rigl, False, ordinary),
    Step("mask-update step", rigl, True, update),
    Step("ordinary step, lax.cond inside", rigl, None, inside),
    Step("STE", sparsejax.ste(OPTIMIZER, 0.9, key=key), True, every),
    Step("Top-KAST", top_kast, True, every),
    Step("SR-STE, 2:4", sparsejax.sr_ste(OPTIMIZER, 0.5, key=key), True, every),
  ]


def training_steps(
  model: nn.Module,
  shape: tuple[int, ...],
  sparse: Sequence[Step],
  classes: int = 10,
) -> tuple[list[Callable], list[jax.stages.Compiled]]:
  """Compiles the dense step and the sparse ones.

  Args:
    model: The model.
    shape: Shape of a batch of inputs.
    sparse: The sparse steps.
    classes: How many classes the model tells apart.

  Returns:
    The functions to time, and their programs, the dense one first.
  """
  x = jax.random.normal(jax.random.key(0), shape)
  y = jax.random.randint(jax.random.key(1), shape[:1], 0, classes)
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(2), x)
  first = variables["params"]
  stats = {k: v for k, v in variables.items() if k != "params"}

  def loss_fn(params, opt_state, stats, x, y):
    params = sparsejax.forward_params(params, opt_state)
    logits, stats = model.apply(
      {"params": params, **stats}, x, train=True, mutable=list(stats)
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return loss.mean(), stats

  def lowered(tx, params, opt_state, **extra):
    def step(params, opt_state, *rest):
      grads, stats = jax.grad(loss_fn, has_aux=True)(params, opt_state, *rest)
      updates, opt_state = tx.update(grads, opt_state, params, **extra)
      return optax.apply_updates(params, updates), opt_state, stats

    program = jax.jit(step, donate_argnums=(0, 1, 2))
    return program.lower(params, opt_state, stats, x, y)

  def runner(program, params, opt_state):
    state = jax.tree.map(jnp.copy, (params, opt_state, stats))

    def run():
      nonlocal state
      state = program(*state, x, y)
      return state

    return run

  dense = first, OPTIMIZER.init(first)
  states = [dense, *(sparsejax.init(s.tx, first) for s in sparse)]
  steps = [
    lowered(OPTIMIZER, *dense),
    *(
      lowered(s.tx, *state, update_masks=s.update_masks)
      for s, state in zip(sparse, states[1:], strict=True)
    ),
  ]
  with concurrent.futures.ThreadPoolExecutor() as threads:
    programs = list(threads.map(lambda step: step.compile(), steps))
  functions = [runner(p, *s) for p, s in zip(programs, states, strict=True)]
  return functions, programs


def train_rows(
  name: str,
  model: nn.Module,
  shape: tuple[int, ...],
  sparse: Sequence[Step],
  rounds: int,
  *,
  classes: int = 10,
) -> list[measure.Row]:
  """Compares sparse steps of a model with its dense step.

  Args:
    name: The model's name in the table.
    model: The model.
    shape: Shape of a batch of inputs.
    sparse: The steps.
    rounds: Number of rounds.
    classes: How many classes the model tells apart.
  """
  functions, programs = training_steps(model, shape, sparse, classes)
  times = measure.interleave(functions, rounds)
  rows = []
  for i, step in enumerate(sparse, start=1):
    measured = measure.ratio(times, i, 0)
    ours, dense = (
      measure.temporary_bytes(p) / measure.MIB
      for p in (programs[i], programs[0])
    )
    memory = f"{ours:.0f} MiB (dense {dense:.0f})"
    what = f"{name}: {step.what} / dense"
    rows.append(measure.row(what, measured, most=step.limit, memory=memory))
  return rows


def groups_row(n: int, rounds: int) -> measure.Row:
  """Compares a 2:4 selection of an n x n matrix with sorting its groups."""
  scores = jnp.abs(jax.random.normal(jax.random.key(0), (n, n)))
  pattern = sparsejax.patterns.n_of_m(2, 4)

  def by_counting(scores):
    return pattern.top_k(scores, n * n // 2)

  def by_sorting(scores):
    groups = scores.T.reshape(-1, 4)
    ranks = jnp.argsort(jnp.argsort(-groups, axis=-1), axis=-1)
    return (ranks < 2).reshape(n, n).T

  counting, sorting = (
    jax.jit(f).lower(scores).compile() for f in (by_counting, by_sorting)
  )
  assert bool(jnp.all(counting(scores) == sorting(scores)))
  measured = measure.gain(
    lambda: counting(scores), lambda: sorting(scores), max(3, rounds // 3)
  )
  ours, theirs = (
    measure.temporary_bytes(p) / scores.nbytes for p in (counting, sorting)
  )
  return measure.row(
    f"{n} x {n}, 2:4: sorting groups / ours",
    measured,
    least=20,
    memory=f"{ours:.2f} matrices (argsort {theirs:.1f})",
  )


def selection_row(n: int, rounds: int) -> measure.Row:
  """Compares RigL's update of an n x n mask with two argsort rankings."""
  w = jax.random.normal(jax.random.key(0), (n, n))
  g = jax.random.normal(jax.random.key(1), (n, n))
  mask = sparsejax.select.top_k_mask(jnp.abs(w), n * n // 10)

  rank = measure.ranks_by_sorting

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
  measured = measure.gain(
    lambda: counting(*args), lambda: sorting(*args), max(3, rounds // 3)
  )
  ours, theirs = (
    measure.temporary_bytes(p) / w.nbytes for p in (counting, sorting)
  )
  return measure.row(
    f"{n} x {n} mask update: two argsort rankings / ours",
    measured,
    goal=(">= 12, <= 3 matrices", measured >= 12 and round(ours, 2) <= 3),
    memory=f"{ours:.2f} matrices (argsort {theirs:.1f})",
  )


def quickstart_seconds(arg: str = "") -> float:
  """Times the quickstart, from the shell to its table."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "experiments.main"]
    begin = time.perf_counter()
    subprocess.run(
      [
        *command,
        f"--config=configs/quickstart.py:{arg}",
        f"--workdir={folder}/quickstart",
      ],
      check=True,
      stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  rounds = measure.ROUNDS.value
  rows = [
    *train_rows(
      "WRN-22-2, batch 128",
      models.create("wrn", 10, depth=22, width=2),
      (128, 32, 32, 3),
      sparse_steps(1.02, 1.04, 1.10),
      rounds,
    ),
    *train_rows(
      "MLP 784-300-100-10, batch 128",
      models.create("lenet_300_100", 10),
      (128, 784),
      sparse_steps(1.05, 5, 4),
      20 * rounds,
    ),
    selection_row(4096, rounds),
    groups_row(4096, rounds),
  ]
  if _QUICKSTART.value:
    minutes = quickstart_seconds() / 60
    rows.append(measure.row("quickstart, minutes", minutes, most=3))
  measure.show("sparsejax against dense training", "benchmarks.core", rows)


if __name__ == "__main__":
  app.run(main)
