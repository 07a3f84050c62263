"""Tables of repaired models: dense model, pruned ones, runs."""

import json

import pytest

from experiments.drivers import recovery
from experiments.errors import UserError
from experiments.llm.io import huggingface
from tests.experiments.drivers.test_finetune import (
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
  config.seeds = (0, 1)
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
  config.methods = ("none", "seft", "lora*")
  config.published = (("wanda 50 %", "seft", "another: 5 -> 6"),)
  config.expected = (("none", "seft"),)
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
def test_runs_begin_with_the_pruned_model_and_learn_from_the_dense(table):
  for seed in (0, 1):
    one = read(table / "runs" / f"wanda_50-seft-{seed}" / "config.json")
    config = one["config"]
    assert config["model"]["path"] == str(table / "pruned" / "wanda_50")
    assert config["teacher"]["path"] == str(table / "dense" / "model")
    assert config["seed"] == seed
  config = read(table / "runs" / "wanda_50-lora_-0" / "config.json")["config"]
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
  lines = (table / "table.csv").read_text().splitlines()[2:]
  names = ("none", "seft", "lora*")
  assert [line.split(",")[1] for line in lines] == [*names]
  values = [
    read(table / "runs" / f"wanda_50-seft-{seed}" / "finished.json")
    for seed in (0, 1)
  ]
  mean = sum(value["metrics"]["perplexity"] for value in values) / 2
  assert lines[1].split(",")[2] == f"{mean:.2f}"
  assert lines[1].endswith("another: 5 -> 6")
  assert lines[0].split(",")[2] == "{:.2f}".format(
    read(table / "pruned" / "wanda_50.json")["perplexity"]
  )


@pytest.mark.slow
def test_the_same_command_again_does_nothing_again(table):
  files = sorted(table.rglob("finished.json"))
  files += [table / "pruned" / "wanda_50.json"]
  before = [file.stat().st_mtime_ns for file in files]
  text = (table / "report.md").read_text()
  recovery.run(make(), table)
  assert [file.stat().st_mtime_ns for file in files] == before
  assert (table / "report.md").read_text() == text


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
