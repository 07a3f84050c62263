"""Fine-tunes a language model: prune, train, test, save.

The same command again goes on where the run was stopped, and ends in the same
bits. What is compiled is in finetune_step.py.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.config import calling, parts
from experiments.config import check as check_lib
from experiments.config.defaults import fine_tuning_run
from experiments.data import order
from experiments.errors import UserError, check_known, unknown
from experiments.llm.evaluate import tasks
from experiments.llm.families.protocol import Config
from experiments.llm.io import huggingface, load
from experiments.llm.io.model import Model
from experiments.llm.prune import kernels, pruners, structured
from experiments.llm.text.examples import Examples
from experiments.runs import (
  checkpoints,
  devices,
  finetune_step,
  loop,
  metrics,
  recorder,
  signals,
)
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.batches import check_size
from experiments.runs.finetune_step import NONE, State
from sparsejax.keys import wrapped


class Result(NamedTuple):
  """What a finished run leaves.

  Attributes:
    metrics: The numbers of the finished model.
    history: All records of metrics.jsonl, in order.
  """

  metrics: dict[str, Any]
  history: list[dict[str, Any]]


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks a config before any work.

  Raises:
    UserError: If a key is unknown, missing, or of the wrong type or size, or a
      name or a keyword of one of its functions is wrong.
  """
  zero = ("seed", "checkpoint_every", "eval_every")
  check_lib.keys(
    config,
    fine_tuning_run(),
    may_be_zero=zero,
    where="experiments/config/defaults.py",
  )
  if finetune_step.needs_teacher(config.loss) and config.teacher.name == NONE:
    losses = finetune_step.weights_of(config.loss)
    raise UserError(
      f"config.loss asks for {', '.join(losses)}, but config.teacher is "
      f"{NONE!r}; wanted a model to learn from"
    )
  check_known("dtype", config.dtype, huggingface.DTYPES)
  check_known("int8", config.int8, finetune_step.INT8)
  for part in ("prune", "prune_again"):
    if config[part].name not in (NONE, *pruners.METHODS):
      raise unknown("one-shot method", config[part].name, pruners.METHODS)
  if len(config.n_of_m) not in (0, 2):
    raise UserError(
      f"config.n_of_m is {tuple(config.n_of_m)}; wanted (n, m), or nothing"
    )
  if config.n_of_m and finetune_step.moves_zeros(config):
    raise UserError(
      f"config.n_of_m is {tuple(config.n_of_m)}, but {config.method.name} "
      "revives zeros, which breaks the pattern; set config.method.revive to "
      "False"
    )
  finetune_step.transformation(config, jax.random.key(0))


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  *,
  progress: progress_lib.Track | None = None,
) -> Result:
  """Fine-tunes, goes on, or reads what a finished run has left.

  Args:
    config: As `defaults.fine_tuning_run` makes it.
    workdir: The run's own directory.
    progress: Where to show progress, as `progress.bar` yields it.

  Returns:
    The result.

  Raises:
    UserError: If something is wrong that the user can mend: the config, the
      directory, the disk, the model, the data, a loss that is not finite; and
      if the run was asked to stop, once it has saved.
  """
  check_config(config)
  devices.keep_programs()
  with workdir_lib.locked(workdir) as path, signals.obeyed(path):
    workdir_lib.ensure_config(path, calling.plain(config), free=("devices",))
    final = workdir_lib.finished(path)
    if final is None:
      with devices.mesh(config, "batch_size"):
        final = _final_numbers(config, path, progress or progress_lib.untracked)
      workdir_lib.finish(path, config.steps, final)
    # What is left to a finished run is its model.
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return Result(final, metrics.read(path))


