"""Trains one sparse network, from a config to a finished directory.

The same command again goes on where the run was stopped, and ends in the same
bits. The order of work is in loop.py, what is compiled in programs.py.
"""

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
from experiments.runs import checkpoints, devices, loop, metrics, programs
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.runs.batches import check_batch, open_source
from experiments.runs.model import no_scores
from experiments.runs.programs import Programs
from experiments.runs.recorder import Recorder, check_state, diverging
from experiments.runs.step import State, model_variables, no_sums

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
  start: Callable[[Programs], State] | None = None,
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
  devices.keep_programs()
  program = programs.get(config)
  if workdir_lib.finished(workdir) is None:  # before the config is written
    check_batch(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.ensure_config(
      path, calling.plain(config), free=("mode", "devices")
    )
    with _checkpoints(config, path) as manager:
      state = _final_state(
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
) -> State:
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
  with _checkpoints(config, Path(workdir).absolute()) as manager:
    shapes = state_shapes(config, programs.get(config))
    return checkpoints.restore_step(manager, step, shapes)


def _checkpoints(
  config: ml_collections.ConfigDict, path: Path
) -> "ocp.CheckpointManager":
  return checkpoints.open_manager(
    path / "checkpoints",
    keep=config.checkpoints_to_keep,
    keep_steps=config.keep_steps,
  )


def state_shapes(config: ml_collections.ConfigDict, program: Programs) -> State:
  """Computes the shapes and dtypes of a run's state."""
  keys = parts.streams(config.seed)
  try:
    variables = jax.eval_shape(program.draw, keys)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"config.model {config.model.to_dict()} on data set {config.data.name}: "
      f"{error}"
    ) from error
  try:
    return jax.eval_shape(program.begin, keys, variables)
  except ValueError as error:  # What fits no leaf of this model shows here.
    raise UserError(
      f"algorithm {config.algorithm.name} on {config.model.name}: {error}"
    ) from error


def first_state(config: ml_collections.ConfigDict, program: Programs) -> State:
  """Draws params and masks from the seed, as the config says."""
  keys = parts.streams(config.seed)
  variables = program.draw(keys)
  if config.initial.name == parts.DRAWN:
    return program.begin(keys, variables)
  batches = open_source(config, keys["data"]).batches(0)
  try:
    masks = program.initial(keys, variables, batches)
  except ValueError as error:
    raise UserError(f"initial {config.initial.name}: {error}") from error
  if config.initial.get("reinit"):
    variables = program.draw(parts.folded(keys, "init", 1))
  return program.begin(keys, variables, masks)


def write_leaves(path: Path, state: State) -> None:
  """Writes leaves.md: what each leaf was taken for, and its first density."""
  masks = jax.tree.map(np.asarray, sparsejax.get_masks(state.opt_state))
  rows = sparsejax.report.layers(state.params, masks)
  with workdir_lib.storage(path):
    (path / "leaves.md").write_text(
      "What each leaf of the params was taken for, and how much of it was "
      f"active before the first step:\n\n{sparsejax.report.table(rows)}\n\n"
      "Where that is not what a leaf is, `prunable` of the algorithm says "
      "which leaves become sparse.\n"
    )


def check_zeros_kept(
  checkpoint: Path,
  state: State,
  tx: sparsejax.SparseTransformation | None = None,
) -> None:
  """Refuses a checkpoint whose zeros were lost before it was saved.

  Args:
    checkpoint: Where it is, for the error.
    state: What it holds.
    tx: What the run goes on with, to compare its sparsity; None for not.

  Raises:
    UserError: If a weight outside its mask is not 0, or budgets differ.
  """
  seen = sparsejax.forward_params(state.params, state.opt_state)
  try:
    sparsejax.check(seen, state.opt_state, tx)
  except ValueError as error:
    raise UserError(
      f"{checkpoint} cannot be gone on from: {error}. Remove it to go on from "
      "the one before, or give another --workdir."
    ) from error


