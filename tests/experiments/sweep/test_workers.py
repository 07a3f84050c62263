"""Workers: what becomes of work that ends, fails, or is killed."""

import importlib.metadata
import os
import pathlib
import signal
import time
import types

import pytest

from experiments.errors import UserError
from experiments.sweep import workers


def work(name):
  if name.startswith("see"):
    print(f"the GPU is {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True)
    time.sleep(3)  # or one worker takes both
    return
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


def test_each_job_has_its_own_gpu(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  four = ["0", "1", "2", "3"]

  def visible(*arguments):
    made = workers.gpus_of(*arguments)
    assert all(one.keys() == {"CUDA_VISIBLE_DEVICES"} for one in made)
    return [one["CUDA_VISIBLE_DEVICES"] for one in made]

  assert visible(four, 4) == four
  assert visible(four, 2) == ["0", "1"]
  assert visible(four, 2, 2) == ["0,1", "2,3"]
  assert visible(["GPU-a", "MIG-b"], 2) == ["GPU-a", "MIG-b"]
  assert visible(four, 1, 8) == ["0,1,2,3"]
  assert workers.gpus_of([], 3) == [{}, {}, {}]
  # More jobs than GPUs share their memory too.
  shared = workers.gpus_of(["0", "1"], 4)
  assert [one["CUDA_VISIBLE_DEVICES"] for one in shared] == ["0", "1", "0", "1"]
  assert {one["XLA_PYTHON_CLIENT_MEM_FRACTION"] for one in shared} == {"0.450"}


def test_which_gpus_there_are(monkeypatch, tmp_path):
  plugins = [types.SimpleNamespace(name="xla_cuda12")]
  monkeypatch.setattr(
    importlib.metadata, "entry_points", lambda group: list(plugins)
  )
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
  assert workers.gpus() == ["2", "3"]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert workers.gpus() == []
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
  query = tmp_path / "nvidia-smi"
  query.write_text("#!/bin/sh\necho 0\necho 1\n")
  query.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  assert workers.gpus() == ["0", "1"]
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert workers.gpus() == []
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
  assert workers.gpus() == ["0", "1"]
  plugins.clear()  # JAX without CUDA, on a machine with GPUs
  assert workers.gpus() == []


@pytest.mark.slow
def test_workers_see_their_own_environment(tmp_path):
  files = {name: tmp_path / f"{name}.txt" for name in ("see a", "see b")}
  environments = [{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": "9"}]
  list(workers.run(work, files, jobs=2, environments=environments))
  assert {file.read_text() for file in files.values()} == {
    "the GPU is 7\n",
    "the GPU is 9\n",
  }
