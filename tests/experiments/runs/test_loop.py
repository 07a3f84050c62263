"""The loop of every run, with work that only notes what it is asked for."""

import signal
from typing import NamedTuple

import ml_collections
import pytest

from experiments.runs import loop, signals


@pytest.fixture
def endless(monkeypatch):
  """Stretches that no time cuts short."""
  endless = {False: 10**6, True: 10**6}
  monkeypatch.setattr(loop._Pace, "steps", endless, raising=False)
  monkeypatch.setattr(loop._Pace, "__init__", lambda self: None)
  monkeypatch.setattr(loop._Pace, "started", lambda self, *args: None)


def make(**changes):
  config = ml_collections.ConfigDict(
    {
      "steps": 10,
      "log_every": 3,
      "eval_every": 4,
      "checkpoint_every": 6,
      "keep_steps": (),
    }
  )
  config.update(changes)
  return config


class State(NamedTuple):
  """The number of steps taken."""

  step: int


class Notes:
  """Work that notes what it is asked for."""

  def __init__(self, *, block=100, moves=()):
    self.calls = []
    self.work = loop.Work(
      block=block,
      moves=lambda step: step in moves,
      stretch=self.stretch,
      log=self.note("log"),
      evaluate=self.note("evaluate"),
      publish=lambda step: self.calls.append(("publish", step)),
      save=self.note("save"),
      wait=lambda: self.calls.append("wait"),
    )

  def stretch(self, state, step, stop):
    assert state.step == step < stop
    self.calls.append(("stretch", step, stop))
    return State(stop)

  def note(self, what):
    def function(state, step):
      assert state.step == step
      self.calls.append((what, step))
      return state

    return function

  def run(self, config, step=0, *, fresh=True):
    state = State(step)
    return loop.run(config, self.work, state, step, path="run", fresh=fresh)

  def steps(self, what):
    return [call[1] for call in self.calls if call[0] == what]


@pytest.mark.usefixtures("endless")
def test_each_kind_of_work_is_done_when_it_is_due_and_at_the_end():
  notes = Notes()
  assert notes.run(make()) == ((10,), (10,))
  assert notes.steps("log") == [3, 6, 9, 10]
  assert notes.steps("evaluate") == [0, 4, 8, 10]
  assert notes.steps("save") == [6, 10]
  assert notes.steps("publish") == [3, 4, 6, 8, 9, 10]
  assert notes.calls[-1] == "wait"


@pytest.mark.usefixtures("endless")
def test_the_order_at_one_step():
  notes = Notes()
  notes.run(make(log_every=5, eval_every=5, checkpoint_every=5))
  assert [call[0] for call in notes.calls] == [
    *("evaluate", "stretch", "log", "evaluate", "publish", "save"),
    *("stretch", "log", "evaluate", "publish", "save", "w"),
  ]


@pytest.mark.parametrize("step", range(10))
def test_a_resumed_run_does_what_is_left(step):
  whole, rest = Notes(), Notes()
  whole.run(make())
  rest.run(make(), step, fresh=False)
  for what in ("log", "evaluate", "save"):
    assert rest.steps(what) == [s for s in whole.steps(what) if s > step]


def test_kept_steps_are_saved_the_first_one_too():
  notes = Notes()
  notes.run(make(checkpoint_every=0, keep_steps=(0, 7)))
  assert notes.steps("save") == [0, 7, 10]
  assert notes.calls[:2] == [("evaluate", 0), ("save", 0)]


@pytest.mark.usefixtures("endless")
def test_a_stretch_is_of_one_kind_and_in_one_block():
  notes = Notes(block=5, moves=(2, 3, 8))
  notes.run(make(log_every=0, eval_every=0, checkpoint_every=0))
  ends = [call[1:] for call in notes.calls if call[0] == "stretch"]
  assert ends == [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9), (9, 10)]


class Device:
  """A device that takes its time, and the clock and NumPy of whoever uses it.

  Attributes:
    waited: The steps whose end was waited for.
  """

  def __init__(self, *, at_once):
    self.at_once = at_once
    self.now = self.free = 0.0
    self.waited = []

  def compute(self, seconds):
    self.free = max(self.now, self.free) + seconds
    if self.at_once:
      self.now = self.free

  def monotonic(self):
    return self.now

  def copy(self, step):
    end = self.free

    class Result:
      def is_ready(_):
        return self.now >= end

      def block_until_ready(_):
        self.now = max(self.now, end)
        self.waited.append(step)

    return Result()

  def run(self, monkeypatch, seconds, moves, steps):
    """Runs steps that take so long; gives the lengths of stretches."""
    notes = Notes(block=10**6, moves=moves)
    stretch = notes.work.stretch
    self.started = []

    def timed(state, step, stop):
      self.started.append((stop, max(self.waited, default=0)))
      self.compute(30 if step == 0 else seconds * (stop - step))
      return stretch(state, step, stop)

    notes.work = notes.work._replace(stretch=timed)
    monkeypatch.setattr(loop, "time", self)
    monkeypatch.setattr(loop, "jnp", self)
    never = dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 0)
    notes.run(make(steps=steps, **never))
    return [s[2] - s[1] for s in notes.calls if s[0] == "stretch"]


@pytest.mark.parametrize(
  ("seconds", "most"), [(10.0, 1), (0.3, 1), (0.1, 5), (1e-3, 500)]
)
@pytest.mark.parametrize(
  "moves", [(), range(0, 10**6, 100), range(10**6)], ids=str
)
@pytest.mark.parametrize("at_once", [False, True])
def test_a_stretch_lasts_half_a_second_or_one_step(
  seconds, most, moves, at_once, monkeypatch
):
  device = Device(at_once=at_once)
  lengths = device.run(monkeypatch, seconds, moves, steps=300 * most)
  assert sum(lengths) == 300 * most
  mixed = 0 < len(moves) < 10**6
  assert max(lengths) in (min(most, 99) if mixed else most, most - 1)
  # It grows in a few stretches, and a move does not set it back.
  assert len(lengths) <= 300 * most / max(0.9 * most, 1) + 10 + (
    2 * most * 3 if mixed else 0
  )


def test_one_stretch_waits_behind_another(monkeypatch):
  """No more, or a signal would wait for them too."""
  device = Device(at_once=False)
  device.run(monkeypatch, 1.0, (), steps=10)
  assert device.started == [(i, max(i - 2, 0)) for i in range(1, 11)]


@pytest.mark.parametrize(("when", "stops"), [(4, True), (9, False)])
def test_a_signal_is_obeyed_after_a_save_unless_it_is_the_end(when, stops):
  notes = Notes()
  stretch = notes.work.stretch

  def signalled(state, step, stop):
    if step == when:
      signal.raise_signal(signal.SIGTERM)
    return stretch(state, step, stop)

  notes.work = notes.work._replace(stretch=signalled)
  if stops:
    with pytest.raises(signals.Stopped, match="after step 6 of 10"):
      notes.run(make(checkpoint_every=0))
    assert notes.calls[-2:] == [("save", 6), "wait"]
  else:
    assert notes.run(make(checkpoint_every=0)) == ((10,), (10,))
    assert notes.steps("save") == [10]
