"""The trainer in one process: what a run writes, and that it can be resumed."""

import functools
import itertools
import os
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

import sparsejax
from experiments import models
from experiments.config import calling
from experiments.config import parts as build
from experiments.errors import UserError
from experiments.runs import (
  batches,
  checkpoints,
  loop,
  metrics,
  programs,
  signals,
  train,
  workdir,
)
from tests.experiments import small
from tests.experiments.interrupted import (
  Crash,
  assert_same_run,
  crash_at,
  stop_at,
)
from tests.marks import few, slow

pytestmark = pytest.mark.core


def make(algorithm="rigl", /, **changes):
  config = small.get_config(algorithm)
  for key, value in changes.items():
    config[key] = value
  return config


@pytest.mark.parametrize("algorithm", few(small.ALGORITHMS, ["rigl", "gmp"]))
def test_a_crashed_run_ends_in_the_same_bits(algorithm, tmp_path):
  config = make(algorithm)
  whole = train.train(config, tmp_path / "whole")
  part = tmp_path / "part"
  for steps in ((5, 6), (8, 10), (15, 20)):
    with pytest.raises(Crash):
      train.train(config, part, progress=crash_at(steps))
  resumed = train.train(config, part)
  assert_same_run(tmp_path / "whole", part)
  again = train.train(config, part)  # reads what is there
  for result in (resumed, again):
    assert result.metrics == whole.metrics
    assert result.history == whole.history
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, result.masks, whole.masks)


def test_a_crash_right_after_a_save(tmp_path, monkeypatch):
  """When the newest record, of step 16, is not due to be written yet."""
  train.train(make(), tmp_path / "whole")
  save = checkpoints.save

  def save_and_crash(manager, step, state, records):
    saved = save(manager, step, state, records)
    if step == 18:
      raise Crash
    return saved

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, "save", save_and_crash)
    with pytest.raises(Crash):
      train.train(make(), tmp_path / "part")
  train.train(make(), tmp_path / "part")
  assert_same_run(tmp_path / "whole", tmp_path / "part")


class Pace:
  """Stretches of lengths that no clock chose."""

  def __init__(self, lengths):
    self.lengths = itertools.cycle(lengths)

  @property
  def steps(self):
    return dict.fromkeys((False, True), next(self.lengths))

  def started(self, state, steps, moving, began):
    pass


