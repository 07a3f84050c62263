"""Makes a language model a smaller function, tests it and times it.

The numbers of a sparsity are a file, and so is its function: what is there is
not made again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.config.entry import percent
from experiments.errors import UserError
from experiments.llm.evaluate import tasks
from experiments.llm.families import layers, protocol
from experiments.llm.io import functions
from experiments.llm.io.model import Model
from experiments.llm.prune import functions as pruning
from experiments.llm.prune import pruners
from experiments.runs import progress as progress_lib
from experiments.runs import timing
from experiments.runs import workdir as workdir_lib

DENSE = "dense"


class Line(NamedTuple):
  """What is known of a function, or of the whole model.

  Attributes:
    zeros: The share of heads and hidden units that have left, for people.
    file: The function; None of the whole model.
    params: The number of its parameters.
    flops: Of the products of a batch.
    scores: Those of the task, by name.
  """

  zeros: str
  file: Path | None
  params: int
  flops: int
  scores: dict[str, float]


def inputs_of(
  config: ml_collections.ConfigDict, model: Model, task: tasks.Task
) -> dict[str, np.ndarray]:
  """Makes the inputs whose shapes functions are exported for.

  Args:
    config: As `experiments.drivers.shrink_llm.defaults` makes it.
    model: The model.
    task: Its task.

  Returns:
    `tokens` int32[batch, length], and a source if the model has an encoder.
  """
  n = len(task.examples.tokens)
  chosen = np.arange(config.batch_size) % n
  inputs = {
    name: x[chosen]
    for name, x in task.examples.inputs.items()
    if name != "real" and x is not None
  }
  length = inputs["tokens"].shape[1]
  if protocol.source_kind(model.network()) == protocol.SPECTROGRAMS:
    length = model.config.context  # no two transcripts are of one length
  tokens = np.zeros((config.batch_size, length), np.int32)
  tokens[:, : inputs["tokens"].shape[1]] = inputs["tokens"]
  return {**inputs, "tokens": tokens}


def line(
  config: ml_collections.ConfigDict,
  workdir: Path,
  model: Model,
  task: tasks.Task,
  sparsity: float,
  progress: progress_lib.Track,
) -> Line:
  """Makes the function of a sparsity and tests it, or reads the numbers.

  Args:
    config: As for `inputs_of`.
    workdir: Its directory.
    model: The whole model.
    task: Its task.
    sparsity: The share of heads and of hidden units that leave.
    progress: Where to show progress.

  Returns:
    Its line.
  """
  name = percent(sparsity)
  file = workdir / "functions" / f"{100 * sparsity:g}.safetensors"

  def make() -> dict[str, Any]:
    made = pruning.shrunk(
      model,
      pruners.calibration(task.text, **config.calibration, seed=config.seed),
      inputs_of(config, model, task),
      sparsity,
      score=config.score,
      round_to=config.round_to,
      seed=config.seed,
      advance=progress(name, model.config.layers, 0, "layer"),
    )
    functions.write(file, made.function)
    function = functions.read(file)  # what is judged is what was written
    scores = task.evaluate(function, jax.device_put(function.params))
    return {
      **{"params": made.params, "flops": made.flops, "error": made.error},
      "scores": scores,
    }

  found = workdir_lib.read_or_make(file.with_suffix(".json"), make)
  return Line(name, file, found["params"], found["flops"], found["scores"])


def whole(
  workdir: Path, model: Model, task: tasks.Task, inputs: dict[str, np.ndarray]
) -> Line:
  """Tests the whole model, or reads the numbers; arguments as for `line`."""

  def make() -> dict[str, Any]:
    scores = task.evaluate(model.network(), jax.device_put(model.params))
    return {"flops": pruning.flops(model, inputs), "scores": scores}

  found = workdir_lib.read_or_make(workdir / "dense.json", make)
  params = sum(np.size(x) for x in jax.tree.leaves(model.params))
  return Line("0 %", None, params, found["flops"], found["scores"])


def speeds(
  workdir: Path,
  model: Model,
  lines: list[Line],
  inputs: dict[str, np.ndarray],
  *,
  rounds: int,
) -> dict[str, float]:
  """Times a batch by each function in turns with the whole model.

  Args:
    workdir: Where the numbers are, or go.
    model: The whole model.
    lines: Of the functions.
    inputs: The batch.
    rounds: How often.

  Returns:
    How many times as fast as the whole model they are, by `zeros`.
  """

  def calling(one: Any) -> Callable[[], jax.Array]:
    network = one.network()
    run = jax.jit(lambda params, x: network.apply({"params": params}, **x))
    # A function has its layers apart, and a loop over layers is slower.
    params = layers.all_apart(jax.tree.map(jnp.asarray, one.params))
    batch = {name: jnp.asarray(x) for name, x in inputs.items()}
    return lambda: run(params, batch)

  def make() -> dict[str, float]:
    read = {each.zeros: functions.read(each.file) for each in lines}
    calls = {DENSE: calling(model)}
    calls |= {name: calling(function) for name, function in read.items()}
    return timing.ratios(timing.in_turns(calls, rounds=rounds), DENSE)

  names = "-".join(each.file.stem for each in lines)
  return workdir_lib.read_or_make(workdir / f"speed-{names}.json", make)


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises a UserError if there is nothing to do."""
  if not config.sparsities:
    raise UserError("config.sparsities is empty; nothing to shrink")
