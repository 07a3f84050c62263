"""Time to an accuracy on Fashion-MNIST: dense, masked, and by sparse kernels.

Run `python -m benchmarks.accuracy` on an idle machine. A perceptron
784-1024-1024-10 is trained by Adam: dense, and by RigL at 95 % and 98 %, masked
and by kernels. All runs of a seed take turns in one process. Time is counted in
epochs of the dense run beside them, so that a slow spell of the machine cancels
out. Compilation and evaluation are not counted; fetching batches and updating
masks is.
"""

import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import sparsejax
from benchmarks import measure, packed
from experiments.data import sets
from experiments.statistics import interval, shown
from experiments.tables import pictures
from sparsejax import modes

_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of training.")
_PICTURE = flags.DEFINE_string("png", None, "File for the picture.")
GOALS = (0.87, 0.88)
TURNS = 4  # turns of each run in an epoch
COLUMNS = (
  "network",
  "test accuracy [%]",
  "95 % interval",
  "time of a step / dense",
  *(f"dense epochs to {100 * goal:g} %" for goal in GOALS),
  "seeds",
)


class Run:
  """A training run.

  Attributes:
    steps: Its step without and with a mask update, by `update_masks`.
    state: (params, opt_state).
    tx: Its sparse transformation; None for dense training.
  """

  def __init__(
    self,
    steps: dict[bool, Callable],
    state: tuple[Any, Any],
    tx: sparsejax.SparseTransformation | None = None,
  ):
    self.steps, self.state, self.tx = steps, state, tx

  def compile(self, x: np.ndarray, y: np.ndarray) -> None:
    """Compiles the steps for batches of the shape of x and y."""
    self.steps = {
      now: step.lower(*self.state, x, y).compile()
      for now, step in self.steps.items()
    }

  def advance(self, first: int, batches: Iterable) -> float:
    """Trains on batches from step `first` on, and returns the seconds."""
    begin = time.perf_counter()
    for step, (x, y) in enumerate(batches, first):
      now = self.tx is not None and bool(self.tx.moves(step))
      self.state = self.steps[now](*self.state, x, y)
    jax.block_until_ready(self.state)
    return time.perf_counter() - begin

  def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
    """Measures the accuracy on a test set."""
    params, state = self.state
    if self.tx is not None:
      params = sparsejax.forward_params(params, state)
    return float(jnp.mean(_predictions(params, x) == y))


class Curve(NamedTuple):
  """Time in dense epochs and test accuracy, each float64[turns]."""

  time: np.ndarray
  accuracy: np.ndarray


@jax.jit
def _predictions(params: Any, x: jax.Array) -> jax.Array:
  return jnp.argmax(packed.logits(params, x), axis=-1)


def make_runs(seed: int, steps: int) -> dict[str, Run]:
  """Makes all runs of a seed, from the same weights, by name."""
  params = packed.perceptron(seed=seed)
  state = params, optax.adam(1e-3).init(params)
  step = jax.jit(packed.dense_step, donate_argnums=(0, 1))
  runs = {"dense": Run({False: step}, state)}
  for zeros in (0.95, 0.98):
    for name, mode in (("masks", lambda tx: tx), ("kernels", modes.kernels)):
      tx = mode(packed.rigl(zeros, seed=1000 + seed, t_end=3 * steps // 4))
      programs, state = packed.trainer(tx, packed.perceptron(seed=seed))
      runs[f"{100 * zeros:g} % zeros, {name}"] = Run(programs, state, tx)
  return runs


def race(seed: int, data: Sequence, epochs: int) -> dict[str, Curve]:
  """Trains all runs of a seed in turns, and returns a curve of each by name."""
  (x, y), test = data
  turn = len(x) // packed.BATCH // TURNS
  order = np.random.default_rng(seed)
  runs = make_runs(seed, epochs * TURNS * turn)
  for run in runs.values():
    run.compile(x[: packed.BATCH], y[: packed.BATCH])
  seconds, accuracy = ({name: [] for name in runs} for _ in range(2))
  for i in range(epochs * TURNS):
    if i % TURNS == 0:
      left = order.permutation(len(x))
    rows, left = np.split(left, [turn * packed.BATCH])
    rows = rows.reshape(turn, packed.BATCH)
    for name, run in runs.items():
      batches = ((x[row], y[row]) for row in rows)
      seconds[name].append(run.advance(i * turn, batches))
      accuracy[name].append(run.accuracy(*test))
  of_dense = np.array(seconds["dense"])
  return {
    name: Curve(
      np.cumsum(np.array(seconds[name]) / of_dense) / TURNS,
      np.array(accuracy[name]),
    )
    for name in runs
  }


def table_rows(
  curves: dict[str, list[Curve]],
) -> Iterator[tuple[str, ...]]:
  """Formats a row for each kind of run, from the curves of all seeds.

  Accuracy is the mean over the last epoch's tests.
  """
  for name, group in curves.items():
    last = [100 * np.mean(curve.accuracy[-TURNS:]) for curve in group]
    share = np.median(
      [np.diff(curve.time, prepend=0) * TURNS for curve in group]
    )
    yield (
      name,
      f"{np.mean(last):.2f}",
      shown(*interval(last)),
      f"{share:.3g}",
      *(_reached(group, goal) for goal in GOALS),
      str(len(group)),
    )


def _reached(group: list[Curve], goal: float) -> str:
  """Formats the mean time to an accuracy, "-" if a run does not reach it."""
  times = [curve.time[curve.accuracy >= goal] for curve in group]
  if not all(map(len, times)):
    return "-"
  return f"{np.mean([t[0] for t in times]):.2f}"


def main(argv: Sequence[str]) -> None:
  """Prints the table, and draws the picture."""
  del argv
  images = sets.fashion_mnist()
  data = [
    (np.asarray(images.prepare(x)).reshape(len(x), -1), y)
    for x, y in (images.train, images.test)
  ]
  curves = {}
  for seed in range(_SEEDS.value):
    for name, curve in race(seed, data, _EPOCHS.value).items():
      curves.setdefault(name, []).append(curve)
  rows = list(table_rows(curves))
  measure.show(
    "time to an accuracy", "benchmarks.accuracy", rows, columns=COLUMNS
  )
  if _PICTURE.value:
    lines = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    pictures.draw_times(lines, pathlib.Path(_PICTURE.value))


if __name__ == "__main__":
  app.run(main)