@pytest.fixture
def as_on_a_gpu(monkeypatch):
  """Programs and stretches that a GPU has, in loops of three steps."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(programs, "_AT_A_TIME", 3)
  programs._get.cache_clear()
  yield
  programs._get.cache_clear()


def moving_often(mode):
  """Pruning whose updates follow one another."""
  config = make("gmp")
  config.mode = mode
  config.algorithm.delta_t = 1
  config.algorithm.end = 9
  return config


@pytest.mark.parametrize(
  "config", [make(), slow(moving_often("masked")), slow(moving_often("packed"))]
)
def test_bits_do_not_depend_on_where_stretches_are_cut(
  config, tmp_path, monkeypatch
):
  """Nor on stops in the middle of what would have been one stretch."""
  whole, part = tmp_path / "whole", tmp_path / "part"
  monkeypatch.setattr(loop, "_Pace", functools.partial(Pace, (10**6,)))
  train.train(config, whole)
  monkeypatch.setattr(loop, "_Pace", functools.partial(Pace, (1, 3, 2)))
  for step in (7, 13):
    with pytest.raises(signals.Stopped, match="of 24, which is saved"):
      train.train(config, part, progress=stop_at(range(step, 24)))
  train.train(config, part)
  assert_same_run(whole, part)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
  "config", [moving_often("masked"), slow(make()), slow(moving_often("packed"))]
)
def test_bits_do_not_depend_on_cuts_into_loops(config, tmp_path, monkeypatch):
  test_bits_do_not_depend_on_where_stretches_are_cut(
    config, tmp_path, monkeypatch
  )


@pytest.mark.slow
def test_the_order_does_not_depend_on_how_much_is_drawn(tmp_path, monkeypatch):
  train.train(make(), tmp_path / "whole")
  monkeypatch.setattr(batches, "_block", lambda config, n: 7)
  train.train(make(), tmp_path / "part")
  assert_same_run(tmp_path / "whole", tmp_path / "part")


def test_a_crash_between_the_last_save_and_the_end(tmp_path):
  config = make()
  train.train(config, tmp_path)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  (tmp_path / "finished.json").unlink()
  train.train(config, tmp_path, progress=crash_at(range(99)))
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  assert (tmp_path / "finished.json").exists()


def test_a_run_writes_what_it_should(tmp_path):
  result = train.train(make(), tmp_path)
  assert result.history == metrics.read(tmp_path)
  at = {split: [] for split in ("train", "test")}
  for record in result.history:
    at[record["split"]].append(record["step"])
  assert at == {"train": [5, 10, 15, 20, 24], "test": [0, 8, 16, 24]}
  steps = [record["step"] for record in result.history]
  assert steps == sorted(steps)

  first, _, middle, last = (r for r in result.history if r["split"] == "test")
  assert result.metrics == {
    k: v for k, v in last.items() if k not in ("step", "split")
  }
  nnz = sparsejax.nnz(result.masks)
  dense = sum(p.size for p in jax.tree.leaves(result.params) if p.ndim == 1)
  assert last["nnz"] == nnz + dense
  assert last["size"] == sum(p.size for p in jax.tree.leaves(result.params))
  assert last["density"] == pytest.approx(sparsejax.density(result.masks))
  assert sum(layer["nnz"] for layer in last["layers"].values()) == nnz
  assert first["churn"] == first["churn_since_start"] == 0
  assert 0 < middle["churn"] < middle["churn_since_start"] < 1
  for params, mask in zip(
    *map(jax.tree.leaves, (result.params, result.masks)), strict=True
  ):
    assert not np.any(params[~np.broadcast_to(mask, params.shape)])


@pytest.mark.slow
def test_the_whole_test_set_counts_once(tmp_path):
  """Whatever the size of the batches that it is evaluated in."""
  parts, whole = (
    train.train(make(eval_batch_size=n), tmp_path / str(n)).metrics
    for n in (100, 360)
  )
  assert parts["accuracy"] == whole["accuracy"]
  assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
  assert (parts["accuracy"] * 360) % 1 == pytest.approx(0, abs=1e-6)


def test_seeds_share_programs_and_differ(tmp_path):
  train.train(make(), tmp_path / "0")
  program = programs.get(make())
  compiled = small.compiled(program)
  train.train(make(seed=1), tmp_path / "1")
  assert programs.get(make(seed=1)) is program
  assert small.compiled(program) == compiled
  a, b = (tmp_path / seed / "metrics.jsonl" for seed in "01")
  assert a.read_bytes() != b.read_bytes()


def test_resuming_compiles_nothing_new(tmp_path):
  config = make(name="resumed")
  with pytest.raises(Crash):
    train.train(config, tmp_path, progress=crash_at([15]))
  program = programs.get(config)
  compiled = small.compiled(program)
  train.train(config, tmp_path)
  assert small.compiled(program) == compiled


def test_training_learns_and_does_not_depend_on_how_it_is_cut(tmp_path):
  model = {"name": "lenet_300_100", "hidden": (32,)}
  changes = {"steps": 300, "checkpoint_every": 0, "model": model}
  cut = {"eval_every": 300, "log_every": 7}
  one = train.train(make("set", **changes, **cut), tmp_path / "one")
  cut = {"eval_every": 50, "log_every": 300}
  two = train.train(make("set", **changes, **cut), tmp_path / "two")
  jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
  assert one.metrics["accuracy"] > 0.6
  assert two.history[0]["accuracy"] < 0.3


class Tiny(nn.Module):
  """All that a model can ask of the trainer."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3), strides=2, name="conv1")(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
    return nn.Dense(self.num_classes, name="logits")(x)


