"""What sparse training costs on a GPU, beside what was wanted.

Run `python -m benchmarks.gpu` on a machine with one: at most eight minutes,
into `results/gpu_CARD.csv`. Items come in the order of what they are worth. One
that fails, or takes longer than its share, writes so into its row, and the next
one begins. `--only=wrn,blocks` picks items; `--tiny` runs all of them at sizes
that mean nothing, in a minute or two on a CPU.
"""

import datetime
import functools
import pathlib
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import core, gpu_layers, gpu_trainer, measure, sweep
from experiments import models
from experiments.runs import train
from experiments.sweep import population
from experiments.tables import text
from sparsejax import select

_TINY = flags.DEFINE_bool("tiny", False, "Sizes that show only that it runs.")
_MINUTES = flags.DEFINE_float("minutes", 8.0, "For all items together.")

ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = (
  *("item", *measure.COLUMNS),
  *("seconds", "card", "JAX", "date"),
)


class Late(Exception):
  """An item's time is over."""


class Item(NamedTuple):
  """A part of the benchmark.

  Attributes:
    seconds: Its share of eight minutes; what it leaves, later items have.
    rows: `(tiny, rounds) -> rows`, one after another.
  """

  seconds: float
  rows: Callable[[bool, int], Iterator[measure.Row]]


