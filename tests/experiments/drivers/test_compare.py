"""Comparisons: their runs, table, report and pictures."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from matplotlib import image

from experiments.drivers import compare
from experiments.errors import UserError
from experiments.runs import loop
from experiments.runs.recorder import DivergedError
from tests.experiments import small


def make(methods=("dense", "set", "rigl", "gmp"), seeds=(0, 1)):
  config = compare.defaults()
  config.name = "small"
  config.seeds = seeds
  base = small.get_config("rigl")
  config.base = base
  config.methods = methods
  config.algorithms = {
    name: small.get_config(name).algorithm for name in small.ALGORITHMS
  }
  config.expected = (("set", "rigl"), ("rigl", "dense"), ("x", "rigl"))
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp("compare")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", ["main.py", "--config=a.py", "--workdir=b c"])
    compare.run(make(), str(path))
  return path


@pytest.fixture
def copied(finished, tmp_path):
  """A copy of the finished comparison, for tests that run in it again."""
  return shutil.copytree(finished, tmp_path / "compare")


@pytest.mark.slow
def test_every_run_is_there_and_the_table_holds_their_numbers(finished):
  comment, *lines = (finished / "table.csv").read_text().splitlines()
  assert comment == (
    "# python -m experiments.main --config=a.py '--workdir=b c'"
  )
  table = {row["method"]: row for row in csv.DictReader(lines)}
  assert list(table) == ["dense", "set", "rigl", "gmp"]
  for name, row in table.items():
    finals = [
      json.loads((finished / f"runs/{name}-{seed}/finished.json").read_text())
      for seed in (0, 1)
    ]
    accuracy = [100 * f["metrics"]["accuracy"] for f in finals]
    assert row["test accuracy [%]"] == (
      f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f}"
    )
    assert row["runs"] == "2"
    metrics = finals[0]["metrics"]
    assert row["active weights"] == f"{metrics['nnz']:,} of {metrics['size']:,}"


@pytest.mark.slow
def test_flops_follow_the_cost_model(finished):
  lines = (finished / "table.csv").read_text().splitlines()[1:]
  table = {row["method"]: row for row in csv.DictReader(lines)}

  def cost(name, kind):
    return float(table[name][f"{kind} FLOPs"].rstrip("x"))

  assert cost("dense", "training") == cost("dense", "inference") == 1
  # 64-8-10: each weight costs the same, so FLOPs go with the weights kept.
  assert cost("set", "inference") == pytest.approx(0.2, abs=2e-3)
  assert cost("set", "training") == cost("set", "inference")
  sparse, period = cost("set", "inference"), small.MOVES["delta_t"]
  rigl = (3 * sparse * period + 2 * sparse + 1) / (3 * (period + 1))
  assert cost("rigl", "training") == pytest.approx(rigl, abs=2e-3)
  assert cost("gmp", "inference") == cost("set", "inference")
  assert cost("set", "training") < cost("gmp", "training") < 1


@pytest.mark.slow
def test_the_report_shows_table_order_layers_and_pictures(finished):
  text = (finished / "report.md").read_text()
  assert "| RigL |" in text
  assert "RigL - SET:" in text
  assert "dense1/kernel" in text or "logits/kernel" in text
  for name in ("accuracy.png", "layers.png", "churn.png"):
    assert f"({name})" in text
    picture = image.imread(finished / name)[..., :3]
    assert picture.shape[0] > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(copied, monkeypatch, capsys):
  before = (copied / "report.md").read_bytes()
  monkeypatch.setattr(loop, "run", None)  # a step would be an error
  compare.run(make(), str(copied))
  assert (copied / "report.md").read_bytes() == before
  assert "small: 2 seeds" in capsys.readouterr().out


@pytest.mark.slow
def test_another_base_is_refused_and_seeds_may_join(copied):
  other = make()
  other.base.batch_size = 16
  with pytest.raises(UserError, match=r"base\.batch_size: 32 -> 16"):
    compare.run(other, str(copied))
  before = (copied / "runs/set-1/metrics.jsonl").stat().st_mtime_ns
  compare.run(make(methods=("set",), seeds=(0, 1, 2)), str(copied))
  assert (copied / "runs/set-2/finished.json").exists()
  assert (copied / "runs/set-1/metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"methods": ()}, "nothing to run"),
    ({"seeds": ()}, "nothing to run"),
    ({"methods": ("rigel",)}, "rigl"),
  ],
)
def test_a_comparison_of_nothing_is_an_error(changes, message, tmp_path):
  with pytest.raises(UserError, match=message):
    compare.run(make(**changes), str(tmp_path / "a"))
  assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_seed_that_diverges_is_told_and_does_not_stop_the_others(
  copied, monkeypatch, capsys
):
  real = compare.train.train

  def train(config, folder, **options):
    if folder.name in ("set-1", "gmp-0", "gmp-1"):
      raise DivergedError("the loss is not finite at step 3; there is more")
    return real(config, folder, **options)

  monkeypatch.setattr(compare.train, "train", train)
  compare.run(make(), str(copied))
  _, *lines = (copied / "table.csv").read_text().splitlines()
  table = {row["method"]: row for row in csv.DictReader(lines)}
  assert list(table) == ["dense", "set", "rigl", "gmp"]
  assert table["set"]["test accuracy [%]"].endswith(" (1 of 2 diverged)")
  assert table["gmp"]["test accuracy [%]"] == "- (2 of 2 diverged)"
  assert table["gmp"]["training FLOPs"] == table["set"]["95 % interval"] == "-"
  for said in (capsys.readouterr().out, (copied / "report.md").read_text()):
    assert "3 of 8 runs have no number" in " ".join(said.split())
    assert "set, seed 1 (the loss is not finite at step 3" in said
    assert "1 of 2 seeds diverged: no verdict" in said
  monkeypatch.setattr(
    compare.train, "train", lambda *a, **k: train(1, copied / "set-1")
  )
  with pytest.raises(UserError, match="all runs diverged: the loss is not"):
    compare.run(make(), str(copied))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
  """Methods at two sparsities, one of them from masks found before training."""
  path = tmp_path_factory.mktemp("several")
  config = make(("dense", "rigl", "rigl from snip", "rows"), seeds=(0, 1))
  config.algorithms["rigl from snip"] = config.algorithms.rigl
  config.algorithms.rows = config.algorithms.rigl
  blocks = {"pattern": {"name": "blocks", "shape": [1, 1]}}
  config.settings = {"rows": ((0.5, blocks),)}
  config.initial = {"rigl from snip": {"name": "snip", "batches": 2}}
  config.sparsities = (0.5, 0.8)
  config.expected = (("rigl", "dense"), ("rigl", "rigl from snip"))
  config.base.steps = 8
  compare.run(config, str(path))
  return path


@pytest.mark.slow
def test_every_method_is_run_at_every_sparsity(several):
  found = {
    folder.name: json.loads((folder / "finished.json").read_text())["metrics"]
    for folder in (several / "runs").iterdir()
  }
  assert {name: m["density"] for name, m in found.items()} == {
    f"{name}-{seed}": pytest.approx(density, abs=2e-3)
    for name, density in [
      ("dense", 1),
      ("rigl-0.5", 0.5),
      ("rigl-0.8", 0.2),
      ("rigl_from_snip-0.5", 0.5),
      ("rigl_from_snip-0.8", 0.2),
      ("rows-0.5", 0.5),
    ]
    for seed in (0, 1)
  }
  configs = [
    json.loads((several / "runs" / name / "config.json").read_text())
    for name in ("rigl-0.8-0", "rigl_from_snip-0.8-0")
  ]
  assert [c["config"]["initial"]["name"] for c in configs] == ["drawn", "snip"]


@pytest.mark.slow
def test_a_table_has_a_column_per_sparsity(several):
  _, *lines = (several / "sparsities.csv").read_text().splitlines()
  table = list(csv.DictReader(lines))
  assert [row["method"] for row in table] == [
    *("dense", "rigl", "rigl from snip", "rows")
  ]
  assert table[3]["80 %"] == "-"
  assert list(table[0]) == ["method", "50 %", "80 %", "runs"]
  assert table[0]["50 %"] == table[0]["80 %"]  # dense, whatever is asked
  final = [
    json.loads((several / f"runs/rigl-0.8-{seed}/finished.json").read_text())
    for seed in (0, 1)
  ]
  accuracy = [100 * f["metrics"]["accuracy"] for f in final]
  assert table[1]["80 %"] == (
    f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f}"
  )
  text = (several / "report.md").read_text()
  assert "RigL from SNIP, 80 % - RigL, 80 %:" in text
  assert "dense - RigL, 50 %:" in text
  assert "(sparsities.png)" in text
  picture = image.imread(several / "sparsities.png")[..., :3]
  assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
