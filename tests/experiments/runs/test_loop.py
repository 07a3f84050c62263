"""The loop of every run, with work that only notes what it is asked for."""

import signal

import ml_collections
import pytest

from experiments.runs import loop, signals


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


class Notes:
  """Work whose state is the number of steps taken."""

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
    assert state == step < stop
    self.calls.append(("stretch", step, stop))
    return stop

  def note(self, what):
    def function(state, step):
      assert state == step
      self.calls.append((what, step))
      return state

    return function

  def run(self, config, step=0, *, fresh=True):
    return loop.run(config, self.work, step, step, path="run", fresh=fresh)

  def steps(self, what):
    return [call[1] for call in self.calls if call[0] == what]


def test_each_kind_of_work_is_done_when_it_is_due_and_at_the_end():
  notes = Notes()
  assert notes.run(make()) == (10, 10)
  assert notes.steps("log") == [3, 6, 9, 10]
  assert notes.steps("evaluate") == [0, 4, 8, 10]
  assert notes.steps("save") == [6, 10]
  assert notes.steps("publish") == [3, 4, 6, 8, 9, 10]
  assert notes.calls[-1] == "wait"


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


def test_a_stretch_is_of_one_kind_and_in_one_block():
  notes = Notes(block=5, moves=(2, 3, 8))
  notes.run(make(log_every=0, eval_every=0, checkpoint_every=0))
  ends = [call[1:] for call in notes.calls if call[0] == "stretch"]
  assert ends == [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9), (9, 10)]


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
    assert notes.run(make(checkpoint_every=0)) == (10, 10)
    assert notes.steps("save") == [10]
