"""Nets whose channels leave: what goes on, how it starts, what is reported."""

import csv
import json
import shutil

import jax
import ml_collections
import numpy as np
import optax
import pytest

from experiments.drivers import shrink
from experiments.errors import UserError
from experiments.runs import shrink as runs
from experiments.runs import train
from tests.experiments import small


def make(**changes):
  config = shrink.defaults()
  config.seeds = (0,)
  config.sparsities = (0.5,)
  config.base = base = small.get_config("gmp")
  base.model = {"name": "lenet_300_100", "hidden": (16, 8)}
  base.optimizer = {"name": "sgd", "momentum": 0.9}
  base.schedule = {"name": "cosine", "learning_rate": 0.1, "end": 0.01}
  base.algorithm = {
    **{"name": "gmp", "sparsity": 0.0, "begin": 4, "end": 12, "delta_t": 4},
    **{"pattern": {"name": "channels"}, "distribution": "uniform"},
    "prunable": r"^dense\d/kernel",
  }
  config.shrink_at = 16
  config.then = {"schedule": {"name": "constant", "learning_rate": 0.01}}
  config.rounds = 2
  for key, value in changes.items():
    config[key] = value
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp("shrink")
  config = make()
  shrink.run(config, str(path))
  return path, config


def result(folder):
  config = json.loads((folder / "config.json").read_text())["config"]
  config = ml_collections.ConfigDict(config)
  return config, train.train(config, folder)


def test_training_goes_on_with_slices_of_net_and_momentum(finished):
  path, config = finished
  folder = path / "runs" / "50-0"
  masked, whole = result(folder / "masked")
  (planned,) = runs.plan(config)[0.5]
  taken = runs._take(planned, folder / "masked")
  # By hand, from the masks.
  kept = [np.asarray(whole.masks[f"dense{i}"]["kernel"]).any(0) for i in (1, 2)]
  assert [k.sum() for k in kept] == [8, 4]
  cuts = {
    "dense1": (slice(None), kept[0]),
    "dense2": (kept[0], kept[1]),
    "logits": (kept[1], slice(None)),
  }
  state = train.state_at(masked, folder / "masked", 16)
  begun = runs._begin(
    planned, folder / "masked", runs.programs.get(smaller(folder))
  )
  (momentum,), (small_momentum,) = (
    [x for x in jax.tree.leaves(s.opt_state, is_leaf=is_trace) if is_trace(x)]
    for s in (state, begun)
  )
  for old, new in (
    (state.params, taken.small["params"]),
    (state.params, begun.params),
    (momentum.trace, small_momentum.trace),
  ):
    for name, (rows, columns) in cuts.items():
      kernel = old[name]["kernel"][rows][:, columns]
      np.testing.assert_array_equal(new[name]["kernel"], kernel)
      np.testing.assert_array_equal(
        new[name]["bias"], old[name]["bias"][columns]
      )
  assert any(map(np.any, jax.tree.leaves(small_momentum)))
  assert begun.step == 16
  assert taken.widths == {"dense1": 8, "dense2": 4}
  assert taken.error < 1e-5


def is_trace(x):
  return isinstance(x, optax.TraceState)


def smaller(folder):
  config, _ = result(folder / "shrunk")
  return config


def test_the_smaller_net_trains_from_there_to_the_end(finished):
  folder = finished[0] / "runs" / "50-0" / "shrunk"
  config, end = result(folder)
  assert config.model.widths.to_dict() == {"dense1": 8, "dense2": 4}
  assert config.schedule.learning_rate == 0.01
  assert [r["step"] for r in end.history if r["split"] == "test"] == [16, 24]
  assert end.params["dense2"]["kernel"].shape == (8, 4)


def test_the_report_has_sizes_speeds_and_accuracies(finished):
  path, _ = finished
  with (path / "table.csv").open() as file:
    (line,) = csv.DictReader(x for x in file if not x.startswith("#"))
  assert line["channels pruned"] == "50 %"
  # 64 x 8 + 8, 8 x 4 + 4, 4 x 10 + 10.
  assert line["parameters"] == "606"
  assert line["forward pass, faster"] == "1.00x"
  metrics = result(path / "runs" / "50-0" / "shrunk")[1].metrics
  assert line["trained on [%]"] == f"{100 * metrics['accuracy']:.2f}"
  assert "dense1 8, dense2 4" in (path / "report.md").read_text()


def test_the_same_command_makes_what_is_missing(finished, tmp_path):
  path, config = finished
  again = tmp_path / "again"
  shutil.copytree(path, again)
  shutil.rmtree(again / "runs" / "50-0" / "shrunk")
  (again / "table.csv").unlink()
  shrink.run(config, str(again))
  assert (again / "table.csv").read_text() == (path / "table.csv").read_text()
  ends = [result(one / "runs" / "50-0" / "shrunk")[1] for one in (path, again)]
  jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"sparsities": ()}, "nothing to run"),
    ({"shrink_at": 24}, "wanted a step between 0 and"),
  ],
)
def test_wrong_configs_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    runs.plan(make(**changes))


def test_a_net_that_is_not_the_masked_one_is_refused(finished, monkeypatch):
  path, config = finished
  (planned,) = runs.plan(config)[0.5]
  monkeypatch.setattr(runs, "_LARGEST_ERROR", -1.0)
  with pytest.raises(UserError, match="computes with its own widths"):
    runs._take(planned, path / "runs" / "50-0" / "masked")


def test_a_unit_leaves_if_all_that_writes_it_is_masked():
  def apply(variables, x):
    w = {name: layer["kernel"] for name, layer in variables["params"].items()}
    stem = x @ w["stem"]
    return (stem + jax.nn.relu(stem @ w["a"]) @ w["b"]) @ w["out"]

  shapes = {"stem": (3, 4), "a": (4, 4), "b": (4, 4), "out": (4, 2)}
  params = {k: {"kernel": np.ones(s, np.float32)} for k, s in shapes.items()}
  variables = {"params": params}
  plan = runs.shrink.trace(apply, variables, np.ones((1, 3)))
  mask = np.ones((4, 4), bool)
  mask[:, 1] = False
  everything = {k: {"kernel": np.array(True)} for k in shapes}
  # What `b` adds to the stem stays, whatever its own mask.
  masks = {**everything, "a": {"kernel": mask}, "b": {"kernel": mask}}
  keep = plan.remove(runs._zeroed(plan, params, masks)).keep
  assert sorted(keep) == [("params/a/kernel", 1), ("params/b/kernel", 0)]
  assert all(list(kept) == [1, 0, 1, 1] for kept in keep.values())