def selection(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Times the selection of 10 % of one matrix, and of each leaf of a net."""
  matrices = {(4096, 4096): 0.45, (16384, 8192): 2.3}
  for shape, most in ({(64, 64): 9.9} if tiny else matrices).items():
    yield _selection(" x ".join(map(str, shape)), [shape], most, rounds)
  shapes = jax.eval_shape(
    functools.partial(_wrn(tiny).init, train=False),
    jax.random.key(0),
    jnp.zeros((1, 28, 28, 1) if tiny else (1, 32, 32, 3)),
  )["params"]
  kernels = [p.shape for p in jax.tree.leaves(shapes) if p.ndim > 1]
  what = f"{len(kernels)} leaves of WRN-22-2, each by itself"
  yield _selection(what, kernels, 0.5, rounds)


def _selection(what, shapes, most, rounds):
  keys = jax.random.split(jax.random.key(0), len(shapes))
  scores = [jax.random.uniform(k, s) for k, s in zip(keys, shapes, strict=True)]

  @jax.jit
  @select.together
  def masks(scores):
    return [select.top_k_mask(x, x.size // 10) for x in scores]

  for mask, x in zip(masks(scores), scores, strict=True):
    assert int(jnp.sum(mask)) == x.size // 10
    kept, left = np.asarray(x)[mask], np.asarray(x)[~np.asarray(mask)]
    assert kept.min() >= left.max()
  (times,) = measure.interleave([lambda: masks(scores)], rounds).T
  milliseconds = 1e3 * float(np.median(times))
  return measure.row(f"selection, ms: {what}", milliseconds, most=most)


def wrn(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Compares RigL's steps with the dense step of a Wide ResNet."""
  yield from _wrn_rows(tiny, rounds, slice(0, 3))


def every(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Compares methods that choose masks at each step with the dense step."""
  yield from _wrn_rows(tiny, rounds, slice(3, None))


def _wrn_rows(tiny, rounds, which):
  steps = core.sparse_steps(1.05, 1.35, 1.3, inside=1.08)[which]
  shape = (4, 28, 28, 1) if tiny else (128, 32, 32, 3)
  name = "WRN-22-2, float32, batch 128"
  yield from core.train_rows(name, _wrn(tiny), shape, steps, rounds)


def _wrn(tiny):
  return models.create("lenet5" if tiny else "wrn", 10)


def resnet50(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Compares RigL's ordinary step with the dense step of a ResNet-50."""
  small = {"blocks": (1,), "width": 8} if tiny else {}
  model = models.create("resnet50", 1000, dtype="bfloat16", **small)
  yield from core.train_rows(
    "ResNet-50, bfloat16, batch 256",
    model,
    (2, 32, 32, 3) if tiny else (256, 224, 224, 3),
    core.sparse_steps(1.01, 0, 0)[:1],
    rounds,
    classes=1000,
  )


def together(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Compares a population with its runs one by one, all compiled before."""
  planned = sweep.make_configs(20 if tiny else 1000, seeds=1 if tiny else 16)
  ((name, group),) = population.groups(planned).items()
  singles = list(group.items())[:3]

  def members(root: pathlib.Path) -> None:
    failed = population.run(name, group, root)
    assert not failed, failed

  def apart(root: pathlib.Path) -> None:
    for one, config in singles:
      train.train(config, root / one)

  times = np.empty((2 if tiny else 3, 2))
  for r in range(-1, len(times)):  # The first round compiles.
    for i, work in enumerate((members, apart)):
      with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        work(pathlib.Path(folder))
        times[r, i] = time.perf_counter() - begin
  times[:, 1] *= len(group) / len(singles)
  one, all_of_them = (float(np.median(times[:, i])) for i in (1, 0))
  yield measure.row(
    f"{len(group)} runs of 1,000 steps: one by one / as one population",
    measure.ratio(times, 1, 0),
    least=10,
    memory=f"{all_of_them:.2f} s; one by one {one:.1f} s",
  )


def quickstart(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Times the quickstart, in a process of its own, compiling included."""
  del rounds
  seconds = core.quickstart_seconds("smoke" if tiny else "")
  yield measure.row("quickstart, seconds", seconds, most=40)


ITEMS = {
  "selection": Item(30, selection),
  "wrn": Item(90, wrn),
  "blocks": Item(120, gpu_layers.blocks),
  "transformer": Item(40, gpu_layers.transformer),
  "population": Item(40, together),
  "quickstart": Item(45, quickstart),
  "every": Item(65, every),
  "trainer": Item(35, gpu_trainer.rows),
  "resnet50": Item(50, resnet50),
}


def run(
  names: Sequence[str],
  write: Callable[[list[Sequence[str]]], None],
  *,
  minutes: float,
  rounds: int,
  tiny: bool,
) -> list[Sequence[str]]:
  """Runs items, one after another, each until its time is over.

  Args:
    names: Of items.
    write: Called with all lines of the table so far, after each of them.
    minutes: For all items that there are.
    rounds: Of each comparison.
    tiny: Whether to take the smallest sizes.

  Returns:
    The lines: see COLUMNS.
  """
  device, lines = jax.devices()[0], []
  about = (device.device_kind, jax.__version__, str(datetime.date.today()))
  share = minutes * 60 / sum(item.seconds for item in ITEMS.values())
  begin = last = time.perf_counter()
  end = begin

  def add(name: str, row: measure.Row) -> None:
    nonlocal last
    now = time.perf_counter()
    lines.append((name, *row, f"{now - last:.1f}", *about))
    last = now
    write(lines)

  def late(number, frame):
    del number, frame
    raise Late("took longer than its share of the time")

  before = signal.signal(signal.SIGALRM, late)
  for name in names:
    end += ITEMS[name].seconds * share
    try:
      # Not 0, which would be no alarm.
      signal.setitimer(signal.ITIMER_REAL, max(1.0, end - time.perf_counter()))
      for row in ITEMS[name].rows(tiny, rounds):
        add(name, row)
    except Exception as error:
      logging.exception("%s", name)
      why = f"{type(error).__name__}: {error}".split("\n")[0][:200]
      add(name, measure.Row(f"{name}: {why}", "-", "-", "NO", "-"))
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
  signal.signal(signal.SIGALRM, before)
  return lines


def results_file(kind: str) -> pathlib.Path:
  """Names the table of a card, `results/gpu_nvidia_h200.csv` for one."""
  card = re.sub(r"\W+", "_", kind.lower()).strip("_")
  return ROOT / "results" / f"gpu_{card}.csv"


def main(argv: Sequence[str]) -> None:
  """Prints the table, and writes it."""
  del argv
  logging.set_verbosity(logging.WARNING)
  if unknown := set(measure.ONLY.value) - set(ITEMS):
    raise SystemExit(f"no items {sorted(unknown)}; there are {list(ITEMS)}")
  if jax.default_backend() != "gpu" and not _TINY.value:
    raise SystemExit("JAX sees no GPU here; --tiny shows that all items run")
  file = flags.FLAGS.csv and pathlib.Path(flags.FLAGS.csv)
  if not _TINY.value:
    file = file or results_file(jax.devices()[0].device_kind)

  def write(lines: list[Sequence[str]]) -> None:
    if file:
      text.write_csv(file, [COLUMNS, *lines], module="benchmarks.gpu")

  lines = run(
    measure.ONLY.value or list(ITEMS),
    write,
    minutes=_MINUTES.value,
    rounds=1 if _TINY.value else measure.ROUNDS.value,
    tiny=_TINY.value,
  )
  shown = [COLUMNS[:6], *(line[:6] for line in lines)]
  text.print_table("sparsejax on a GPU", shown, rest="the CSV")


if __name__ == "__main__":
  app.run(main)