def _final_numbers(
  config: ml_collections.ConfigDict, path: Path, progress: progress_lib.Track
) -> dict[str, Any]:
  """Trains to the end, writes the model, and returns its numbers."""
  model = calling.call("model", load.MODELS, config.model)
  task = tasks.make(model, config.task)
  check_size(config.batch_size, len(task.examples.tokens), "the task")
  model = _pruned(config, path, model, task, progress)
  if config.n_of_m:
    _check_groups(model.params, *config.n_of_m)
  guide, teacher = _teacher(config, model)
  state = finetune_step.begin(config, model.params)
  budget = {}
  if finetune_step.keeps_zeros(config):
    budget = kernels.nonzeros(model.params)
  trained = sum(x.size for x in jax.tree.leaves(state.values))
  program = finetune_step.get(config, model.config, guide)
  model = model._replace(params=None)  # to be freed

  def evaluate(params: Any) -> dict[str, Any]:
    if budget:
      _check_budget(budget, kernels.nonzeros(params))
    scores = tasks.evaluate(model._replace(params=params), task)
    return {**scores, "trained": trained}

  state = _trained(
    config, path, state, task.examples, program, teacher, evaluate, progress
  )
  params = program.merged(state.values, state.tuned)
  del state
  final = evaluate(params)
  model = model._replace(params=jax.tree.map(np.asarray, params))
  with metrics.writer(
    path, after=config.steps, tensorboard=config.tensorboard
  ) as write:
    if config.prune_again.name != NONE:
      write(config.steps, "merged", final)
      model = _prune(config.prune_again, model, task, config.name, progress)
      final = evaluate(jax.device_put(model.params))
    write(config.steps, "test", final)
  metrics.sync(path)
  if config.save:
    huggingface.write_model(path / "model", model)
  return final


def _trained(
  config: ml_collections.ConfigDict,
  path: Path,
  state: State,
  examples: Examples,
  program: finetune_step.Program,
  teacher: Any,
  evaluate: Callable[[Any], dict[str, Any]],
  progress: progress_lib.Track,
) -> State:
  """Trains to the last step, from the first or from a checkpoint.

  Args:
    config: The run's.
    path: Its directory.
    state: The state before the first step.
    examples: The training data.
    program: The run's compiled functions.
    teacher: The teacher's parameters, or None.
    evaluate: `params -> numbers` of a model.
    progress: Where to show progress.

  Returns:
    The last state.
  """
  with contextlib.ExitStack() as stack:
    manager = checkpoints.open_manager(
      path / "checkpoints", keep=config.checkpoints_to_keep
    )
    stack.enter_context(manager)
    stack.enter_context(recorder.diverging(path, manager))
    first, saved = checkpoints.restore(manager, state) or (-1, None)
    fresh = saved is None
    if not fresh:
      state = jax.tree.map(lambda x: devices.spread(jnp.array(x)), saved)
      del saved
    write = stack.enter_context(
      metrics.writer(path, after=first, tensorboard=config.tensorboard)
    )
    step, note = int(state.step), ""
    batches = _batches(config, examples, step)
    advance = progress(config.name, config.steps, step)

    def stretch(state: State, step: int, stop: int) -> State:
      del stop  # the next step: `block` is 1
      return program.step(state, next(batches), teacher, program.moves(step))

    def log(state: State, step: int) -> State:
      nonlocal note
      means = _means(state)
      write(step, "train", means)
      note = f"loss {means['loss']:.3f}"
      return state._replace(sums=finetune_step.no_sums(config))

    def test(state: State, step: int) -> State:
      # The last model is tested when it is finished, maybe pruned again.
      if config.eval_every and step < config.steps:
        params = program.merged(state.values, state.tuned)
        write(step, "test", evaluate(params))
      return state

    def save(state: State, step: int) -> None:
      if step < config.steps:  # a finished run leaves its model only
        _means(state)
        host = checkpoints.snapshot(state)
        checkpoints.save(manager, step, host, [path])

    work = loop.Work(
      block=1,
      moves=lambda step: False,
      stretch=stretch,
      log=log,
      evaluate=test,
      publish=lambda step: advance(step, note),
      save=save,
      wait=functools.partial(checkpoints.wait, manager),
    )
    state, _ = loop.run(config, work, state, step, path=path, fresh=fresh)
  return state


