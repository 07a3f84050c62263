"""Trains one sparse network, from a config to a finished directory.

The same command again goes on where the run was stopped, and ends in the same
bits. What is compiled is in programs.py, what a config means in build.py.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import sparsejax
from experiments.config import calling, check, parts
from experiments.errors import UserError
from experiments.runs import batches as source
from experiments.runs import checkpoints, metrics, programs, signals
from experiments.runs import devices as sharing
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.recorder import (
  Diverged,
  Recorder,
  check_state,
  diverged,
)

if TYPE_CHECKING:
  import orbax.checkpoint as ocp


class Result(NamedTuple):
  """What a finished run leaves.

  Attributes:
    metrics: The numbers of the last evaluation.
    history: All records of metrics.jsonl, in order.
    params: The final parameters, as the model sees them: NumPy arrays.
    batch_stats: BatchNorm's running averages; empty without.
    masks: The final masks.
  """

  metrics: dict[str, Any]
  history: list[dict[str, Any]]
  params: Any
  batch_stats: Any
  masks: Any


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  *,
  progress: progress_lib.Track | None = None,
  start: Callable[[programs.Programs], programs.State] | None = None,
) -> Result:
  """Trains, goes on training, or reads what a finished run has left.

  Args:
    config: As `config.defaults.training_run` makes it.
    workdir: The run's own directory.
    progress: Where to show progress, as `progress.bar` yields it.
    start: Makes the state to start from, of the config's programs, when there
      is no checkpoint; the config's seed and `initial` make it otherwise.

  Returns:
    The result, the same for all three.

  Raises:
    UserError: If something is wrong that the user can mend: the config, the
      directory, the disk, a loss that is not finite; and if the run was asked
      to stop, once it has saved.
  """
  check.training_run(config)
  program = programs.get(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.admit(path, calling.plain(config), free=("mode", "devices"))
    with _opened(config, path) as manager:
      state = _finished_state(
        config,
        program,
        path,
        manager,
        progress or progress_lib.untracked,
        start or functools.partial(first_state, config),
      )
    history = metrics.read(path)
    masks = jax.tree.map(np.asarray, sparsejax.get_masks(state.opt_state))
    final = metrics.last_test(history)
    if workdir_lib.finished(path) != final:
      workdir_lib.finish(path, config.steps, final)
  seen = sparsejax.forward_params(state.params, state.opt_state)
  params = jax.tree.map(np.asarray, seen)
  return Result(final, history, params, state.batch_stats, masks)


def state_at(
  config: ml_collections.ConfigDict, workdir: str | os.PathLike, step: int
) -> programs.State:
  """Reads the state that a run had at one of its `keep_steps`.

  Args:
    config: The run's.
    workdir: Its directory.
    step: The step.

  Returns:
    The state, NumPy arrays.

  Raises:
    UserError: If there is no such checkpoint, or it is damaged.
  """
  with _opened(config, Path(workdir).absolute()) as manager:
    shapes = like(config, programs.get(config))
    return checkpoints.restore_step(manager, step, shapes)


def _opened(config, path):
  return contextlib.closing(
    checkpoints.open_manager(
      path / "checkpoints",
      keep=config.checkpoints_to_keep,
      keep_steps=config.keep_steps,
    )
  )


def like(
  config: ml_collections.ConfigDict, program: programs.Programs
) -> programs.State:
  """The shapes and dtypes of a run's state."""
  try:
    return jax.eval_shape(
      lambda keys: program.begin(keys, program.draw(keys)),
      parts.streams(config.seed),
    )
  except ValueError as error:  # What fits no leaf of this model shows here.
    raise UserError(
      f"algorithm {config.algorithm.name} on {config.model.name}: {error}"
    ) from error


def first_state(
  config: ml_collections.ConfigDict, program: programs.Programs
) -> programs.State:
  """Draws params and masks from the seed, as the config says."""
  keys = parts.streams(config.seed)
  variables = program.draw(keys)
  if config.initial.name == parts.DRAWN:
    return program.begin(keys, variables)
  batches = source.of(config, keys["data"]).batches(0)
  masks = program.initial(keys, variables, batches)
  if config.initial.get("reinit"):
    variables = program.draw(parts.folded(keys, "init", 1))
  return program.begin(keys, variables, masks)


