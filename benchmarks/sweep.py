"""What populations save in a sweep, and what its runs cost beyond training.

Run `python -m benchmarks.sweep`. The net of MNIST-1D's paper is trained as in
configs/rigl_mnist1d.py, for fewer steps. In each round a population, and then
its runs one after another, begin with empty caches, in one process.
"""

import functools
import gc
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging

from benchmarks import measure
from experiments.config import grid
from experiments.runs import train
from experiments.sweep import launchers, population, workers

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "rigl_mnist1d.py"
SEEDS, SPARSITIES = 16, (0.8, 0.9, 0.95)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of each run.")


def make_configs(
  steps: int, seeds: int = SEEDS
) -> dict[str, ml_collections.ConfigDict]:
  """Makes the configs of a population's runs, by name."""
  base = grid.module(str(CONFIG)).get_config("")
  configs = [
    grid.changed(
      base,
      {
        **{"seed": seed, "steps": steps, "algorithm.sparsity": sparsity},
        **{"algorithm.t_end": steps * 3 // 4, "model.channels": 25},
        **{"tensorboard": False, "checkpoint_every": steps},
      },
    )
    for seed in range(seeds)
    for sparsity in SPARSITIES
  ]
  return {grid.name_of(one): one for one in configs}


def population_rows(rounds: int) -> list[measure.Row]:
  """Compares a population with its runs one after another."""
  planned = make_configs(_STEPS.value)
  ((name, group),) = population.groups(planned).items()
  assert len(group) == SEEDS * len(SPARSITIES)
  compiled = []

  def record(key: str, seconds: float, **about) -> None:
    del seconds
    if key.endswith("backend_compile_duration"):
      compiled.append(about.get("fun_name"))

  jax.monitoring.register_event_duration_secs_listener(record)

  def together(root: pathlib.Path) -> None:
    population.run(name, group, root)

  def apart(root: pathlib.Path) -> None:
    for one, config in group.items():
      train.train(config, root / one)

  times = np.empty((rounds, 2))
  for r in range(rounds):
    for i, work in enumerate((together, apart)):
      clear_programs()
      compiled.clear()
      with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        work(pathlib.Path(folder))
        times[r, i] = time.perf_counter() - begin
      if not i:
        steps = compiled.count("jit(stretch)")
  jax.monitoring.unregister_event_duration_listener(record)
  what = f"{len(group)} runs of {_STEPS.value} steps"
  return [
    measure.row(
      f"{what}: one after another / population",
      measure.ratio(times, 1, 0),
      least=1.8,
    ),
    measure.row(
      "programs compiled for all steps of the population (masks stay, or move)",
      steps,
      goal=("2", steps == 2),
    ),
  ]


def clear_programs() -> None:
  """Forgets all programs, so that a round compiles its own."""
  for cached in gc.get_objects():
    if isinstance(cached, functools._lru_cache_wrapper) and (
      cached.__module__.startswith(("experiments.runs", "experiments.sweep"))
    ):
      cached.cache_clear()
  jax.clear_caches()


def overhead_row(runs: int = 6) -> measure.Row:
  """Measures the seconds of a run that are not its steps, after compilation.

  Runs of n and of n / 2 steps take a + n b and a + n b / 2 seconds, so that
  twice the second less the first is a.
  """
  seconds_of = {}
  for steps in (_STEPS.value // 2, _STEPS.value):
    planned = list(make_configs(steps, seeds=runs).items())[:: len(SPARSITIES)]
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      (root / "configs.json").write_text(
        json.dumps({n: one.to_dict() for n, one in planned})
      )
      pieces = {n: launchers.log(root, n) for n, _ in planned}
      seconds = [
        event.seconds
        for event in workers.run(_Work(str(root)), pieces, jobs=1)
        if event is not None and event.what == "finished"
      ]
    assert len(seconds) == runs
    seconds_of[steps] = statistics.median(seconds[1:])  # the first compiles
  half, whole = seconds_of.values()
  return measure.row(
    "seconds of a sweep's run beyond its steps", 2 * half - whole, most=3
  )


class _Work:
  """Trains a run in a worker process, as the local launcher does."""

  def __init__(self, root: str):
    self.root = root

  def __call__(self, name: str) -> None:
    root = pathlib.Path(self.root)
    config = json.loads((root / "configs.json").read_text())[name]
    train.train(ml_collections.ConfigDict(config), root / name)


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  jax.config.update("jax_num_cpu_devices", launchers.cores())
  rounds = max(3, measure.ROUNDS.value // 5)
  rows = [*population_rows(rounds), overhead_row()]
  measure.show("Sweeps", "benchmarks.sweep", rows)


if __name__ == "__main__":
  app.run(main)
