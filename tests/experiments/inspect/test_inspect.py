"""Looking inside finished runs: what is found, and what is written of it."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn
from matplotlib import image

from experiments import models
from experiments.config import parts
from experiments.errors import UserError
from experiments.inspect import __main__ as inspect
from experiments.inspect import measure, sections
from experiments.plots import style
from experiments.runs import finished, programs, train
from tests.experiments import small

PICTURES = (
  *("sensitivity.png", "mask_overlap.png", "mask_motion.png"),
  *("mask_motion_start.png", "explored.png"),
  *("mask_layers.png", "gradient_flow.png", "dead_units.png"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A comparison of SET, twice, and a dense run; one run is not finished."""
  path = tmp_path_factory.mktemp("inspect")
  for name, seed in (("set", 0), ("set", 1), ("dense", 0)):
    config = small.get_config(name)
    config.seed = seed
    train.train(config, path / f"runs/{name}-{seed}")
  shutil.copytree(path / "runs/dense-0", path / "runs/gmp-0")
  (path / "runs/gmp-0/finished.json").unlink()
  (path / "report.md").write_text("# Title\n\nText.\n")
  inspect.run(str(path))
  return path


@pytest.fixture(scope="module")
def runs(root):
  return {one.name: one for one in finished.find(root)}


@pytest.fixture(scope="module")
def sparse(runs):
  return runs["runs/set-0"]


@pytest.fixture(scope="module")
def report(root):
  return (root / "report.md").read_text()


def rows(text, header):
  """The cells of the table whose header begins so, by their first one."""
  table = text[text.index(f"| {header} |") :].split("\n\n")[0].splitlines()
  cells = [line[2:-2].split(" | ") for line in table[2:]]
  return {first: rest for first, *rest in cells}


# What is found.


@pytest.mark.slow
def test_finished_runs_are_found_in_order(root, runs, tmp_path):
  assert list(runs) == ["runs/dense-0", "runs/set-0", "runs/set-1"]
  for name in ("b/level-10", "b/level-2", "b/level-2-child", "a", "c"):
    shutil.copytree(root / "runs/set-1", tmp_path / "seed-1" / name)
  head = {"config": {"driver": "lottery", "methods": ["c", "b"]}}
  (tmp_path / "config.json").write_text(json.dumps(head))
  (tmp_path / "finished.json").write_text("{}")
  names = [one.name.removeprefix("seed-1/") for one in finished.find(tmp_path)]
  assert names == ["a", "c", "b/level-2", "b/level-10"]
  assert [one.name for one in finished.find(root / "runs/set-1")] == ["."]


@pytest.mark.parametrize(
  ("name", "method", "stage"),
  [
    ("runs/my_set-3", "my_set", ""),
    ("runs/set-0.8-3", "set", "80 %"),
    ("seed-3/dense", "dense", ""),
    ("seed-3/imp/level-07", "imp", "level 7"),
    ("a/b", "a/b", ""),
    (".", "set", ""),
  ],
)
def test_names_tell_method_and_stage(name, method, stage, tmp_path):
  config = small.get_config("set")
  config.seed = 3
  one = finished._run(tmp_path, tmp_path / name, config)
  assert (one.method, one.stage, one.seed) == (method, stage, 3)


@pytest.mark.parametrize(
  ("title", "method", "stage"),
  [
    ("RigL (ERK), 90 %, seed 3", "RigL (ERK)", "90 %"),
    ("dense, seed 3", "dense", ""),
  ],
)
def test_runs_of_a_sweep_are_named_by_their_rows(
  title, method, stage, tmp_path
):
  config = small.get_config("set")
  config.seed, config.name = 3, title
  one = finished._run(tmp_path, tmp_path / "0123456789ab", config)
  assert (one.method, one.stage) == (method, stage)


@pytest.mark.slow
def test_sensitivity_starts_from_the_loss_of_the_last_evaluation(sparse):
  """Of 360 examples in batches of 100; what fills the last is left out."""
  found = measure.sensitivity(sparse, 1000)
  assert found.examples == 360
  assert found.loss == pytest.approx(sparse.tests[-1]["loss"], rel=1e-5)
  own = {path: 1 - x["nnz"] / x["size"] for path, x in _last(sparse).items()}
  assert found.own == pytest.approx(own)
  for path, losses in found.losses.items():
    kept = np.array(measure.SPARSITIES) <= own[path]
    np.testing.assert_allclose(losses[kept], found.loss, rtol=1e-6)
    assert (losses[~kept] != found.loss).all()
  assert measure.sensitivity(sparse, 150).examples == 200


