"""Fine-tunes a language model: prune, train, test, save.

The same command again goes on where the run was stopped, and ends in the same
bits. What is compiled is in finetune_programs.py.
"""

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
from experiments.data import order
from experiments.errors import UserError, unknown
from experiments.llm.evaluate import tasks
from experiments.llm.io import huggingface, load
from experiments.llm.io.model import Model
from experiments.llm.prune import kernels, pruners
from experiments.llm.text.examples import Examples
from experiments.runs import checkpoints, loop, metrics, recorder
from experiments.runs import finetune_programs as programs
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.finetune_programs import NONE, State
from experiments.tables import llm


class Result(NamedTuple):
  """What a finished run leaves.

  Attributes:
    metrics: The numbers of the finished model.
    history: All records of metrics.jsonl, in order.
  """

  metrics: dict[str, Any]
  history: list[dict[str, Any]]


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of a run, to be filled in by a config file.

  Returns:
    The config: `model`, a name of `load.MODELS` and keywords; `prune`, how
    to prune it first, as for `pruners.prune`, or "none"; `method`, a name of
    METHODS and keywords, where `rank` says that as many weights are trained as
    by LoRA of that rank; `loss`, the weights of LOSSES and a `temperature`;
    `teacher`, a model as `model`, or "none"; `prune_again`, how to prune the
    merged model at last, or "none"; `n_of_m`, the (n, m) that the zeros of the
    base must have and keep; `save`, whether to write the finished model to the
    folder `model`; `eval_every`, 0 to test at the end only; and the rest as for
    a run of train.py.
  """
  config = ml_collections.ConfigDict()
  config.driver = "finetune"
  config.name = "finetune"
  config.seed = 0
  config.steps = 100
  config.batch_size = 8
  config.model = {"name": "smollm2"}
  config.task = {"name": "text"}
  config.prune = {"name": NONE}
  config.n_of_m = ()
  config.method = {"name": "full"}
  config.optimizer = {"name": "adamw", "weight_decay": 0.0}
  config.schedule = {"name": "linear", "learning_rate": 1e-4}
  config.loss = ml_collections.ConfigDict({"cross_entropy": 1.0})
  config.teacher = {"name": NONE}
  config.prune_again = {"name": NONE}
  config.remat = "none"
  config.dtype = "float32"
  config.log_every = 10
  config.eval_every = 50
  config.checkpoint_every = 50
  config.checkpoints_to_keep = 1
  config.tensorboard = True
  config.save = True
  return config.lock()


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Fine-tunes with a progress bar and says how it ended: main.py's driver."""
  done = workdir_lib.finished(workdir)
  with progress_lib.bar() as progress:
    final, history = train(config, workdir, progress=progress)
  measure = next(name for name in tasks.MEASURES if name in final)
  llm.write_run_report(Path(workdir), config.name, history, measure)
  print(
    f"{config.name} in {workdir} {'was already' if done else 'is'} finished: "
    f"{measure} {final[measure]:.4g}, {final['nnz']:,} of {final['size']:,} "
    "weights in the layers' kernels are not 0."
  )
  print(f"The report is {Path(workdir) / 'report.md'}")
  if config.save:
    print(f"The model is {Path(workdir) / 'model'}")


