"""The loop of every run: train a stretch, log, evaluate, save, stop.

Single runs, populations and fine-tuning differ in what each of these does;
when it is done, and in which order, is decided here.
"""

import collections
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections

from experiments.runs import signals
from experiments.runs.recorder import ZerosLost

State = Any  # a pytree on the device, whose `step` is a scalar
# What a stretch is to last at most: a signal waits for two of them. A longer
# one would not be faster, for the device has the next one when one is done.
SECONDS = 0.5


class Work(NamedTuple):
  """What a run does at each point of its loop.

  Attributes:
    block: How many steps, at multiples of it, one stretch may span.
    moves: `(step) -> bool`: whether masks move at the step. A stretch is of
      steps on which they do, or of steps on which they do not.
    stretch: `(state, step, stop) -> state`: trains from one step to another.
      The bits must not depend on where a stretch is cut into two.
    log: `(state, step) -> state`: records the sums since the last log point,
      and gives the state with sums of nothing.
    evaluate: `(state, step) -> state`: tests and records.
    publish: `(step)`: writes records and shows progress.
    save: `(state, step)`: begins to save; what it returns is kept.
    wait: `()`: waits until what was saved is on the disk.
  """

  block: int
  moves: Callable[[int], bool]
  stretch: Callable[[State, int, int], State]
  log: Callable[[State, int], State]
  evaluate: Callable[[State, int], State]
  publish: Callable[[int], None]
  save: Callable[[State, int], Any]
  wait: Callable[[], None]


def run(
  config: ml_collections.ConfigDict,
  work: Work,
  state: State,
  step: int,
  *,
  path: Path,
  fresh: bool,
) -> tuple[State, Any]:
  """Trains from a step to the last one.

  Args:
    config: The run's: `steps`, the periods `log_every`, `eval_every` and
      `checkpoint_every` in steps, and `keep_steps`, if it has any.
    work: What to do.
    state: The state at the step; it may be donated.
    step: How many steps lie behind it.
    path: The run's directory, for messages.
    fresh: Whether the run begins here: a restored state was evaluated, and
      its record written, before it was saved.

  Returns:
    The last state, and what the last save returned: None if there was none.

  Raises:
    Stopped: If a signal came, once the state is saved.
    ZerosLost: If inactive weights are not 0, once the state is saved.
  """
  keep_steps = config.get("keep_steps", ())
  saved = None
  with signals.caught() as signal_number:
    if fresh:
      state = work.evaluate(state, step)
      if step in keep_steps:
        saved = work.save(state, step)
    pace = _Pace()
    # The order of these lines decides the bits of metrics.jsonl and of
    # checkpoints, and that a resumed run ends in those of one never stopped:
    # - A stretch ends wherever something below is due, or masks move, or its
    #   time is over, wherever it began. Bits do not depend on the latter.
    # - Logging zeroes the sums, so it precedes the save, which holds them. The
    #   record has a step's line of training before that of its test.
    # - Evaluation precedes the save: it sets `seen_masks`, and resuming keeps
    #   the records up to the checkpoint's step and does not evaluate it again.
    # - `publish` may hold back the newest record, so that the host never waits
    #   for a device; `save` writes what was held back, since a checkpoint
    #   vouches for all records up to its step.
    # - Whether a signal came is read at one place, before the save: read again
    #   after it, a run could stop with nothing saved.
    # - A signal during the last stretch changes nothing: the run is finished.
    while step < config.steps:
      moving = work.moves(step)
      most = min(work.block - step % work.block, pace.steps[moving])
      stop = stretch_end(config, step, most, work.moves)
      began = time.monotonic()
      state = work.stretch(state, step, stop)
      pace.started(state, stop - step, moving, began)
      step = stop
      try:
        if due(config, step, config.log_every):
          state = work.log(state, step)
        if due(config, step, config.eval_every):
          state = work.evaluate(state, step)
        work.publish(step)
        number = signal_number()
        to_save = due(config, step, config.checkpoint_every)
        if number or to_save or step in keep_steps:
          saved = work.save(state, step)
      except ZerosLost:
        work.save(state, step)  # for whoever wants to see what it holds
        work.wait()
        raise
      if number and step < config.steps:
        work.wait()
        where = (
          f" after step {step} of {config.steps}, which is saved in {path}"
        )
        raise signals.Stopped(where, number)
  work.wait()
  return state, saved


def stretch_end(
  config: ml_collections.ConfigDict,
  step: int,
  most: int,
  moves: Callable[[int], bool],
) -> int:
  """Finds where a stretch of at most so many steps from `step` has to end."""
  periods = (config.log_every, config.eval_every, config.checkpoint_every)
  ends = [(step // p + 1) * p for p in periods if p]
  ends += [kept for kept in config.get("keep_steps", ()) if kept > step]
  end = min(*ends, step + most, config.steps)
  moving = moves(step)
  return next((s for s in range(step + 1, end) if moves(s) != moving), end)


def due(config: ml_collections.ConfigDict, step: int, every: int) -> bool:
  """Returns whether a period of `every` steps, or the run, ends at a step."""
  return step == config.steps or (every > 0 and step % every == 0)


class _Pace:
  """Keeps one stretch of steps waiting behind the one that is under way.

  Attributes:
    steps: How many steps the next stretch may have, by whether masks move.
  """

  def __init__(self):
    self.steps = {False: 1, True: 1}
    self._under_way = collections.deque()
    self._free = 0.0  # when the device was done with what was before

  def started(
    self, state: State, steps: int, moving: bool, began: float
  ) -> None:
    """Waits for the stretch before one that has been started.

    Args:
      state: What the stretch makes.
      steps: How many it has.
      moving: Whether masks move on them.
      began: When it was started, in seconds.
    """
    # A copy: the state itself is donated to the next stretch.
    self._under_way.append((jnp.copy(state.step), steps, moving, began))
    if len(self._under_way) > 1:
      self._wait()
    if self._under_way[0][0].is_ready():  # some backends compute at once
      self._wait()

  def _wait(self) -> None:
    step, steps, moving, began = self._under_way.popleft()
    step.block_until_ready()
    now = time.monotonic()
    seconds = max(now - max(self._free, began), 1e-6)
    # Little by little: the first steps wait for compilers and files.
    most = 4 * self.steps[moving]
    self.steps[moving] = max(1, min(int(SECONDS * steps / seconds), most))
    self._free = now