def _last(one):
  return one.tests[-1]["layers"]


@pytest.mark.slow
def test_gradients_are_those_of_the_first_batches(sparse):
  left = measure.load(sparse)
  found = measure.profile(sparse)
  drawn = measure._examples(sparse).batches(0)
  at = drawn.order[: measure.TRAIN_BATCHES].ravel()
  program = measure._programs(finished.architecture(sparse.config))
  grads = program.add_grads(
    jax.tree.map(np.zeros_like, left.params),
    *(left.params, left.batch_stats, drawn.x[at], drawn.y[at]),
  )
  for path, mask in (
    ("dense1/kernel", left.masks["dense1"]["kernel"]),
    ("dense1/bias", np.ones(8, bool)),
  ):
    grad = np.asarray(grads["dense1"][path.partition("/")[2]])
    norms = np.linalg.norm(grad[mask]), np.linalg.norm(grad[~mask])
    np.testing.assert_allclose(found.flow[path], norms, rtol=1e-4)
  assert found.counts["dense1/bias"] == (8, 0)
  nnz = _last(sparse)["dense1/kernel"]["nnz"]
  assert found.counts["dense1/kernel"] == (nnz, 512 - nnz)


@pytest.mark.slow
def test_a_unit_is_silent_if_no_test_example_makes_it_fire(sparse, monkeypatch):
  data = parts.dataset(sparse.config.data.to_dict())
  x = np.asarray(data.prepare(data.test[0])).reshape(360, 64)
  fill = np.asarray(data.prepare(np.zeros((1, 8, 8, 1), np.uint8))).ravel()
  kernel = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
  kernel[:, 3] = -1  # most for the black images that fill up the last batch
  kernel[7] = kernel[:, 5] = 0  # without weights
  *_, second, first = np.sort(x @ kernel, 0)
  bias = np.full(8, 0.1, np.float32)
  bias[2] = -100
  bias[3] = -(first[3] + fill @ kernel[:, 3]) / 2
  bias[4] = -(first[4] + second[4]) / 2  # fires for one example
  assert first[3] < fill @ kernel[:, 3]
  assert (x @ kernel)[:, 4].argmax() < 300  # which is not in the last batch
  left = measure.load(sparse)
  dense1 = {"kernel": kernel, "bias": bias}
  masks = {"kernel": kernel != 0, "bias": left.masks["dense1"]["bias"]}
  left = left._replace(
    params={**left.params, "dense1": dense1},
    masks={**left.masks, "dense1": masks},
  )
  monkeypatch.setattr(measure, "load", lambda one: left)
  found = measure.profile(sparse)
  assert found.silent.keys() == {"dense1"}
  assert np.flatnonzero(found.silent["dense1"]).tolist() == [2, 3]
  dead = found.dead["dense1/kernel"]
  assert np.flatnonzero(dead.outputs).tolist() == [5]
  assert np.flatnonzero(dead.inputs).tolist() == [7]


@pytest.mark.slow
def test_params_are_those_that_the_model_runs_with(sparse, monkeypatch):
  """What is inactive counts as zero, also where a method keeps its value."""
  left = measure.load(sparse)
  kept = left._replace(params=jax.tree.map(np.ones_like, left.params))
  monkeypatch.setattr(train, "train", lambda config, folder: kept)
  params = measure.load(sparse).params
  mask = left.masks["dense1"]["kernel"]
  np.testing.assert_array_equal(params["dense1"]["kernel"] != 0, mask)


