"""Tables of repaired models: dense model, pruned ones, runs."""

import json

import numpy as np
import pytest

from experiments.config import calling
from experiments.drivers import recovery
from experiments.errors import UserError
from experiments.llm.evaluate import tasks
from experiments.llm.io import huggingface, load
from experiments.runs import recovery as runs
from experiments.runs.recorder import DivergedError
from tests.experiments.small_finetune import (
  DELTAS,
  SEFT,
  SIZES,
  TEXT,
  WANDA,
)

SETTINGS = {
  "lora*": {
    "method": {"name": "lora", "rank": 2},
    "prune_again": {"name": "magnitude"},
  },
  "seft": {
    "method": SEFT,
    "optimizer": DELTAS,
    "loss": {"cross_entropy": 1.0, "square_head": 1.0},
    "teacher": {"name": "dense"},
  },
}


def make(**changes):
  config = recovery.defaults()
  config.seeds = (0,)
  base = config.base
  base.steps = 4
  base.batch_size = 2
  base.model = {"name": "random", "seed": 0, **SIZES}
  base.task = TEXT
  base.schedule = {"name": "constant", "learning_rate": 0.01}
  base.eval_every = 0
  base.checkpoint_every = 0
  base.tensorboard = False
  base.save = False
  config.dense = {"method": {"name": "full"}, "save": True}
  config.starts = {"wanda 50 %": {"prune": WANDA}}
  config.bases = ("wanda 50 %",)
  config.settings = SETTINGS
  config.methods = ("none", "lora*")
  config.published = (("wanda 50 %", "lora*", "another: 5 -> 6"),)
  config.expected = (("none", "lora*"),)
  for key, value in changes.items():
    config[key] = value
  return config


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  path = tmp_path_factory.mktemp("table")
  recovery.run(make(), path)
  return path


def read(path):
  return json.loads(path.read_text())


@pytest.mark.slow
def test_runs_begin_with_the_pruned_model(table):
  config = read(table / "runs" / "wanda_50-lora_-0" / "config.json")["config"]
  assert config["model"]["path"] == str(table / "pruned" / "wanda_50")
  assert config["prune_again"] == {**WANDA, "name": "magnitude"}
  dense = read(table / "dense" / "finished.json")["metrics"]
  pruned = read(table / "pruned" / "wanda_50.json")
  assert pruned["nnz"] == dense["size"] // 2 < dense["nnz"] == dense["size"]
  # What was pruned is the tuned model.
  kernel = huggingface.read_model(table / "dense" / "model").params["embed"]
  start = huggingface.read_model(table / "pruned" / "wanda_50").params["embed"]
  assert (kernel["embedding"] == start["embedding"]).all()


@pytest.mark.slow
def test_the_table_holds_the_runs(table):
  none, lora = (table / "table.csv").read_text().splitlines()[2:]
  run = read(table / "runs" / "wanda_50-lora_-0" / "finished.json")
  perplexity = run["metrics"]["perplexity"]
  assert lora.split(",")[1:3] == ["lora*", f"{perplexity:.2f}"]
  assert lora.endswith("another: 5 -> 6")
  perplexity = read(table / "pruned" / "wanda_50.json")["perplexity"]
  assert none.split(",")[1:3] == ["none", f"{perplexity:.2f}"]


@pytest.mark.slow
def test_the_same_command_again_does_nothing_again(table):
  files = sorted(table.rglob("finished.json"))
  files += [table / "pruned" / "wanda_50.json"]
  before = [file.stat().st_mtime_ns for file in files]
  text = (table / "report.md").read_text()
  recovery.run(make(), table)
  assert [file.stat().st_mtime_ns for file in files] == before
  assert (table / "report.md").read_text() == text


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_the_others(table, monkeypatch):
  real = recovery.finetune.train

  def train(config, folder, **options):
    if "lora" in folder.name:
      raise DivergedError("the loss is not finite at step 2; try another")
    return real(config, folder, **options)

  monkeypatch.setattr(recovery.finetune, "train", train)
  rows = []
  monkeypatch.setattr(
    recovery.llm,
    "write_report",
    lambda _, config, found, *more, **options: rows.extend(found),
  )
  recovery.run(make(), table)
  none, lora = rows
  assert len(none.finite) == 1
  assert not none.lost
  assert lora.diverged == " (1 of 1 diverged)"
  assert lora.lost == {0: "the loss is not finite at step 2; try another"}


@pytest.mark.slow
def test_seeds_are_averaged_and_learn_from_the_dense_model(tmp_path):
  recovery.run(make(seeds=(0, 1), methods=("seft",), published=()), tmp_path)
  runs = [tmp_path / "runs" / f"wanda_50-seft-{seed}" for seed in (0, 1)]
  for seed, run in enumerate(runs):
    config = read(run / "config.json")["config"]
    assert config["teacher"]["path"] == str(tmp_path / "dense" / "model")
    assert config["seed"] == seed
  (line,) = (tmp_path / "table.csv").read_text().splitlines()[2:]
  finals = [read(run / "finished.json")["metrics"] for run in runs]
  mean = sum(final["perplexity"] for final in finals) / 2
  assert line.split(",")[2].startswith(f"{mean:.2f}")


def test_methods_can_be_kept_to_some_starts(tmp_path):
  starts = {name: {"prune": WANDA} for name in ("first", "second")}
  config = make(starts=starts, bases=tuple(starts), only={"lora*": ("second",)})
  cells = runs.plan(config, tmp_path)
  assert [str(cell) for cell in cells] == [
    "none, first",
    "none, second",
    "lora*, second",
  ]


def test_speed_is_measured_once_against_the_dense_model(tmp_path, monkeypatch):
  config = make(timing={"tokens": 3, "prompt": 2, "rounds": 2})
  model = calling.call("model", load.MODELS, config.base.model)
  task = tasks.make(model, TEXT)
  (tmp_path / "pruned").mkdir()
  huggingface.write_model(tmp_path / "pruned" / "wanda_50", model)
  made = []

  def in_turns(functions, *, rounds):
    made.append((sorted(functions), rounds))
    return {"dense": np.array([2.0, 4.0]), "wanda 50 %": np.array([1.0, 1.0])}

  monkeypatch.setattr(runs.timing, "in_turns", in_turns)
  for _ in range(2):
    found = runs.speed(config, tmp_path, "wanda 50 %", model, task)
    assert found == (3.0, 3.0)
  assert made == [(["dense", "wanda 50 %"], 2)]
  assert runs.speed(make(), tmp_path, "wanda 50 %", model, task) is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"bases": ()}, "nothing to run"),
    ({"bases": ("wanda 60 %",)}, "did you mean 'wanda 50 %'"),
    ({"methods": ("sfet",)}, "did you mean 'seft'"),
    ({"dense": {"stepps": 3}}, "did you mean 'steps'"),
    (
      {"settings": {"seft": {"loss": {"kl": 1.0}}}, "methods": ("seft",)},
      "asks for kl, but config.teacher is 'none'",
    ),
  ],
)
def test_what_is_wrong_is_told_before_any_work(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    recovery.run(make(**changes), tmp_path)
  assert not any(tmp_path.iterdir())