def _finished_state(
  config: ml_collections.ConfigDict,
  program: programs.Programs,
  path: Path,
  manager: "ocp.CheckpointManager",
  progress: progress_lib.Track,
  start: Callable[[programs.Programs], programs.State],
) -> programs.State:
  """The run's last state, on the host: as it was saved, or else by training."""
  shapes = like(config, program)
  step, saved = checkpoints.restore(manager, shapes) or (-1, None)
  if step == config.steps:
    return saved
  # Copied: a state that is to be donated must not share what is used elsewhere.
  state = jax.tree.map(jnp.array, start(program) if saved is None else saved)
  shared = sharing.of(config)
  state = shared.replicated(program.pack(state))
  examples = source.of(config, np.asarray(state.keys["data"]), shared)

  def evaluate(state):
    scores = programs.no_scores()
    variables = programs.variables(state)
    for x, y in examples.tests():
      scores = program.evaluate(scores, variables, x, y)
    zeros, seen = program.inspect(state)
    recorder.test(step, scores, zeros)
    return state._replace(seen_masks=seen)

  def save(state):
    recorder.flush()
    metrics.sync(path)
    host = checkpoints.snapshot(program.unpack(state))
    check_state(host)
    checkpoints.save(manager, step, host)
    return host

  def to_save():
    every = config.checkpoint_every
    return due(config, step, every) or step in config.keep_steps

  with (
    signals.caught() as came,
    metrics.writer(path, after=step, tensorboard=config.tensorboard) as write,
  ):
    labels = config.batch_size * parts.dataset(config.data.to_dict()).labels
    recorder = Recorder(write, params=shapes.params, labels=labels)
    if saved is None:
      step = int(state.step)
      state = evaluate(state)
      if step in config.keep_steps:
        save(state)
    advance = progress(config.name, config.steps, step)
    moves = parts.transformation(config, jax.random.key(0)).moves
    convolves = any(p.ndim > 2 for p in jax.tree.leaves(shapes.params))
    try:
      while step < config.steps:
        stop = next_stop(config, step, examples.block, moves)
        batches = examples.batches(step)
        moving = bool(moves(step))
        state = _stretch(
          program, moving, state, batches, step, stop, convolves=convolves
        )
        if moving:
          state = program.trim(state)
        step = stop
        if due(config, step, config.log_every):
          recorder.train(step, state.sums)
          sums = shared.replicated(programs.no_sums())
          state = state._replace(sums=sums)
        if due(config, step, config.eval_every):
          state = evaluate(state)
        recorder.flush(keep=1)
        advance(step, recorder.note)
        stopped_by = came()
        if stopped_by or to_save():
          saved = save(state)
        if stopped_by and step < config.steps:
          checkpoints.settle(manager)
          raise signals.stopped(path, step, config.steps, stopped_by)
    except Diverged as error:
      last = checkpoints.latest(manager)
      raise diverged(path, error, last) from None
  checkpoints.settle(manager)
  return saved


def _stretch(
  program: programs.Programs,
  moving: bool,
  state: programs.State,
  batches: programs.Batches,
  step: int,
  stop: int,
  *,
  convolves: bool,
) -> programs.State:
  """Takes steps of one kind, from one to another.

  In one loop on the device, but for mask updates that stand alone. But XLA runs
  a convolution five times slower in a loop than outside on CPUs, where a
  dispatch costs next to nothing.
  """
  take = program.moving if moving else program.ordinary
  one_by_one = convolves and jax.default_backend() == "cpu"
  if not one_by_one and not (moving and stop == step + 1):
    return take.many(state, batches, np.int32(stop))
  for _ in range(step, stop):
    state = take.one(state, batches)
  return state


def next_stop(
  config: ml_collections.ConfigDict,
  step: int,
  block: int,
  moves: Callable[[int], bool],
) -> int:
  """Where the stretch that begins at a step has to end."""
  periods = (config.log_every, config.eval_every, config.checkpoint_every)
  ends = [(step // p + 1) * p for p in (*periods, block) if p]
  ends += [kept for kept in config.keep_steps if kept > step]
  end = min(*ends, config.steps)
  kind = bool(moves(step))
  return next((s for s in range(step + 1, end) if moves(s) != kind), end)


def due(config: ml_collections.ConfigDict, step: int, every: int) -> bool:
  """Whether what comes every so many steps, and after the last, comes now."""
  return step == config.steps or (every > 0 and step % every == 0)