@pytest.mark.slow
def test_convolutions_batch_norm_and_dropout_resume(tmp_path, monkeypatch):
  keys = []

  def augment(key, x):
    data = jax.random.key_data(key)
    jax.debug.callback(lambda k: keys.append(tuple(k.tolist())), data)
    return x + 0.1 * jax.random.normal(key, x.shape)

  dataset = build.dataset({"name": "digits"})._replace(augment=augment)
  monkeypatch.setattr(build, "dataset", lambda options: dataset)
  monkeypatch.setitem(models.MODELS, "tiny", Tiny)
  config = make(
    model={"name": "tiny"}, steps=12, augment=True, label_smoothing=0.1
  )
  whole = train.train(config, tmp_path / "whole")
  assert len(set(keys)) == 12  # another one in every step
  with pytest.raises(Crash):
    train.train(config, tmp_path / "part", progress=crash_at([10]))
  train.train(config, tmp_path / "part")
  assert_same_run(tmp_path / "whole", tmp_path / "part")
  for x in jax.tree.leaves(whole.batch_stats):
    assert np.any((x != 0) & (x != 1))


# The first is seen when a checkpoint is due, the other when a record is.
@pytest.mark.parametrize(("every", "good"), [(6, 12), (11, 11)])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, every, good):
  config = make(
    optimizer={"name": "sgd", "momentum": 0.0},
    schedule={
      "name": "piecewise",
      "learning_rate": 0.1,
      "boundaries": (14,),
      "factor": 1e38,
    },
    checkpoint_every=every,
  )
  for _ in range(2):  # the same command meets the same end
    with pytest.raises(
      UserError,
      match=rf"loss is not finite at step 15; .* good .* of step {good}, in",
    ):
      train.train(config, tmp_path)
    assert not (tmp_path / "finished.json").exists()
    manager = checkpoints.open_manager(tmp_path / "checkpoints")
    assert manager.latest_step() == good
    manager.close()
    train_steps = [
      r["step"] for r in metrics.read(tmp_path) if r["split"] == "train"
    ]
    assert train_steps == [5, 10, 15]


def test_params_that_are_not_finite_are_not_saved(tmp_path):
  """The loss of the last step before a checkpoint says nothing of them."""
  config = make(
    optimizer={"name": "sgd", "momentum": 0.0},
    schedule={
      "name": "piecewise",
      "learning_rate": 0.1,
      "boundaries": (10,),
      "factor": float("inf"),
    },
    algorithm={"name": "dense"},
    checkpoint_every=12,
    log_every=1,
  )
  with pytest.raises(UserError, match=r"not finite .* no checkpoint yet"):
    train.train(config, tmp_path)
  assert not os.listdir(tmp_path / "checkpoints")


@pytest.mark.parametrize("every", [8, 24])  # at the end, too
def test_lost_zeros_end_the_run_and_are_saved(every, tmp_path, monkeypatch):
  config = make(
    name="lost", batch_size=31, eval_every=every, checkpoint_every=0
  )
  program = programs.get(config)

  def leaky(state, batches, until):
    state = program.ordinary.many(state, batches, until)
    params = state.params
    last = {k: v + 1e-9 for k, v in params["dense1"].items()}
    return state._replace(params={**params, "dense1": last})

  leaking = program.ordinary._replace(many=leaky)
  monkeypatch.setattr(
    programs, "get", lambda config: program._replace(ordinary=leaking)
  )
  with pytest.raises(UserError, match=r"not 0: \d+ of dense1/kernel\. "):
    train.train(config, tmp_path)
  manager = checkpoints.open_manager(tmp_path / "checkpoints")
  saved = manager.latest_step()
  manager.close()
  assert saved > 0
  assert not (tmp_path / "finished.json").exists()
  monkeypatch.undo()  # what is saved is not gone on from
  with pytest.raises(UserError, match=rf"{saved} cannot .* dense1/kernel: \d+"):
    train.train(config, tmp_path)
  assert not (tmp_path / "finished.json").exists()


def test_a_checkpoint_of_another_sparsity_is_not_gone_on_from(tmp_path):
  """As one that an earlier version wrote, with budgets of another kind."""
  config = make(steps=4)
  state = train.first_state(config, programs.get(config))
  tx = build.transformation(config, jax.random.key(0))
  train.check_zeros_kept(tmp_path, state, tx)
  config.algorithm.sparsity = 0.25
  tx = build.transformation(config, jax.random.key(0))
  with pytest.raises(UserError, match=r"budget of \d+ .* asks for \d+, 0\.2"):
    train.check_zeros_kept(tmp_path, state, tx)