def check(config: ml_collections.ConfigDict) -> None:
  """Checks a config before any work.

  Raises:
    UserError: If a key is unknown, missing, or of the wrong type or size, or a
      name or a keyword of one of its functions is wrong.
  """
  zero = ("seed", "checkpoint_every", "eval_every")
  check_lib.keys(
    config,
    defaults(),
    may_be_zero=zero,
    where="experiments/drivers/finetune.py",
  )
  if programs.needs_teacher(config.loss) and config.teacher.name == NONE:
    losses = programs.weights_of(config.loss)
    raise UserError(
      f"config.loss asks for {', '.join(losses)}, but config.teacher is "
      f"{NONE!r}; wanted a model to learn from"
    )
  for part in ("prune", "prune_again"):
    if config[part].name not in (NONE, *pruners.METHODS):
      raise unknown("one-shot method", config[part].name, pruners.METHODS)
  if config.n_of_m and programs.moves_zeros(config):
    raise UserError(
      f"config.n_of_m is {tuple(config.n_of_m)}, but {config.method.name} "
      "revives zeros, which breaks the pattern; set config.method.revive to "
      "False"
    )
  programs.transformation(config, jax.random.key(0))


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  *,
  progress: progress_lib.Track | None = None,
) -> Result:
  """Fine-tunes, goes on, or reads what a finished run has left.

  Args:
    config: As `defaults` makes it.
    workdir: The run's own directory.
    progress: Where to show progress, as `progress.bar` yields it.

  Returns:
    The result.

  Raises:
    UserError: If something is wrong that the user can mend: the config, the
      directory, the disk, the model, the data, a loss that is not finite; and
      if the run was asked to stop, once it has saved.
  """
  check(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.admit(path, calling.plain(config))
    final = workdir_lib.finished(path)
    if final is None:
      final = _finished(config, path, progress or progress_lib.untracked)
      workdir_lib.finish(path, config.steps, final)
    # What is left to a finished run is its model.
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return Result(final, metrics.read(path))


def _finished(
  config: ml_collections.ConfigDict, path: Path, progress: progress_lib.Track
) -> dict[str, Any]:
  """Trains to the end, writes the model, and returns its numbers."""
  model = calling.call("model", load.MODELS, config.model)
  task = tasks.make(model, config.task)
  model = _pruned(config, path, model, task, progress)
  if config.n_of_m:
    _check_groups(model.params, *config.n_of_m)
  teacher = _teacher(config, model)
  state = programs.begin(config, model.params)
  most = kernels.nonzeros(model.params) if programs.keeps_zeros(config) else {}
  trained = sum(x.size for x in jax.tree.leaves(state.values))
  program = programs.get(config, model.config)
  model = model._replace(params=None)  # to be freed
  evaluate = functools.partial(_tested, model, task, most, trained)
  state = _trained(
    config, path, program, state, task.examples, teacher, evaluate, progress
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
  program: programs.Program,
  state: State,
  rows: Examples,
  teacher: Any,
  evaluate: Callable[[Any], dict[str, Any]],
  progress: progress_lib.Track,
) -> State:
  """The state after the last step, from the first or from a checkpoint."""
  with (
    checkpoints.open_manager(
      path / "checkpoints", keep=config.checkpoints_to_keep
    ) as manager,
    recorder.diverging(path, manager),
  ):
    first, saved = checkpoints.restore(manager, state) or (-1, None)
    fresh = saved is None
    if not fresh:
      state = jax.tree.map(jnp.array, saved)
      del saved
    step = int(state.step)
    advance = progress(config.name, config.steps, step)
    with metrics.writer(
      path, after=first, tensorboard=config.tensorboard
    ) as write:
      batches = _batches(config, rows, step)
      work = _work(
        config,
        path,
        manager,
        program,
        batches,
        teacher,
        evaluate,
        write,
        advance,
      )
      state, _ = loop.run(config, work, state, step, path=path, fresh=fresh)
  return state


def _work(
  config: ml_collections.ConfigDict,
  path: Path,
  manager: Any,
  program: programs.Program,
  batches: Iterator[Examples],
  teacher: Any,
  evaluate: Callable[[Any], dict[str, Any]],
  write: metrics.Write,
  advance: progress_lib.Advance,
) -> loop.Work:
  """What the loop does for fine-tuning, a step at a time."""
  note = ""

  def stretch(state: State, step: int, stop: int) -> State:
    del stop  # the next step: `block` is 1
    return program.step(state, next(batches), teacher, program.moves(step))

  def log(state: State, step: int) -> State:
    nonlocal note
    means = _means(state)
    write(step, "train", means)
    note = f"loss {means['loss']:.3f}"
    return state._replace(sums=programs.no_sums(config))

  def test(state: State, step: int) -> State:
    # The last model is tested when it is finished, maybe pruned again.
    if config.eval_every and step < config.steps:
      write(step, "test", evaluate(program.merged(state.values, state.tuned)))
    return state

  def publish(step: int) -> None:
    advance(step, note)

  def save(state: State, step: int) -> None:
    if step < config.steps:  # the model is what is left of a finished run
      _means(state)
      metrics.sync(path)
      checkpoints.save(manager, step, checkpoints.snapshot(state))

  return loop.Work(
    block=1,
    moves=lambda step: False,
    stretch=stretch,
    log=log,
    evaluate=test,
    publish=publish,
    save=save,
    settle=functools.partial(checkpoints.settle, manager),
  )


def _tested(
  model: Model,
  task: tasks.Task,
  most: Mapping[str, np.ndarray],
  trained: int,
  params: Any,
) -> dict[str, Any]:
  """The numbers of a model, which has no more non-zeros than it may have."""
  if most:
    _check_budget(most, kernels.nonzeros(params))
  scores = tasks.evaluate(model._replace(params=params), task)
  return {**scores, "trained": trained}


def _pruned(config, path: Path, model: Model, task, progress) -> Model:
  """The model to begin with: pruned if that is asked for, once."""
  if config.prune.name == NONE:
    return model
  folder = path / "pruned"
  if not (folder / "config.json").exists():  # which is written last
    model = _prune(config.prune, model, task, config.name, progress)
    huggingface.write_model(folder, model)
  return huggingface.read_model(folder)


def _prune(options: Mapping[str, Any], model, task, name, progress) -> Model:
  advance = progress(f"{name}: pruning", model.config.layers, 0)
  return pruners.prune(model, task.text, options, advance=advance)


def _teacher(config, model: Model):
  """The teacher's parameters on the device; None if there is no use for one."""
  if not programs.needs_teacher(config.loss):
    return None
  teacher = calling.call("model", load.MODELS, config.teacher)
  if teacher.config != model.config:
    raise UserError(
      f"the teacher is {teacher.config}, but the student is {model.config}; "
      "wanted a teacher of the student's architecture"
    )
  return jax.device_put(teacher.params)


def _batches(config, rows: Examples, first: int):
  """The batch of every step from `first` on."""
  keys = parts.streams(config.seed)
  key = parts.wrap(keys["data"])
  for step in range(first, config.steps):
    (chosen,) = order.batch_indices(
      key,
      n=len(rows.tokens),
      batch_size=config.batch_size,
      start=step,
      steps=1,
    )
    chosen = np.asarray(chosen)
    yield Examples(*(part[chosen] for part in rows))


def _means(state: State) -> dict[str, float]:
  """The mean losses since the last log point, if all were finite."""
  sums = jax.device_get(state.sums)
  recorder.check_loss(sums)
  steps = np.float32(max(sums.steps, 1))
  return {name: total / steps for name, total in sums.losses.items()}


def _check_budget(most, counts) -> None:
  """Refuses more non-zeros in a matrix than it began with."""
  for path, allowed in most.items():
    if (counts[path] > allowed).any():
      layer = int(np.argmax(counts[path] - allowed))
      raise AssertionError(
        f"{path}, layer {layer}: got {counts[path][layer]} non-zeros, wanted "
        f"at most {allowed[layer]}: the zeros got lost"
      )


def _check_groups(params, n: int, m: int) -> None:
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