class Residual(nn.Module):
  """Of its layers, `norm` and `dense` are followed by a ReLU at once."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(8, name="into_norm")(x.reshape(len(x), -1))
    x = nn.relu(nn.BatchNorm(not train, name="norm")(x))
    x = nn.relu(x + nn.Dense(8, name="into_sum")(x))
    x = nn.relu(nn.Dense(8, name="dense")(x))
    return nn.Dense(self.num_classes, name="logits")(x)


def test_layers_that_feed_a_norm_or_a_sum_are_not_asked(monkeypatch):
  monkeypatch.setitem(models.MODELS, "residual", Residual)
  config = small.get_config("dense")
  config.model = {"name": "residual"}
  one = finished.Run(".", None, config, "", "", [])
  x, y = next(iter(measure._examples(one).tests()))
  variables = programs.get(config).draw(parts.streams(0))
  program = measure._programs(finished.architecture(config))
  layers = program.fires(variables, x, y)
  assert len(layers) == 5
  assert sorted(measure._rectified(one, layers, x)) == ["dense", "norm"]


@pytest.mark.slow
def test_masks_are_compared_where_one_thing_differs(sparse):
  def one(method, level, seed):
    config = sparse.config.copy_and_resolve_references()
    config.seed = seed
    return sparse._replace(config=config, method=method, stage=f"level {level}")

  runs = [
    one(method, level, seed)
    for method in "ab"
    for seed in (0, 1)
    for level in (1, 2, 3)
  ]
  dense = sparse._replace(tests=[{"density": 1.0}])
  leaders = finished.of_first_seeds(runs)
  assert [one.title for one in leaders] == [
    "a, level 3, seed 0", "b, level 3, seed 0"
  ]  # fmt: skip
  levels = ["level 1", "level 2", "level 3"]
  found = list(measure.comparable_groups([*runs, dense], [*leaders, dense]))
  assert [(title, names) for title, names, _ in found] == [
    ("methods, level 3", ["a", "b"]),
    ("seeds of a, level 3", ["0", "1"]),
    ("a, seed 0", levels),
    ("seeds of b, level 3", ["0", "1"]),
    ("b, seed 0", levels),
  ]
  for title, names, group in found[1:]:
    for name, each in zip(names, group, strict=True):
      assert name in (each.stage, str(each.seed))
      assert title in (f"seeds of {each.label}", f"{each.method}, seed 0")
  assert finished.select([*runs, dense], None) is runs[-1]


def test_overlap_over_steps_follows_from_the_counts():
  """By hand: 8, then 6 of which 3 new, then 4 of which 1 new; layer b is 2."""

  def record(nnz, churn, since):
    layers = {
      "a": {"nnz": nnz, "churn": churn, "churn_since_start": since},
      "b": {"nnz": 2, "churn": 0.0, "churn_since_start": 0.0},
    }
    shares = (nnz * churn / (nnz + 2), nnz * since / (nnz + 2))
    return {
      "layers": layers, "churn": shares[0], "churn_since_start": shares[1]
    }  # fmt: skip

  tests = [record(8, 0, 0), record(6, 3 / 6, 3 / 6), record(4, 1 / 4, 2 / 4)]
  for key, path, wanted in (
    ("churn", "a", [3 / 11, 3 / 7]),
    ("churn", "b", [1, 1]),
    ("churn", None, [5 / 13, 5 / 9]),
    ("churn_since_start", "a", [3 / 11, 2 / 10]),
    ("churn_since_start", None, [5 / 13, 4 / 12]),
  ):
    np.testing.assert_allclose(measure.iou_over_steps(tests, key, path), wanted)


def test_chance_is_the_overlap_of_random_masks():
  a = {"w": np.arange(10) < 5, "b": np.array(True)}
  b = {"w": np.arange(10) < 2, "b": np.array(True)}
  # 10 x 0.1 in common, 10 x (0.5 + 0.2 - 0.1) in either.
  assert measure._chance(a, b) == pytest.approx(1 / 6)
  assert measure._chance({**a, "w": np.array(True)}, b) == pytest.approx(0.2)


# What is written.


@pytest.mark.slow
def test_the_report_holds_what_was_found(root, report, sparse, runs):
  assert report.startswith("# Title\n\nText.\n\n<!-- instruments -->\n")
  assert report.endswith("<!-- end instruments -->\n")
  assert "networks of 3 finished runs." in report
  assert (
    "layer by layer: `runs/set-1` (SET, seed 1)" in report
  )  # the last sparse one
  layers = ["dense1/kernel", "logits/kernel"]
  pruned = rows(report, "layer | zeros")
  assert list(pruned) == layers
  found = measure.sensitivity(runs["runs/set-1"], 1000)
  for layer, cells in pruned.items():
    assert cells[-1] == f"{found.losses[layer][-1] - found.loss:+.4f}"
    assert cells[1] == "as it is"
  masks = [measure.load(runs[f"runs/set-{seed}"]).masks for seed in (0, 1)]
  a, b = (
    np.concatenate([np.ravel(m[k]["kernel"]) for k in ("dense1", "logits")])
    for m in masks
  )
  seeds = rows(report, "compared")["seeds of SET"]
  assert seeds[:2] == ["2", f"{(a & b).sum() / (a | b).sum():.3f}"]
  moved = [
    measure.iou_over_steps(runs[f"runs/set-{seed}"].tests, "churn_since_start")[
      -1
    ]
    for seed in (0, 1)
  ]
  assert list(rows(report, "method")) == ["SET"]
  runs_moved, _, overlap, _ = rows(report, "method")["SET"]
  assert (runs_moved, overlap) == ("2", f"{np.mean(moved):.3f}")
  flows = rows(report, "run | active weights")
  active, inactive, *norms = map(
    float, (cell.replace(",", "") for cell in flows["SET, seed 1"])
  )
  wanted = norms[0] / active**0.5, norms[1] / inactive**0.5
  np.testing.assert_allclose(norms[2:], wanted, rtol=0.01)
  assert list(flows) == ["dense, seed 0", "SET, seed 0", "SET, seed 1"]
  assert flows["dense, seed 0"][3] == flows["dense, seed 0"][5] == ""
  dead = rows(report, "run | no weight in")["SET, seed 1"]
  assert re.fullmatch(r"\d+ of 18", dead[0])
  assert re.fullmatch(r"\d+ of 8", dead[2])


@pytest.mark.slow
def test_there_is_a_picture_of_everything(root, report):
  for name in PICTURES:
    assert f"({name})" in report
    picture = image.imread(root / name)
    assert min(picture.shape[:2]) > 150
    assert len(np.unique(picture[::5, ::5, 0])) > 20


@pytest.mark.slow
def test_once_more_replaces_the_section_and_nothing_else(
  root, report, capsys, monkeypatch, tmp_path
):
  monkeypatch.setattr(style, "save", lambda figure, file: None)
  root = shutil.copytree(root, tmp_path / "inspect")
  (root / "report.md").write_text(report + "\nMore.\n")
  inspect.run(str(root), name="runs/set-0")
  again = (root / "report.md").read_text()
  assert again.startswith("# Title\n\nText.\n\n<!-- instruments -->\n")
  assert again.endswith("<!-- end instruments -->\nMore.\n")
  assert again.count("## Instruments") == 1
  assert "layer by layer: `runs/set-0` (SET, seed 0)" in again
  assert "set, seed 0" in capsys.readouterr().out


@pytest.mark.slow
def test_one_dense_run_has_a_report_too(runs, tmp_path, monkeypatch):
  monkeypatch.setattr(style, "save", lambda figure, file: None)
  shutil.copytree(runs["runs/dense-0"].folder, tmp_path / "run")
  inspect.run(str(tmp_path / "run"))
  text = (tmp_path / "run/report.md").read_text()
  assert text.startswith("# run\n\n<!-- instruments -->\n")
  assert "Where masks agree" not in text
  assert "How masks moved" not in text


@pytest.mark.slow
def test_recorded_exploration_is_shown(runs, tmp_path, monkeypatch):
  def with_explored(i, record):
    layers = {
      p: {**x, "explored": 0.25 * i} for p, x in record["layers"].items()
    }
    return {**record, "explored": 0.125 * i, "layers": layers}

  monkeypatch.setattr(style, "save", lambda figure, file: None)
  one = runs["runs/set-0"]
  assert len(one.tests) == 4
  tests = [with_explored(i, record) for i, record in enumerate(one.tests)]
  one = one._replace(tests=tests)
  text = sections.motion_section(tmp_path, [one], [one], one)
  assert rows(text, "method")["SET"][-1] == "0.375"
  assert rows(text, "layer")["dense1/kernel"][-1] == "0.750"


# What is wrong.


@pytest.mark.slow
def test_what_is_wrong_is_told(root, tmp_path):
  with pytest.raises(UserError, match=r"not exist. Give another --workdir"):
    inspect.run(str(tmp_path / "missing"))
  with pytest.raises(UserError, match="is a file, not a directory"):
    inspect.run(str(root / "report.md"))
  head = {"config": {"driver": "prune_llm"}}
  (tmp_path / "config.json").write_text(json.dumps(head))
  with pytest.raises(UserError, match="Runs of the driver prune_llm"):
    inspect.run(str(tmp_path))
  shutil.copytree(root / "runs/gmp-0", tmp_path / "run")
  with pytest.raises(UserError, match=r"no finished run\. 1 began to train"):
    inspect.run(str(tmp_path))
  with pytest.raises(UserError, match="did you mean 'runs/set-0'"):
    inspect.run(str(root), name="set-0")
  (tmp_path / "run/finished.json").touch()
  (tmp_path / "run/config.json").write_text("{")
  with pytest.raises(UserError, match=r"config.json cannot be read"):
    inspect.run(str(tmp_path))


def test_the_command_prints_errors_without_a_traceback(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "experiments.inspect", f"--workdir={tmp_path}"],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 1
  assert done.stderr.startswith(f"Error: {tmp_path} holds no finished run.")
  assert "Traceback" not in done.stderr
