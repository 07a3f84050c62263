"""What a sweep saves: populations, and what a run costs beyond its training.

Run `python -m benchmarks.sweep`. The net is that of MNIST-1D's paper, trained
as in configs/rigl_mnist1d.py but for fewer steps. A population and its runs one
after another begin with empty caches in each round, in one process.
"""

import json
import pathlib
import statistics
import tempfile
import time

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging

from benchmarks import measure
from experiments.config import grid
from experiments.runs import model, programs, train
from experiments.sweep import launchers, population, workers

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "rigl_mnist1d.py"
SEEDS, SPARSITIES = 16, (0.8, 0.9, 0.95)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of each run.")


def configs(steps, seeds=SEEDS):
  """The runs of a population, by name."""
  base = grid.module(str(CONFIG)).get_config("")
  made = [
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
  return {grid.name_of(one): one for one in made}


def population_rows(rounds):
  """One population against its members one after another, and its compiles."""
  planned = configs(_STEPS.value)
  ((name, group),) = population.groups(planned).items()
  assert len(group) == SEEDS * len(SPARSITIES)
  compiled = []

  def note(key, seconds, **about):
    del seconds
    if key.endswith("backend_compile_duration"):
      compiled.append(about.get("fun_name"))

  jax.monitoring.register_event_duration_secs_listener(note)

  def together(root):
    population.run(name, group, root)

  def apart(root):
    for one, config in group.items():
      train.train(config, root / one)

  times = np.empty((rounds, 2))
  for r in range(rounds):
    for i, work in enumerate((together, apart)):
      programs._get.cache_clear()
      model._drawing.cache_clear()
      population._compiled.cache_clear()
      jax.clear_caches()
      compiled.clear()
      with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        work(pathlib.Path(folder))
        times[r, i] = time.perf_counter() - begin
      if not i:
        steps = compiled.count("jit(stretch)")
  jax.monitoring.unregister_event_duration_listener(note)
  gain = measure.ratio(times, 1, 0)
  what = f"{len(group)} runs of {_STEPS.value} steps"
  return [
    measure.row(
      f"{what}: one after another / population", gain, ">= 1.8", gain >= 1.8
    ),
    measure.row(
      "programs compiled for all steps of the population (masks stay, or move)",
      steps,
      "2",
      steps == 2,
    ),
  ]


def overhead_row(runs=6):
  """Seconds of a sweep's run that are not its steps, once it is compiled."""
  taken = {}
  for steps in (_STEPS.value // 2, _STEPS.value):
    planned = list(configs(steps, seeds=runs).items())[:: len(SPARSITIES)]
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
    taken[steps] = statistics.median(seconds[1:])
  half, whole = taken.values()
  beyond = 2 * half - whole
  return measure.row(
    "seconds of a sweep's run beyond its steps", beyond, "<= 3", beyond <= 3
  )


class _Work:
  """Does a run in a worker, as the local launcher does."""

  def __init__(self, root):
    self.root = root

  def __call__(self, name):
    root = pathlib.Path(self.root)
    told = json.loads((root / "configs.json").read_text())[name]
    train.train(ml_collections.ConfigDict(told), root / name)


def main(argv):
  """Prints the table."""
  del argv
  logging.set_verbosity(logging.WARNING)
  jax.config.update("jax_num_cpu_devices", launchers.cores())
  rounds = max(3, measure.ROUNDS.value // 5)
  rows = [*population_rows(rounds), overhead_row()]
  measure.show("Sweeps", "benchmarks.sweep", rows)


if __name__ == "__main__":
  app.run(main)
