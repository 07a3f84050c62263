"""Populations: members are what single runs are, all of them in one program."""

import json
import signal

import jax
import numpy as np
import pytest

from experiments.config import grid
from experiments.errors import UserError
from experiments.runs import checkpoints, metrics, signals, train
from experiments.sweep import population
from tests.experiments import small
from tests.marks import slow


def members(algorithm="rigl", seeds=(0, 1), **changes):
  """Configs by name: every seed with each value of what changes."""
  base = small.get_config(algorithm)
  if algorithm == "rigl":
    base.algorithm.fraction = 0.3
  sets = [{"seed": seed} for seed in seeds]
  for key, values in changes.items():
    key = key.replace("__", ".")
    sets = [{**one, key: value} for one in sets for value in values]
  configs = [grid.changed(base, change) for change in sets]
  return {grid.name_of(one): one for one in configs}


def only_group(planned):
  ((name, group),) = population.groups(planned).items()
  assert group == planned
  return name, group


def run(planned, root):
  name, group = only_group(planned)
  return population.run(name, group, root)


def state_of(root, name, config):
  with_manager = checkpoints.open_manager(root / name / "checkpoints")
  like = train.state_shapes(config, population.programs.get(config))
  step, state = checkpoints.restore(with_manager, like)
  with_manager.close()
  assert step == config.steps
  return state


def test_what_may_differ_shares_a_population():
  planned = {
    **members(algorithm__sparsity=(0.5, 0.8)),
    **members(algorithm__fraction=(0.1, 0.2)),
    **members(schedule__learning_rate=(0.1, 0.2)),
  }
  assert len(planned) == 12
  only_group(planned)


@pytest.mark.parametrize(
  "other",
  [
    {"batch_size": (8,)},
    {"steps": (40,)},
    {"algorithm__delta_t": (3,)},
    {"algorithm__distribution": ("uniform",)},
    {"optimizer__b1": (0.8,)},
  ],
)
def test_what_is_compiled_in_does_not(other):
  planned = {**members(), **members(**other)}
  sizes = [len(group) for group in population.groups(planned).values()]
  assert sizes == [2, 2]


def test_a_number_that_only_some_have_keeps_them_apart():
  planned = members()
  for name, one in members(seeds=(5, 6)).items():
    del one.algorithm.fraction
    planned[name] = one
  sizes = [len(group) for group in population.groups(planned).values()]
  assert sizes == [2, 2]


def test_budgets_outside_the_state_keep_sparsities_apart():
  planned = members("gmp", algorithm__sparsity=(0.5, 0.8))
  only_group(planned)
  for one in planned.values():
    one.algorithm.scope = "global"
  assert len(population.groups(planned)) == 2


def test_runs_that_fit_no_population_are_alone():
  planned = members(mode=("packed",))
  assert population.groups(planned) == {
    name: {name: one} for name, one in planned.items()
  }


@pytest.mark.parametrize("algorithm", ["rigl", slow("gmp"), slow("dense")])
def test_members_are_what_single_runs_are(algorithm, tmp_path):
  changes = {}
  if algorithm != "dense":
    changes["algorithm__sparsity"] = (0.5, 0.8)
  planned = members(algorithm, **changes)
  assert run(planned, tmp_path) == {}
  for name, config in planned.items():
    single = train.train(config, tmp_path / "single" / name)
    history = metrics.read(tmp_path / name)
    assert len(history) == len(single.history)
    if jax.default_backend() == "cpu":  # where members are one by one
      assert history[0] == single.history[0]  # the bits they begin with
    for ours, theirs in zip(history, single.history, strict=True):
      assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
      assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
      assert ours.get("nnz") == theirs.get("nnz")
    again = train.train(config, tmp_path / name)  # reads what is there
    assert again.metrics["nnz"] == single.metrics["nnz"]
    for ours, theirs in zip(
      *map(jax.tree.leaves, (again.params, single.params)), strict=True
    ):
      np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("key", "values"),
  [
    ("schedule__learning_rate", (0.02, 0.3)),
    ("algorithm__fraction", (0.05, 0.6)),
  ],
)
def test_every_member_has_its_own_number(key, values, tmp_path):
  planned = members(seeds=(3,), **{key: values})
  run(planned, tmp_path)
  seen = set()
  for name, config in planned.items():
    single = train.train(config, tmp_path / "single" / name)
    last = metrics.read(tmp_path / name)[-1]
    assert last["loss"] == pytest.approx(single.metrics["loss"], rel=1e-4)
    assert last["explored"] == pytest.approx(single.metrics["explored"])
    seen.add(round(last["loss"], 4))
  assert len(seen) == 2