def test_a_run_says_what_leaves_were_taken_for(tmp_path):
  config = make(steps=4)
  train.train(config, tmp_path)
  lines = (tmp_path / "leaves.md").read_text().splitlines()
  rows = {line.split()[1]: line for line in lines if "dense1/" in line}
  assert "weight, 64 -> 8" in rows["dense1/kernel"]
  assert "81.45 %" in rows["dense1/kernel"]  # 95 of 512, by ERK
  assert "bias" in rows["dense1/bias"]
  assert rows["dense1/bias"].endswith("dense |")


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_time_and_no_bits(tmp_path, caplog):
  config = make("set")
  train.train(config, tmp_path / "whole")
  part = tmp_path / "part"
  with pytest.raises(Crash):
    train.train(config, part, progress=crash_at([20]))
  for file in (part / "checkpoints" / "18").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  train.train(config, part)
  assert "of step 18 is damaged" in caplog.text
  assert "from that of step 12" in caplog.text
  assert_same_run(tmp_path / "whole", part)


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("sparsity", 0.9, "algorithm.sparsity: 0.8 -> 0.9"),
    ("distribution", "uniform", 'distribution: (not set) -> "uniform"'),
    ("pattern", {"name": "fan_in"}, 'pattern.name: (not set) -> "fan_in"'),
    (None, None, "seed: 0 -> 1"),
  ],
)
def test_another_config_is_refused(key, value, says, tmp_path):
  """Both are named, and what is there stays as it is."""
  config = make()
  workdir.ensure_config(tmp_path, calling.plain(config))
  before = (tmp_path / "config.json").read_bytes()
  if key:
    config.algorithm[key] = value
  else:
    config.seed = 1
  with pytest.raises(UserError, match=re.escape(says)):
    train.train(config, tmp_path)
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
  """Before anything is written, so that another may be tried there."""
  n = len(build.dataset({"name": "digits"}).train[1])
  says = f"batch_size is {n + 1}, but data set digits has {n} examples"
  with pytest.raises(UserError, match=says):
    train.train(make(batch_size=n + 1), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  assert train.train(make(batch_size=n, steps=4), tmp_path / "run").metrics


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"schedule.learning_rate": "0.1"}, "learning_rate is '0.1', wanted a num"),
    ({"schedule.learning_rate": None}, "learning_rate is None, wanted a num"),
    ({"algorithm.sparsity": "0.9"}, "sparsity is '0.9', wanted a number"),
    ({"algorithm.prunable": "("}, r"prunable is '\(': missing \)"),
    ({"model.hidden": "8"}, r"config\.model .*'8'.* on data set digits"),
    ({"model.hidden": 8}, r"config\.model .*8.* on data set digits"),
  ],
)
def test_values_that_cannot_be_are_refused_in_words(change, says, tmp_path):
  config = make()
  for key, value in change.items():
    part, name = key.split(".")
    with config[part].unlocked(), config[part].ignore_type():
      config[part][name] = value
  with pytest.raises(UserError, match=says):
    train.train(config, tmp_path)


@pytest.mark.parametrize(
  ("file", "text", "says"),
  [
    ("finished.json", "{}", "holds no metrics"),
    ("config.json", "{", "cannot be read"),
    ("checkpoints", "", "holds a run but no config"),
  ],
)
def test_files_of_a_workdir_that_are_broken_are_named(
  file, text, says, tmp_path
):
  (tmp_path / file).write_text(text)
  with pytest.raises(UserError, match=says):
    train.train(make(), tmp_path)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(UserError, match="Give a --workdir"):
      train.train(make(), path)


def test_nothing_is_made_for_a_name_that_is_wrong(tmp_path):
  for changes in ({"data": {"name": "digitz"}}, {"model": {"name": "lenet"}}):
    with pytest.raises(UserError, match="did you mean"):
      train.train(make(**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()
