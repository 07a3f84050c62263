"""Runs in packed mode and by kernels: the same files, masks and checkpoints."""

import jax
import numpy as np
import pytest

from experiments.drivers import lottery
from experiments.errors import UserError
from experiments.runs import metrics, train
from sparsejax import kernels
from tests.experiments import small, small_lottery
from tests.experiments.interrupted import (
  Crash,
  assert_same_run,
  crash_at,
  last_state,
)


def config(algorithm, mode):
  made = small.get_config(algorithm)
  made.mode = mode
  if algorithm == "rigl":
    made.algorithm.accumulate = 1
  return made


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dense", "set", "rigl", "gmp"])
def test_a_packed_run_writes_what_a_masked_one_writes(algorithm, tmp_path):
  results = {
    mode: train.train(config(algorithm, mode), tmp_path / mode)
    for mode in ("masked", "packed")
  }
  for a, b in zip(*(r.history for r in results.values()), strict=True):
    assert set(a) == set(b)
    for key, value in a.items():
      if isinstance(value, float):
        np.testing.assert_allclose(b[key], value, rtol=1e-5, err_msg=key)
      else:
        assert b[key] == value, key
  jax.tree.map(
    np.testing.assert_array_equal, *(r.masks for r in results.values())
  )
  # Checkpoints have the same arrays, of the same shapes.
  shapes = [
    [np.shape(x) for x in last_state(tmp_path / mode)] for mode in results
  ]
  assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.skipif(
  not kernels.available(quiet=True), reason="there is no C++ compiler"
)
@pytest.mark.parametrize("algorithm", ["rigl", "gmp"])
def test_kernels_keep_the_budget_and_learn(algorithm, tmp_path):
  masked = train.train(config(algorithm, "masked"), tmp_path / "masked")
  result = train.train(config(algorithm, "kernels"), tmp_path / "kernels")
  assert result.metrics["nnz"] == masked.metrics["nnz"]
  # 360 test examples, of nets that differ in last bits at first.
  np.testing.assert_allclose(
    result.metrics["accuracy"], masked.metrics["accuracy"], atol=0.1
  )


@pytest.mark.slow
def test_a_run_goes_on_in_another_mode(tmp_path):
  whole = train.train(config("rigl", "masked"), tmp_path / "whole")
  half = config("rigl", "masked")
  half.steps = 24
  path = tmp_path / "half"

  with pytest.raises(Crash):
    train.train(half, path, progress=crash_at(range(12, 24)))
  assert metrics.read(path)[-1]["step"] < 24
  result = train.train(config("rigl", "packed"), path)
  jax.tree.map(np.testing.assert_array_equal, whole.masks, result.masks)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    whole.params,
    result.params,
  )


@pytest.mark.slow
def test_tickets_are_the_same_when_packed(tmp_path):
  tables = []
  for mode in ("masked", "packed"):
    made = small_lottery.make(methods=("rewound", "random"))
    made.stability.branches = ()
    made.base.mode = mode
    lottery.run(made, str(tmp_path / mode))
    tables.append((tmp_path / mode / "table.csv").read_text().split("\n", 1)[1])
  assert tables[0] == tables[1]


@pytest.mark.parametrize(
  ("algorithm", "says"),
  [
    ({"name": "ste", "sparsity": 0.5}, "dense weights"),
    ({"name": "snfs", "sparsity": 0.5, "t_end": 9}, "remember dense"),
  ],
)
def test_what_needs_dense_arrays_is_refused(algorithm, says, tmp_path):
  made = config("rigl", "packed")
  made.algorithm = algorithm
  with pytest.raises(UserError, match=says):
    train.train(made, tmp_path)


def test_an_unknown_mode_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"mode.*packd.*packed"):
    train.train(config("rigl", "packd"), tmp_path)


@pytest.mark.slow
def test_a_packed_run_that_crashed_goes_on_in_the_same_bits(tmp_path):
  whole, part = tmp_path / "whole", tmp_path / "part"
  train.train(config("gmp", "packed"), whole)
  for step in (8, 16):
    with pytest.raises(Crash):
      train.train(config("gmp", "packed"), part, progress=crash_at([step]))
  train.train(config("gmp", "packed"), part)
  assert_same_run(whole, part)
