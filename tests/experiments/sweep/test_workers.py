"""Workers: what becomes of work that ends, fails, or is killed."""

import os
import pathlib
import signal
import time

from experiments.errors import UserError
from experiments.sweep import workers


def work(name):
  print(f"{name} on {sorted(os.sched_getaffinity(0))}", flush=True)
  if name.startswith("wrong"):
    raise UserError("this cannot be")
  if name.startswith("fault"):
    raise ZeroDivisionError("of something")
  if name.startswith("killed"):
    os.kill(os.getpid(), signal.SIGKILL)
  if name.startswith("leaves"):
    os._exit(3)
  if name.startswith("slow"):
    time.sleep(60)


def run(tmp_path, names, **options):
  pieces = {name: tmp_path / "logs" / f"{name}.txt" for name in names}
  return list(workers.run(work, pieces, **options))


def ends(events):
  return {e.name: e for e in events if e and e.what != "begun"}


def test_what_fails_does_not_stop_the_others(tmp_path):
  names = ["a", "wrong", "fault", "killed", "b", "leaves", "c"]
  events = run(tmp_path, names, jobs=2)
  assert sorted(e.name for e in events if e and e.what == "begun") == sorted(
    names
  )
  found = ends(events)
  assert {n: e.what for n, e in found.items()} == {
    name: "finished" if len(name) == 1 else "failed" for name in names
  }
  assert found["wrong"].why == "this cannot be"
  assert found["fault"].why == "ZeroDivisionError: of something"
  assert found["killed"].why == "its process was killed by SIGKILL"
  assert found["leaves"].why == "its process ended with exit code 3"
  log = (tmp_path / "logs" / "fault.txt").read_text()
  assert log.startswith("fault on [")
  assert "Traceback" in log
  assert "wrong" in (tmp_path / "logs" / "wrong.txt").read_text()


def test_each_job_has_its_own_cores(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7})
  assert workers.cores_of(1) == [{2, 3, 5, 7}]
  assert workers.cores_of(2) == [{2, 5}, {3, 7}]
  assert workers.cores_of(4) == [{2}, {3}, {5}, {7}]
  assert workers.cores_of(5) == [{2}, {3}, {5}, {7}, {2}]


def test_one_process_does_many_pieces(tmp_path):
  begin = time.monotonic()
  events = run(tmp_path, [f"{i}" for i in range(40)], jobs=1)
  assert len(ends(events)) == 40
  one = ends(run(tmp_path, ["x"], jobs=1))["x"]
  # A process of its own for each would take as long as many of them.
  assert time.monotonic() - begin < 20 * max(one.seconds, 0.2)


def test_who_stops_looking_stops_the_work(tmp_path):
  events = workers.run(
    work, {"slow": pathlib.Path(tmp_path / "log")}, jobs=1, every=0.1
  )
  assert next(events).what == "begun"
  assert next(events) is None
  begin = time.monotonic()
  events.close()
  assert time.monotonic() - begin < 30