def _pruned(
  config: ml_collections.ConfigDict,
  path: Path,
  model: Model,
  task: tasks.Task,
  progress: progress_lib.Track,
) -> Model:
  """Prunes the model if the config asks for it, or reads what was pruned."""
  if config.prune.name == NONE:
    return model
  folder = path / "pruned"
  if not (folder / "config.json").exists():  # which is written last
    model = _prune(config.prune, model, task, config.name, progress)
    huggingface.write_model(folder, model)
  return huggingface.read_model(folder)


def _prune(
  options: Mapping[str, Any],
  model: Model,
  task: tasks.Task,
  name: str,
  progress: progress_lib.Track,
) -> Model:
  advance = progress(f"{name}: pruning", model.config.layers, 0, "layer")
  return pruners.prune(model, task.text, options, advance=advance)


def _teacher(
  config: ml_collections.ConfigDict, model: Model
) -> tuple[Config | None, Any]:
  """Returns the teacher's config, and its parameters on the device.

  None of both if no loss needs a teacher.
  """
  if not finetune_step.needs_teacher(config.loss):
    return None, None
  teacher = calling.call("model", load.MODELS, config.teacher)
  if not structured.is_narrower(model, teacher):
    raise UserError(
      f"the teacher is {teacher.config}, but the student is {model.config}; "
      "wanted a teacher of the student's architecture, with as many heads and "
      "hidden units or more"
    )
  return teacher.config, jax.tree.map(
    lambda x: devices.spread(jax.device_put(x)), teacher.params
  )


def _batches(
  config: ml_collections.ConfigDict, examples: Examples, first: int
) -> Iterator[Examples]:
  """Draws the batch of every step from `first` on."""
  key = wrapped(parts.streams(config.seed)["data"])
  for step in range(first, config.steps):
    (chosen,) = order.batch_indices(
      key,
      n=len(examples.tokens),
      batch_size=config.batch_size,
      start=step,
      steps=1,
    )
    chosen = np.asarray(chosen)
    yield jax.tree.map(lambda part: part[chosen], examples)  # noqa: B023


def _means(state: State) -> dict[str, float]:
  """Averages the losses since the last log point, if all were finite."""
  sums = jax.device_get(state.sums)
  recorder.check_loss(sums)
  steps = np.float32(max(sums.steps, 1))
  return {name: total / steps for name, total in sums.losses.items()}


def _check_budget(
  budget: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]
) -> None:
  """Refuses more non-zeros in a matrix than it began with.

  Args:
    budget: int[layers] non-zeros allowed, by path.
    counts: int[layers] non-zeros, by path.

  Raises:
    ZerosLost: If a layer has more.
  """
  for path, allowed in budget.items():
    if (counts[path] > allowed).any():
      layer = int(np.argmax(counts[path] - allowed))
      raise recorder.ZerosLost(
        f"{path}, layer {layer}: got {counts[path][layer]} non-zeros, wanted "
        f"at most {allowed[layer]}: the zeros got lost"
      )


def _check_groups(params: Any, n: int, m: int) -> None:
  """Refuses a base whose groups of m inputs have more than n non-zeros."""
  for path, leaf in kernels.by_path(params).items():
    layers, inputs, outputs = leaf.shape
    if inputs % m:
      raise UserError(
        f"{path}: got {inputs} inputs, wanted a multiple of m={m}, as "
        "config.n_of_m has it"
      )
    groups = (leaf != 0).reshape(layers, inputs // m, m, outputs).sum(2)
    if (groups > n).any():
      layer, group, output = map(int, np.argwhere(groups > n)[0])
      raise UserError(
        f"{path}, layer {layer}: got {groups.max()} non-zeros among inputs "
        f"{group * m} to {group * m + m - 1} of output {output}, and "
        f"{(groups > n).sum()} such groups, wanted at most {n} of {m}: prune "
        f"to {n}:{m} first, or leave config.n_of_m empty"
      )
