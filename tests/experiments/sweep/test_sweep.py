"""Sweeps: which runs there are, which are left, and what is told of them."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.config import grid
from experiments.config.grid import Grid
from experiments.errors import UserError
from experiments.sweep import __main__ as sweep
from experiments.sweep.launchers import Task

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = """
from experiments.config.entry import Entry
from tests.experiments import small

def get_config(arg=""):
  config = small.get_config("rigl")
  config.name = "small"
  return config

def sweep(arg):
  for seed in range(int(arg or 2)):
    for sparsity in (0.5, 0.8):
      change = {"seed": seed, "algorithm.sparsity": sparsity}
      yield Entry("rigl", sparsity), change
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return str(path)


def test_runs_are_named_by_what_differs(config):
  planned = grid.plan(config)
  assert len(planned) == 4
  assert all(len(name) == 12 for name in planned)
  for name, one in planned.items():
    told = grid.differences(one)
    assert told["algorithm.sparsity"] == one.algorithm.sparsity
    # Seed 0 is the default.
    assert told.get("seed", 0) == one.seed
    one.name = "another title"
    assert grid.name_of(one) == name
  assert planned.keys() <= grid.plan(f"{config}:3").keys()


def test_a_comparison_is_a_grid():
  planned = grid.plan("configs/quickstart.py")
  names = {one.name for one in planned.values()}
  assert len(names) == len(planned) == 18


@pytest.mark.parametrize(
  ("text", "says"),
  [
    (CONFIG.replace("def sweep", "def other"), "no function sweep"),
    (CONFIG.replace('"seed": seed, ', ""), "two runs are the same"),
    (CONFIG.replace('"seed"', '"sed"'), "no key of the config .*'seed'"),
    (CONFIG.replace("algorithm.sparsity", "algoritm.sparsity"), "algorithm"),
    (CONFIG.replace("(0.5, 0.8)", "()"), "is empty"),
    (CONFIG.replace("0.8)", "1.5)"), "1.5"),
  ],
)
def test_bad_grids_are_refused(text, says, tmp_path):
  (tmp_path / "config.py").write_text(text)
  with pytest.raises(UserError, match=says):
    grid.plan(str(tmp_path / "config.py"))
  with pytest.raises(UserError, match="no config file"):
    grid.plan(str(tmp_path / "none.py"))


def test_commands_are_those_of_what_is_left(config, tmp_path):
  root = tmp_path / "root"
  names = list(grid.plan(config))
  (root / names[1]).mkdir(parents=True)
  (root / names[1] / "finished.json").write_text('{"metrics": {}}')
  lines = sweep.commands(config, str(root))
  assert [line.split("--only=")[1] for line in lines] == [
    name for name in names if name != names[1]
  ]
  assert lines[0].startswith("python -m experiments.sweep --config=")
  with pytest.raises(UserError, match="run of the sweep"):
    sweep.run_one(config, str(root), "abc")


def test_changes_are_in_the_names_of_runs(config):
  plain = grid.plan(config)
  changes = (("model.dtype", "bfloat16"), ("optimizer.clip", "1"))
  planned = grid.plan(Grid(config, changes))
  assert len(planned) == len(plain)
  assert not planned.keys() & plain.keys()
  for name, one in planned.items():
    told = grid.differences(one)
    assert told["model.dtype"] == "bfloat16"
    assert told["optimizer.clip"] == 1.0
    assert grid.name_of(one) == name
  again = Grid(config, changes[::-1])
  assert grid.plan(again).keys() == planned.keys()


def test_rows_are_chosen(config):
  every = grid.plan(config)
  some = grid.plan(Grid(config, only="8. %$"))
  assert [one.algorithm.sparsity for one in some.values()] == [0.8, 0.8]
  assert some.keys() < every.keys()
  with pytest.raises(UserError, match="there are: rigl, 50 %, rigl, 80 %"):
    grid.plan(Grid(config, only="9. %"))
  with pytest.raises(UserError, match="no regular expression"):
    grid.plan(Grid(config, only="("))
  comparison = grid.rows(Grid("configs/quickstart.py", only="^s"))
  assert list(map(str, comparison)) == ["static", "set", "seft"]


def test_another_algorithm_gives_rows_its_name(config):
  rows = grid.rows(Grid(config, (("algorithm", "gmp"),)))
  assert list(map(str, rows)) == ["gmp, 50 %", "gmp, 80 %"]
  for group in rows.values():
    assert {one.algorithm.name for one in group} == {"gmp"}
  with pytest.raises(UserError, match="decides which rows there are"):
    grid.rows(
      Grid("configs/dst_mnist1d.py", (("algorithm", "set"),), "RigL .ERK")
    )


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      (("seed", "3"),),
      "config.seed of the row rigl, 50 % is 0, .* cannot be 3",
    ),
    ((("algorithm.sparsity", "0.3"),), "sparsity of the row rigl, 50 % is 0.5"),
    ((("stps", "3"),), "did you mean 'steps'"),
  ],
)
def test_what_tells_runs_apart_is_not_set(config, changes, says):
  with pytest.raises(UserError, match=says):
    grid.rows(Grid(config, changes))


