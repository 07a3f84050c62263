"""Algorithms, models and data sets of a package that is not ours, by name."""

import csv
import sys

import pytest

from experiments import data, names
from experiments.config import algorithms, check, grid
from experiments.drivers import single
from experiments.errors import UserError
from experiments.runs import train
from experiments.tables import sweep
from tests.experiments.interrupted import finish

RULES = """
import jax
from flax import linen as nn
import sparsejax
from experiments.config.algorithms import Algorithm
from experiments.data import sets

SPARSITY = 0.5


def mine(inner, sparsity=SPARSITY, *, key, **options):
  return sparsejax.set_(inner, sparsity, key=key, **options)


COSTED = Algorithm(mine, cost=lambda net: 3 * net.sparse + 1)


class Net(nn.Module):
  num_classes: int
  channels: int = 4

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.channels)(x.reshape(len(x), -1))
    return nn.Dense(self.num_classes)(jax.nn.relu(x))


def halved(*, examples=200):
  whole = sets.digits()
  first = lambda split: tuple(part[:examples] for part in split)
  return whole._replace(train=first(whole.train), test=first(whole.test))
"""
CONFIG = """
from experiments.config.entry import Entry
from configs import rigl_mnist1d

def get_config(arg=""):
  config = rigl_mnist1d.get_config("set,smoke")
  config.algorithm.name = "own_pkg.rules:mine"
  config.model = {"name": "own_pkg.rules:Net", "channels": 6}
  config.data = {"name": "own_pkg.rules:halved", "examples": 300}
  config.steps = 20
  config.tensorboard = False
  return config

def sweep(arg):
  yield Entry("mine"), {}
  yield Entry("ours"), {"algorithm.name": "set"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("own")
  (folder / "own_pkg").mkdir()
  (folder / "own_pkg" / "__init__.py").touch()
  (folder / "own_pkg" / "rules.py").write_text(RULES)
  (folder / "own_pkg" / "faulty.py").write_text("import no_such_thing\n")
  (folder / "own_config.py").write_text(CONFIG)
  sys.path.insert(0, str(folder))
  yield folder
  sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def config(folder):
  return f"{folder}/own_config.py"


@pytest.fixture(scope="module")
def root(folder, config):
  """The runs of the config's grid."""
  root = folder / "runs"
  for name, one in grid.plan(config).items():
    train.train(one, root / name)
  return root


def test_a_table_marks_what_has_no_cost_model(config, root, tmp_path):
  records = sweep.collect_records(config, root)
  sweep.save_records(tmp_path / "runs.csv", records, command="")
  again = sweep.load_records(tmp_path / "runs.csv")
  module = grid.module(config)
  for found in (records, again):
    own, ours = sweep.summarize(found, module)
    assert own.training_flops == f"~{own.training:.3f}x"
    assert ours.training_flops == f"{ours.training:.3f}x"
    assert own.training == pytest.approx(ours.training)  # SET's budgets stand
    assert "marked ~" in sweep.parts([own, ours], module)[0].note
    assert "marked ~" not in sweep.parts([ours], module)[0].note


def test_a_report_marks_what_has_no_cost_model(config, root, capsys):
  name, one = next(iter(grid.plan(config).items()))
  single.run(one, str(root / name))
  assert "was already finished" in capsys.readouterr().out
  _, header, line = (root / name / "table.csv").read_text().splitlines()
  cells = dict(zip(*csv.reader([header, line]), strict=True))
  assert cells["method"] == "own_pkg.rules:mine"
  assert cells["training FLOPs"].startswith("~")
  assert "marked ~" in (root / name / "report.md").read_text()


@pytest.mark.slow
def test_the_command_warns_once_before_it_trains(folder, tmp_path):
  code, out, err = finish(
    "--config=configs/rigl_mnist1d.py:set,smoke",
    "--config.algorithm.name=own_pkg.rules:mine",
    "--config.model.name=own_pkg.rules:Net",
    "--config.data.name=own_pkg.rules:halved",
    f"--workdir={tmp_path}",
    PYTHONPATH=str(folder),
  )
  assert code == 0, err
  assert err.count("has no cost model") == 1
  assert "is finished" in out
  assert "| own_pkg.rules:mine |" in (tmp_path / "report.md").read_text()


def test_a_row_of_ones_own_brings_its_cost_model(folder):
  row = algorithms.find("own_pkg.rules:COSTED")
  assert row.cost is not None
  assert row.takes("sparsity")
  assert algorithms.find("own_pkg.rules:mine").cost is None


def test_missing_cost_models_are_told_once(config, folder, caplog):
  check._warn_without_cost_model.cache_clear()
  for _ in range(2):
    check.training_run(grid.module(config).get_config())
  assert caplog.text.count("own_pkg.rules:mine has no cost model") == 1


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("own_pkg.rulez:halved", "there is no module 'own_pkg.rulez'; wanted"),
    ("own_pgk.rules:halved", "there is no module 'own_pgk'; wanted"),
    ("own_pkg.rules:halve", "of module own_pkg.rules .* mean 'halved'"),
    ("own_pkg.rules:SPARSITY", "is 0.5, a float; wanted a function"),
    (":halved", "names no module"),
    ("halved", "no data set is called 'halved'"),
  ],
)
def test_names_that_stand_for_nothing_are_told(folder, name, message):
  with pytest.raises(UserError, match=message):
    data.load(name)


def test_the_fault_of_a_module_is_its_own(folder):
  with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
    names.find("data set", "own_pkg.faulty:any", {})


def test_wrong_keywords_of_own_functions_are_told(config, folder):
  one = grid.module(config).get_config()
  one.algorithm.tend = 3
  with pytest.raises(UserError, match=r"own_pkg.rules:mine: .*'tend'"):
    check.training_run(one)
  with pytest.raises(UserError, match=r"option of data set .*'examples'"):
    data.load("own_pkg.rules:halved", example=3)
