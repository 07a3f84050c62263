"""The registry of algorithms: what its rows say is true of their functions."""

import inspect
import types

import ml_collections
import numpy as np
import pytest

from experiments.config import algorithms
from experiments.errors import UserError


def net(name, *, steps=10, **options):
  """Costs 100 without zeros and 20 at last, on a line from 60 over time."""
  config = {"steps": steps, "algorithm": {"name": name, **options}}
  return types.SimpleNamespace(
    config=ml_collections.ConfigDict(config),
    dense=100.0,
    sparse=20.0,
    over_time=lambda: np.linspace(60.0, 20.0, 5),
    with_budgets=lambda sparsity: 100 * (1 - sparsity),
  )


@pytest.mark.parametrize(
  ("name", "options", "flops"),
  [
    ("dense", {}, 300),
    ("static", {}, 60),
    ("set", {}, 60),
    ("mest", {}, 120),
    ("snfs", {}, 140),
    ("rigl", {"delta_t": 9}, (9 * 60 + 140) / 10),
    ("rigl", {}, (100 * 60 + 140) / 101),
    ("seft", {}, (100 * 60 + 140) / 101),
    ("srigl", {}, (100 * 60 + 140) / 101),
    ("gmp", {}, 120),
    ("granet", {"delta_t": 4}, 120 + 60 / 4),
    ("granet", {}, 120 + 60 / 1000),
    ("ac_dc", {"phases": (2, 4, 6)}, 3 * (0.6 * 20 + 0.4 * 100)),
    ("top_kast", {"backward_sparsity": 0.5}, 90),
    ("ste", {}, 180),
    ("sr_ste", {}, 180),
    ("movement", {}, 180),
    ("soft_movement", {}, 180),
    ("str", {}, 180),
  ],
)
def test_cost_models_are_those_of_the_papers(name, options, flops):
  cost = algorithms.find(name).cost(net(name, **options))
  assert cost == pytest.approx(flops, rel=1e-12)


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_rows_hold_together(name):
  row = algorithms.ALGORITHMS[name]
  assert row.cost is not None
  parameters = inspect.signature(row.function).parameters
  if row.shares:
    assert row.shares(80, 2).keys() <= parameters.keys()
  if row.timing:
    timing = algorithms.Timing(2, 60, 0.3, 20, 60, 2)
    assert row.timing(timing).keys() <= parameters.keys()
  assert not (row.chooses_first_masks and row.budgets_in_state)


def test_an_unknown_algorithm_is_told_with_the_near_ones():
  with pytest.raises(UserError, match="did you mean 'rigl'"):
    algorithms.find("rigll")
