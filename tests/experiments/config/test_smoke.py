"""Smoke tests need no data; all other runs do."""

import json
import os

import jax
import numpy as np
import pytest

from experiments import data
from experiments.config import grid, parts, smoke
from experiments.drivers import single
from experiments.errors import UserError
from tests.configs.shipped import CONFIGS, load

pytestmark = pytest.mark.usefixtures("no_data_sets")


@pytest.mark.slow
def test_a_smoke_test_takes_random_arrays_and_says_so(tmp_path, capsys):
  config = load("rigl_mnist", "smoke")
  config.steps = config.log_every = config.eval_every = 4
  one = smoke.with_data(config, "smoke")
  assert "random" not in config.data
  said = capsys.readouterr().err
  assert "random arrays in place of mnist; its numbers mean nothing" in said
  assert "--config.data.data_dir" in said
  single.run(one, tmp_path)
  assert "rigl_mnist (random arrays)" in capsys.readouterr().out
  saved = json.loads((tmp_path / "config.json").read_text())["config"]
  assert saved["data"]["random"] == 2 * config.batch_size
  assert "random arrays" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("arg", ["", "set"])
def test_a_real_run_never_falls_back(arg, capsys):
  config = load("rigl_cifar10", arg)
  assert smoke.with_data(config, arg) is config
  assert not capsys.readouterr().err
  with pytest.raises(data.MissingDataError, match="Prepare it once"):
    parts.dataset(config.data.to_dict())


def test_data_that_are_there_are_taken(tmp_path, monkeypatch):
  config = load("rigl_wikitext103", "smoke")
  for name in ("wiki.train.raw", "wiki.valid.raw"):
    (tmp_path / name).write_bytes(bytes(300))
  config.data.data_dir = str(tmp_path)
  assert smoke.with_data(config, "smoke") is config
  assert smoke.with_data(load("rigl_mnist1d", "smoke"), "smoke").data == (
    load("rigl_mnist1d", "smoke").data
  )


def test_a_folder_that_is_named_must_hold_the_data(tmp_path):
  config = load("rigl_mnist", "smoke")
  config.data.data_dir = str(tmp_path)
  assert smoke.with_data(config, "smoke") is config
  with pytest.raises(data.MissingDataError, match=str(tmp_path)):
    parts.dataset(config.data.to_dict())


@pytest.mark.parametrize("name", ["imp_resnet20_cifar10", "init_pruning"])
def test_configs_that_hold_others(name):
  config = load(name, "smoke")
  one = smoke.with_data(config, "smoke")
  missing = config.base.data.name != "mnist1d"
  assert ("random" in one.base.data) == missing
  assert one.name == config.name + " (random arrays)" * missing


def test_runs_of_a_sweep_are_of_other_names():
  file = CONFIGS / "rigl_cifar10.py"
  planned = grid.plan(f"{file}:smoke")
  assert {one.data.random for one in planned.values()} == {64}
  assert "random arrays" in smoke.note(planned.values())
  assert not smoke.note([load("rigl_cifar10", "smoke")])
  for name, one in planned.items():
    changes = grid.differences(one)
    assert changes["data.random"] == 64
    assert grid.name_of(one) == name


def test_only_smoke_tests_are_compiled_quickly(monkeypatch):
  variable = "JAX_DISABLE_MOST_OPTIMIZATIONS"
  monkeypatch.setenv(variable, "no")
  calls = []
  monkeypatch.setattr(jax.config, "update", lambda *args: calls.append(args))
  smoke.compile_quickly("set,erk")
  assert (os.environ[variable], calls) == ("no", [])
  smoke.compile_quickly("set,smoke")
  assert os.environ[variable] == "1"
  assert calls == [(variable.lower(), True)]


@pytest.mark.parametrize("name", data.DATASETS)
def test_random_arrays_have_the_shapes_of_the_set(name):
  sizes = {"imagenet2012": {"image_size": 20}, "wikitext103": {"length": 9}}
  if name in ("mnist1d", "digits"):
    with pytest.raises(UserError, match="no option"):
      data.load(name, random=5)
    return
  options = sizes.get(name, {})
  made = data.load(name, random=5, **options)
  shape, classes = {
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "imagenet2012": ((20, 20, 3), 1000),
    "wikitext103": ((9,), 256),
  }[name]
  assert (made.like.shape, made.like.dtype) == (shape, np.uint8)
  assert (made.name, made.num_classes) == (name, classes)
  for x, y in (made.train, made.test):
    assert (x.shape, x.dtype) == ((5, *shape), np.uint8)
    assert len(y) == 5
    assert y.min() >= 0
    assert y.max() < classes
  assert made.prepare(made.train[0]).shape == (5, *shape)
  again = data.load(name, random=5, **options)
  np.testing.assert_array_equal(made.train[0], again.train[0])
