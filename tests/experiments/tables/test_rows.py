"""The row of all tables, and what pictures show of it."""

import numpy as np
import pytest

from experiments.config.entry import Entry
from experiments.tables import rows
from experiments.tables.rows import (
  Row,
  accuracy,
  at_middle,
  barred,
  caption,
  draw_settings,
  series,
)


@pytest.mark.parametrize(
  ("setting", "label"),
  [(None, "a"), (0.9, "a, 90 %"), ("2:4", "a, 2:4"), (3, "a, level 3")],
)
def test_labels_say_method_and_setting(setting, label):
  assert Row("a", setting, {}).label == label


def test_mean_spread_and_interval_are_those_of_the_seeds():
  row = Row("a", None, {0: 1.0, 5: 2.0, 7: 6.0})
  assert (row.mean, row.spread) == (3.0, "3.00 ± 2.65")
  half = 4.30265 * (7 / 3) ** 0.5  # t(0.975, 2) s / sqrt(3)
  assert row.interval == pytest.approx((3 - half, 3 + half), abs=1e-4)
  single = Row("a", None, {0: 1.0}, published=1.0)
  assert (single.spread, single.interval) == ("1.00", (-np.inf, np.inf))
  assert single.within == "one seed: no verdict"


def test_the_middle_sparsity_and_methods_without_one_are_shown():
  groups = {Entry("dense"): 0, Entry("x", 0.5): 1, Entry("x", 0.9): 2}
  assert at_middle(groups) == ({"dense": 0, "x": 2}, 0.9)
  assert at_middle({Entry("dense"): 0}) == ({"dense": 0}, None)
  groups[Entry("y", 0.98)] = 3
  assert at_middle(groups) == ({"dense": 0, "x": 2}, 0.9)


def test_captions_say_how_many_seeds_and_why_there_is_no_verdict():
  one, two = Row("a", None, {0: 1.0}), Row("a", None, {0: 1.0, 1: 2.0})
  assert caption("x", [one]) == "x\none seed: no verdict"
  said = caption("x", [two], level="dense")
  assert said.endswith(
    "95 % intervals (t); dotted: dense; two seeds: no verdict"
  )
  many = Row("a", None, {0: 1.0, 1: 2.0, 2: np.nan})
  assert caption("x", [many, two]) == (
    "x\nmeans of 2 to 3 seeds; shaded: 95 % intervals (t); "
    "1 diverged, not drawn; 1 of 3 seeds diverged: no verdict"
  )
  random = barred(data={"name": "x"}, model={"name": "random"})
  said = caption("x", [one._replace(barred=random)])
  assert said.endswith("random model: no verdict")


@pytest.mark.parametrize("loss", [None, np.nan, np.inf])
def test_the_accuracy_of_a_net_that_diverged_is_no_number(loss):
  assert np.isnan(accuracy({"accuracy": 0.1, "loss": loss}))
  assert accuracy({"accuracy": 0.1, "loss": 2.3}) == 10.0


@pytest.mark.parametrize("sparsities", [(0.5,), (0.5, 0.9)])
def test_a_single_sparsity_is_drawn_as_dots(sparsities, tmp_path, monkeypatch):
  called = []
  for name in ("dots", "lines"):
    monkeypatch.setattr(
      rows.sparsities, name, lambda *a, name=name, **k: called.append(name)
    )
  table = [Row("a", s, {0: 1.0}) for s in sparsities]
  draw_settings(table, {"a": ("a", "")}, tmp_path / "a.png", title="x")
  assert called == ["dots" if len(sparsities) == 1 else "lines"]


def test_lines_of_a_picture_are_those_of_methods_with_features():
  table = [
    Row("dense", None, {0: 0.5}),
    Row("b", 0.5, {0: 0.1, 1: 0.3}),
    Row("b", 0.9, {0: 0.1}),
    Row("b", 0.95, {}),
  ]
  features = {"b": ("b", ""), "c": ("c", "")}
  ((name, line),) = series(table, features, lambda row: row.setting).items()
  assert (name, line.x) == ("b", [0.5, 0.9])
  assert line.labels == ["b, 50 %", "b, 90 %"]
  np.testing.assert_allclose(line.mean, [0.2, 0.1])
  low, high = table[1].interval
  np.testing.assert_allclose(line.low, [low, -np.inf])
  np.testing.assert_allclose(line.high, [high, np.inf])
