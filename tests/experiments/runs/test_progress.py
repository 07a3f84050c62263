"""What is told of the progress of runs, where there is no terminal."""

import io
import time

import pytest
import rich.console

from experiments.runs import progress


@pytest.fixture
def clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def lines(clock, seconds, *arguments):
  """What is told when each of the counts is reached after so many seconds."""
  text = io.StringIO()
  with progress.bar(rich.console.Console(file=text, width=200)) as track:
    advance = track(*arguments)
    for at, count in seconds.items():
      clock[0] = at
      advance(count)
  return [line.strip() for line in text.getvalue().splitlines()]


def test_steps_have_a_rate(clock):
  told = lines(clock, {10: 100, 40: 400, 100: 1000}, "rigl", 1000, 0)
  assert told == [
    "rigl: step 400 of 1000, 10 steps/s, 60 s left",
    "rigl: step 1000 of 1000, 10 steps/s, 0 s left",
  ]


def test_what_is_slow_is_told_by_the_seconds_for_each(clock):
  told = lines(clock, {50: 9, 100: 18}, "all runs", 18, 4, "run")
  assert told == [
    "all runs: run 9 of 18, 10.0 s a run, 90 s left",
    "all runs: run 18 of 18, 7.1 s a run, 0 s left",
  ]


def test_nothing_is_told_of_what_has_not_begun(clock):
  assert lines(clock, {40: 0}, "all cells", 3, 0, "cell") == [
    "all cells: cell 0 of 3"
  ]