def test_changes_hold_where_runs_can_have_them():
  chosen = Grid("configs/dst_mnist1d.py", (("algorithm.delta_t", "50"),))
  rows = grid.rows(chosen)
  for entry, group in rows.items():
    moves = entry.method.startswith(("SET", "SNFS", "RigL", "pruning"))
    wanted = {50} if moves else {None}
    assert {one.algorithm.get("delta_t") for one in group} == wanted
  (told,) = grid.told(chosen)
  assert told.startswith("config.algorithm.delta_t=50 holds in 300 of 420 runs")
  # Rows that train for longer say so, and would not.
  with pytest.raises(UserError, match=r"steps of the row RigL 5x .* is 20000"):
    grid.rows(Grid("configs/dst_mnist1d.py", (("steps", "4000"),)))
  less = Grid(
    "configs/dst_mnist1d.py", (("algorithm.sparsity", "0.7"),), "80 %"
  )
  with pytest.raises(UserError, match=r"of the row .*, 80 % is 0\.8"):
    grid.rows(less)


def test_commands_have_the_changes_and_rows(config, tmp_path):
  chosen = Grid(config, (("steps", "30"), ("keep_steps", "(1, 2)")), "80 %")
  lines = sweep.commands(chosen, str(tmp_path))
  assert len(lines) == 2
  for line in lines:
    words = shlex.split(line)
    assert "--config.steps=30" in words
    assert "--config.keep_steps=(1, 2)" in words
    assert "--rows=80 %" in words


def test_costs_are_told_before(config, tmp_path, capsys):
  planned = grid.plan(config)
  names = list(planned)
  task = Task(Grid(config), tmp_path, names, 2, {})
  sweep._tell("local", task)
  assert capsys.readouterr().err == (
    "4 runs: 0 finished, 4 left, 2 at once; how long that takes is not known "
    "before one has finished\n"
  )
  for name, seconds in zip(names[:3], (90, 100, 400), strict=True):
    (tmp_path / name).mkdir()
    for file, at in (("config.json", 1000), ("finished.json", 1000 + seconds)):
      (tmp_path / name / file).write_text("{}")
      os.utime(tmp_path / name / file, (at, at))
  told = sweep._tell("local", task._replace(left=names[3:]))
  assert capsys.readouterr().err == (
    "4 runs: 3 finished, 1 left, 1 at once; about 2 min\n"
  )
  assert told.seconds(planned[names[3]]) == pytest.approx(100)
  sweep._tell("slurm", task._replace(left=names[3:], jobs=None))
  assert "about 2 min if one after another" in capsys.readouterr().err
  sweep._tell("population", task._replace(left=names[3:]))
  assert "is not known\n" in capsys.readouterr().err


@pytest.mark.slow
def test_other_runs_of_a_directory_stay_listed(config, tmp_path):
  for only in ("50 %", "80 %"):
    chosen = Grid(f"{config}:1", (("steps", "6"),), only)
    sweep.run(chosen, str(tmp_path), jobs=1)
  told = json.loads((tmp_path / "sweep.json").read_text())
  assert len(told) == 2
  assert {one["steps"] for one in told.values()} == {6}


def command(config, root, *more):
  return subprocess.run(
    [
      *(sys.executable, "-m", "experiments.sweep"),
      *(f"--config={config}", f"--root={root}", *more),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )


def test_a_sweep_of_two_runs(config, tmp_path, capsys):
  root = tmp_path / "root"
  sweep.run(f"{config}:1", str(root), jobs=1)
  assert "all 2 runs are finished" in capsys.readouterr().out
  for name in grid.plan(f"{config}:1"):
    assert (root / name / "finished.json").exists()


@pytest.mark.slow
def test_a_sweep_goes_on_and_tells_of_failures(config, tmp_path):
  root = tmp_path / "root"
  names = list(grid.plan(config))
  # A run that cannot be: its directory holds another config.
  broken = root / names[2]
  broken.mkdir(parents=True)
  (broken / "config.json").write_text("{")
  done = command(config, root, "--jobs=2")
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  assert "1 runs failed" in done.stderr
  assert str(broken / "config.json") in done.stderr
  told = json.loads((root / "sweep.json").read_text())
  assert set(told) == set(names)
  for name in names:
    assert (root / name / "finished.json").exists() == (name != names[2])
  before = (root / names[0] / "metrics.jsonl").read_bytes()
  shutil.rmtree(broken)
  left = command(config, root, "--dry_run")
  assert left.stdout.splitlines() == sweep.commands(config, str(root))
  assert f"--only={names[2]}" in left.stdout
  alone = command(config, root, f"--only={names[2]}")
  assert alone.returncode == 0, alone.stderr
  again = command(config, root)
  assert again.returncode == 0, again.stderr
  assert "all 4 runs are finished" in again.stdout
  assert (root / names[0] / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_bits(tmp_path):
  file = tmp_path / "config.py"
  file.write_text(CONFIG.replace('"small"', '"small"\n  config.steps = 600'))
  path = f"{file}:1"  # of one seed: two runs
  whole, root = tmp_path / "whole", tmp_path / "root"
  assert command(path, whole, "--jobs=2").returncode == 0
  running = subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.sweep", f"--config={path}"),
      *(f"--root={root}", "--jobs=2"),
    ],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  while not list(root.glob("*/metrics.jsonl")):
    assert running.poll() is None
    time.sleep(0.05)
  running.send_signal(signal.SIGKILL)
  running.wait()
  names = grid.plan(path)
  assert not all((root / name / "finished.json").exists() for name in names)
  again = command(path, root, "--jobs=2")
  assert again.returncode == 0, again.stderr
  for name in names:
    records = [
      [
        json.loads(line)
        for line in (place / name / "metrics.jsonl").read_text().splitlines()
      ]
      for place in (whole, root)
    ]
    # Rates are those of a clock.
    for lines in records:
      for line in lines:
        line.pop("steps_per_second", None)
    assert records[0] == records[1]
