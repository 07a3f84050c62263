"""What the trainer's ordinary step takes on a GPU, as it may be launched.

Rows of `python -m benchmarks.gpu --only=trainer`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from experiments.config import grid
from experiments.runs import batches, devices, programs, step, train
from experiments.runs.model import Model

_STEPS = 96  # of a call
# What XLA may put into CUDA graphs, with what it does not by default.
_GRAPHS = (
  *("FUSION", "CUBLAS", "CUBLASLT", "CUDNN", "CUSTOM_CALL"),
  *("CONDITIONAL", "DYNAMIC_SLICE_FUSION", "WHILE", "CONVOLUTION"),
)


def rows(tiny: bool, rounds: int) -> Iterator[measure.Row]:
  """Times ordinary steps of the quickstart's net, one row for each way."""
  config = grid.module("configs/quickstart.py").get_config("").base
  config.algorithm = {"name": "static", "sparsity": 0.9}
  if tiny:
    config.model.channels, config.batch_size = 2, 4
  examples = batches.open_source(config, jax.random.key_data(jax.random.key(0)))
  given = examples.batches(0)
  state = train.first_state(config, programs.get(config))

  def steps(*, products: bool = False) -> Callable[..., Any]:
    model = Model(config, products=products)
    return functools.partial(step.step, model, update_masks=False)

  def one_by_one(program: Callable[..., Any]) -> Callable[..., Any]:
    def many(state: Any, given: Any, until: np.int32) -> Any:
      del until
      for _ in range(_STEPS):
        state = program(state, given)
      return state

    return many

  jit = functools.partial(devices.jit, convolves=True, donate_argnums=0)
  free = functools.partial(jax.jit, donate_argnums=0)
  in_graphs = functools.partial(
    free,
    compiler_options={"xla_gpu_enable_command_buffer": ",".join(_GRAPHS)},
  )
  ways = {
    "32 at a time, as runs do": jit(programs.repeated(steps(), 32)),
    "one dispatch each": one_by_one(jit(steps())),
    "a loop of unknown length": jit(programs.repeated(steps(), 1)),
    "algorithms timed": free(programs.repeated(steps(), 32)),
    "convolutions as products": free(
      programs.repeated(steps(products=True), 32)
    ),
    "all in CUDA graphs": in_graphs(programs.repeated(steps(), 32)),
    "all in CUDA graphs, as products": in_graphs(
      programs.repeated(steps(products=True), 32)
    ),
  }
  usual = None
  for name, many in ways.items():
    try:
      run = _Run(many, jax.tree.map(np.array, state), given)
      (times,) = measure.interleave([run], rounds).T
      seconds = float(np.median(times)) / _STEPS
      usual = usual or seconds
      remark = f"{seconds / usual:.2f} of the first row"
      microseconds = 1e6 * seconds
    except jax.errors.JaxRuntimeError as error:  # a flag of another version
      microseconds, remark = float("nan"), str(error).split("\n")[0][:80]
    yield measure.row(
      f"quickstart's ordinary step, us: {name}", microseconds, memory=remark
    )


class _Run:
  """A run that goes on for a few steps at each call."""

  def __init__(self, many: Callable[..., Any], state: Any, given: Any):
    self.many, self.given, self.until = many, given, 0
    self.state = jax.tree.map(jax.numpy.array, state)

  def __call__(self) -> jax.Array:
    self.until += _STEPS
    self.state = self.many(self.state, self.given, np.int32(self.until))
    return jax.numpy.copy(self.state.step)