@pytest.mark.slow
def test_devices_make_no_difference(tmp_path, monkeypatch):
  planned = members(seeds=range(3))
  devices = jax.devices()
  for count in (8, 2, 1):
    monkeypatch.setattr(population, "_devices", lambda n=count: devices[:n])
    run(planned, tmp_path / str(count))
  for name, config in planned.items():
    states = [state_of(tmp_path / c, name, config) for c in ("8", "2", "1")]
    for one, two, three in zip(*map(jax.tree.leaves, states), strict=True):
      np.testing.assert_array_equal(one, two)
      np.testing.assert_array_equal(one, three)


@pytest.mark.slow
def test_members_that_train_at_once_are_the_same(tmp_path, monkeypatch):
  """As on an accelerator: by vmap, members of one device together."""
  planned = members(algorithm__sparsity=(0.5, 0.8))
  devices = jax.devices()[:2]
  monkeypatch.setattr(population, "_devices", lambda: devices)
  run(planned, tmp_path / "in turn")
  monkeypatch.setattr(population, "_one_by_one", lambda mesh: False)
  population._compiled.cache_clear()
  try:
    run(planned, tmp_path / "at once")
  finally:
    population._compiled.cache_clear()
  for name in planned:
    pair = [metrics.read(tmp_path / w / name) for w in ("in turn", "at once")]
    assert len(pair[0]) == len(pair[1])
    for a, b in zip(*pair, strict=True):
      assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
      assert a.get("nnz") == b.get("nnz")


@pytest.mark.slow
def test_a_stopped_population_ends_in_the_same_bits(tmp_path, monkeypatch):
  planned = members()
  run(planned, tmp_path / "whole")
  looks = iter([None, signal.SIGTERM])
  real = signals.caught

  monkeypatch.setattr(signals, "caught", lambda: _Given(looks))
  with pytest.raises(signals.Stopped, match="the same command goes on"):
    run(planned, tmp_path / "part")
  monkeypatch.setattr(signals, "caught", real)
  name, group = only_group(planned)
  lost, *kept = group
  with pytest.raises(UserError, match=f"the grid no longer has: {lost}"):
    population.run(name, {n: group[n] for n in kept}, tmp_path / "part")
  # A run that joins the group comes after those that had begun.
  group = {**members(seeds=(7,)), **group}
  assert population.run(name, group, tmp_path / "part") == {}
  for name, config in planned.items():
    parts = [tmp_path / part / name for part in ("whole", "part")]
    one, two = [(p / "metrics.jsonl").read_bytes() for p in parts]
    assert one == two
    states = [state_of(p.parent, name, config) for p in parts]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
      np.testing.assert_array_equal(a, b)
  assert len(list((tmp_path / "part").glob("*/finished.json"))) == 3


class _Given:
  """Signals that come when they are looked for."""

  def __init__(self, looks):
    self.looks = looks

  def __enter__(self):
    return lambda: next(self.looks, None)

  def __exit__(self, *error):
    return False


@pytest.mark.slow
def test_a_member_that_diverges_does_not_stop_the_others(tmp_path):
  planned = members(seeds=(0,), schedule__learning_rate=(0.1, 1e30))
  fine, wild = planned
  failed = run(planned, tmp_path)
  assert failed.keys() == {wild}
  assert "not finite at step" in failed[wild]
  assert not (tmp_path / wild / "finished.json").exists()
  finished = json.loads((tmp_path / fine / "finished.json").read_text())
  assert finished["metrics"]["nnz"] > 0


@pytest.mark.slow
def test_one_program_serves_all_members(tmp_path):
  compiled = []

  def note(key, seconds, **about):
    del seconds
    if key == "/jax/core/compile/backend_compile_duration":
      compiled.append(about.get("fun_name"))

  jax.clear_caches()
  population._compiled.cache_clear()
  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    run(members(seeds=range(3), algorithm__sparsity=(0.5, 0.7)), tmp_path)
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  # Steps on which masks stay, and steps on which they move.
  assert compiled.count("jit(stretch)") == 2
  assert compiled.count("jit(evaluate)") == 1