def _final_state(
  config: ml_collections.ConfigDict,
  program: Programs,
  path: Path,
  manager: "ocp.CheckpointManager",
  progress: progress_lib.Track,
  start: Callable[[Programs], State],
) -> State:
  """Returns the run's last state, on the host: restored, or else trained."""
  shapes = state_shapes(config, program)
  first, saved = checkpoints.restore(manager, shapes) or (-1, None)
  checkpoint = path / "checkpoints" / str(first)
  if first == config.steps:
    # Saved, but not finished: its last evaluation may have failed.
    if workdir_lib.finished(path) is None:
      check_zeros_kept(checkpoint, saved)
    return saved
  fresh = saved is None
  # Copied: a state that is to be donated must not share what is used elsewhere.
  state = jax.tree.map(jnp.array, start(program) if fresh else saved)
  if fresh:
    write_leaves(path, state)
  else:
    # Masks of `initial` have the budgets that they have.
    drawn = config.initial.name == parts.DRAWN
    tx = parts.transformation(config, jax.random.key(0)) if drawn else None
    check_zeros_kept(checkpoint, state, tx)
  step = int(state.step)
  del saved
  with (
    metrics.writer(path, after=first, tensorboard=config.tensorboard) as write,
    diverging(path, manager),
  ):
    labels = config.batch_size * parts.dataset(config.data.to_dict()).labels
    recorder = Recorder(write, params=shapes.params, labels=labels)
    advance = progress(config.name, config.steps, step)
    work = _work(config, program, path, manager, recorder, advance, state)
    state = devices.sharing(config).replicated(program.pack(state))
    _, saved = loop.run(config, work, state, step, path=path, fresh=fresh)
  return saved


def _in_loop(
  config: ml_collections.ConfigDict, moves: Callable[[int], bool], state: State
) -> Callable[[int], bool]:
  """Makes `(step) -> bool`: whether a loop on the device takes the step.

  Where a stretch begins and ends has no part in it: bits may differ between a
  loop and a program of one step.
  """
  cpu = jax.default_backend() == "cpu"
  convolves = any(p.ndim > 2 for p in jax.tree.leaves(state.params))

  def in_loop(step: int) -> bool:
    if moves(step):
      # A loop is compiled for methods whose masks move step after step, and
      # packed values may have slots to leave out after each.
      several = moves(step - 1) or moves(step + 1)
      return several and config.mode == "masked" and not cpu
    # XLA runs a convolution five times slower in a loop than outside on CPUs,
    # where a dispatch costs next to nothing.
    return not (convolves and cpu)

  return in_loop


def _work(
  config: ml_collections.ConfigDict,
  program: Programs,
  path: Path,
  manager: "ocp.CheckpointManager",
  recorder: Recorder,
  advance: progress_lib.Advance,
  state: State,
) -> loop.Work:
  """Makes what the loop does for one run; `state` is not packed yet."""
  shared = devices.sharing(config)
  examples = open_source(config, np.asarray(state.keys["data"]), shared)
  moves = parts.transformation(config, jax.random.key(0)).moves
  in_loop = _in_loop(config, moves, state)

  def stretch(state: State, step: int, stop: int) -> State:
    batches = examples.batches(step)
    moving = moves(step)
    take = program.moving if moving else program.ordinary
    if in_loop(step):
      return take.many(state, batches, np.int32(stop))
    for _ in range(step, stop):
      state = take.one(state, batches)
      if moving:
        state = program.trim(state)
    return state

  def log(state: State, step: int) -> State:
    recorder.train(step, state.sums)
    return state._replace(sums=shared.replicated(no_sums()))

  def evaluate(state: State, step: int) -> State:
    scores = no_scores()
    variables = model_variables(state)
    for x, y in examples.tests():
      scores = program.evaluate(scores, variables, x, y)
    zeros, seen = program.inspect(state)
    recorder.test(step, scores, zeros)
    return state._replace(seen_masks=seen)

  def publish(step: int) -> None:
    recorder.flush(keep=1)
    advance(step, recorder.note)

  def save(state: State, step: int) -> State:
    recorder.flush()
    host = checkpoints.snapshot(program.unpack(state))
    check_state(host)
    return checkpoints.save(manager, step, host, [path])

  return loop.Work(
    block=examples.block,
    moves=moves,
    stretch=stretch,
    log=log,
    evaluate=evaluate,
    publish=publish,
    save=save,
    wait=functools.partial(checkpoints.wait, manager),
  )
