"""Launchers: a population and Slurm's jobs, by the command that people give."""

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from experiments.config import grid
from experiments.config.grid import Grid
from experiments.errors import UserError
from experiments.runs import metrics
from experiments.sweep import __main__ as sweep
from experiments.sweep import launchers

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = """
from experiments.config.entry import Entry
from tests.experiments import small

def get_config(arg=""):
  return small.get_config("rigl")

def sweep(arg):
  for seed in range(2):
    for sparsity in (0.5, 0.8):
      change = {"seed": seed, "algorithm.sparsity": sparsity}
      yield Entry("rigl", sparsity), change
  yield Entry("dense"), {"algorithm": {"name": "dense"}}
"""
# Slurm, as far as submitit needs it: jobs run at once, on this machine, and
# leave their exit codes beside the programs.
SBATCH = """\
import os, pathlib, re, subprocess, sys
here = pathlib.Path(__file__).parent
text = pathlib.Path(sys.argv[-1]).read_text()
(here / "asked").write_text(text)
script = here / "script"
script.write_text(text)
for i in range(int(re.search(r"--array=0-(\\d+)", text)[1]) + 1):
  env = {**os.environ, "SLURM_JOB_ID": f"7{i}", "SLURM_ARRAY_JOB_ID": "7",
         "SLURM_ARRAY_TASK_ID": str(i), "SLURM_JOB_NUM_NODES": "1",
         "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
         "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"}
  subprocess.Popen(
    f"bash {script}; echo $? > {here / str(i)}", shell=True, env=env,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
SRUN = """\
import os, sys
at = next(i for i, a in enumerate(sys.argv) if "/python" in a)
os.execvp(sys.argv[at], sys.argv[at:])
"""
SACCT = """\
import pathlib
print("JobID|State|NodeList")
for i in range(5):
  file = pathlib.Path(__file__).parent / str(i)
  code = file.read_text().strip() if file.exists() else ""
  state = {"": "RUNNING", "0": "COMPLETED"}.get(code, "FAILED")
  print(f"7_{i}|{state}|here")
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  folder = tmp_path / "bin"
  folder.mkdir()
  for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  return folder


def command(config, root, *more):
  return subprocess.run(
    [
      *(sys.executable, "-m", "experiments.sweep"),
      *(f"--config={config}", f"--root={root}", *more),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=600,
  )


@pytest.mark.slow
def test_a_population_leaves_what_runs_leave(config, tmp_path):
  done = command(config, tmp_path / "root", "--launcher=population")
  assert done.returncode == 0, done.stderr
  assert "all 5 runs are finished" in done.stdout
  assert "5 of 5 finished, 0 running, 0 waiting" in done.stderr
  for name, one in grid.plan(config).items():
    folder = tmp_path / "root" / name
    assert metrics.read(folder)[-1]["step"] == one.steps
    saved = json.loads((folder / "config.json").read_text())["config"]
    assert saved["seed"] == one.seed
  again = command(config, tmp_path / "root", "--launcher=population")
  assert again.returncode == 0
  assert "begun" not in again.stderr


@pytest.mark.slow
def test_slurm_gets_an_array_of_the_runs_that_are_left(config, slurm, tmp_path):
  names = list(grid.plan(config))
  root = tmp_path / "root"
  # What this run would go on from is another's.
  (root / names[1]).mkdir(parents=True)
  (root / names[1] / "metrics.jsonl").write_text("")
  given = (
    *("--launcher=slurm", "--jobs=3"),
    *("--slurm=timeout_min=7", "--slurm=slurm_partition=gpu"),
  )
  done = command(config, root, *given)
  asked = (slurm / "asked").read_text()
  assert "#SBATCH --array=0-4%3" in asked
  assert "#SBATCH --partition=gpu" in asked
  assert "#SBATCH --time=7" in asked
  assert done.returncode == 1
  assert "4 of 5 finished, 0 running, 0 waiting, 1 failed" in done.stderr
  assert f"{names[1]}: " in done.stderr
  assert "no config.json" in done.stderr
  left = [n for n in names if not (root / n / "finished.json").exists()]
  assert left == [names[1]]


def test_without_slurm_its_launcher_says_so(config, tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match="Slurm takes no jobs"):
    sweep.run(config, str(tmp_path / "root"), launcher="slurm")


def test_as_many_runs_at_once_as_gpus(config, tmp_path, monkeypatch):
  names = list(grid.plan(config))
  task = launchers.Task(Grid(config), tmp_path, names, None, {})
  monkeypatch.setattr(launchers, "cores", lambda: 6)
  for there, alone, of_two in (
    ([], 6, 6),
    (["0"], 1, 1),
    (["0", "1", "2"], 3, 1),
  ):
    monkeypatch.setattr(launchers.workers, "gpus", lambda there=there: there)
    assert launchers.at_once("local", task) == alone
    two = task._replace(grid=Grid(config, (("devices", "2"),)))
    two = two._replace(left=list(grid.plan(two.grid)))
    assert launchers.at_once("local", two) == of_two
    assert launchers.at_once("local", task._replace(jobs=5)) == 5
    assert launchers.at_once("slurm", task) is None


def test_local_processes_get_their_gpus(config, tmp_path, monkeypatch):
  given = {}

  def run(work, pieces, **options):
    given.update(options)
    return iter(())

  monkeypatch.setattr(launchers.workers, "gpus", lambda: ["4", "6"])
  monkeypatch.setattr(launchers.workers, "run", run)
  task = launchers.Task(Grid(config), tmp_path, ["a"], None, {})
  monkeypatch.setattr(launchers, "_devices", lambda task: 1)
  assert not list(launchers.local(task))
  assert given == {
    "jobs": 2,
    "environments": [
      {"CUDA_VISIBLE_DEVICES": "4"},
      {"CUDA_VISIBLE_DEVICES": "6"},
    ],
  }


def test_options_are_for_slurm(config, tmp_path):
  for launcher in ("local", "population"):
    with pytest.raises(UserError, match="takes no options, got"):
      sweep.run(
        config, str(tmp_path / "root"), launcher=launcher, options={"a": 1}
      )


def test_an_unknown_launcher_names_the_known_ones(config, tmp_path):
  with pytest.raises(UserError, match="slurm"):
    sweep.run(config, str(tmp_path / "root"), launcher="slurn")


def test_an_option_is_a_key_and_a_value():
  assert launchers.option("timeout_min=60") == ("timeout_min", 60)
  assert launchers.option("slurm_qos=a=b") == ("slurm_qos", "a=b")
  with pytest.raises(UserError, match="KEY=VALUE"):
    launchers.option("timeout_min")
