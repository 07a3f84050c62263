"""FLOPs of runs whose algorithm has a cost model, and of those without."""

import pytest

from experiments.config import algorithms
from experiments.tables import costs, sweep
from experiments.tables.rows import Row, notes
from tests.experiments import small

# 64-8-10: each weight costs two operations.
_SIZES = {"dense1/kernel": 512, "logits/kernel": 80}
_DENSE = 2 * (512 + 80)


def history(*densities):
  """Evaluations every ten steps, with these shares of weights left."""
  return [
    {
      "split": "test",
      "step": 10 * i,
      "layers": {
        path: {"nnz": density * size, "size": size}
        for path, size in _SIZES.items()
      },
    }
    for i, density in enumerate(densities)
  ]


def test_an_algorithm_without_a_cost_model_is_estimated(monkeypatch):
  row = algorithms.ALGORITHMS["rigl"]
  monkeypatch.setitem(algorithms.ALGORITHMS, "rigl", row._replace(cost=None))
  found = costs.of(small.get_config("rigl"), history(1.0, 0.2))
  assert found.estimated
  assert found.dense_inference == _DENSE
  assert found.inference == pytest.approx(0.2 * _DENSE)
  # From 1 towards 0.2 in ten steps: 1, 0.92, ..., 0.28, on average 0.64.
  assert found.training == pytest.approx(3 * 0.64 * _DENSE)


def test_an_algorithm_with_a_cost_model_is_not():
  found = costs.of(small.get_config("set"), history(0.2, 0.2))
  assert not found.estimated
  assert found.relative == pytest.approx((0.2, 0.2))


def test_estimates_are_marked_in_tables():
  known = Row("a", None, {0: 1.0}, nnz=1, training=0.5, inference=1, bytes=1)
  estimate = known._replace(method="b", estimated=True)
  header, *lines = sweep.table([known, estimate])
  column = header.index("training FLOPs (1x: dense, computed)")
  assert [line[column] for line in lines] == ["0.500x", "~0.500x"]
  assert "~" in notes([known, estimate])
  assert notes([known]) == ""
