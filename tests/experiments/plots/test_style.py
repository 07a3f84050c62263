"""Colours, line styles and what fits in a picture."""

import numpy as np
import pytest
from matplotlib import image

from experiments.plots import sparsities, style
from experiments.plots.sparsities import Series


def test_shared_features_share_colour_and_line():
  features = {"a": (1, "x"), "b": (1, "y"), "c": (2, "x")}
  styles = style.line_styles(features)
  assert styles["a"]["color"] == styles["b"]["color"] != styles["c"]["color"]
  assert styles["a"]["ls"] == styles["c"]["ls"] != styles["b"]["ls"]


@pytest.mark.parametrize(
  "features",
  [
    dict.fromkeys("abcdefghij", (1, "x")),  # all alike
    {name: (1, name) for name in "abcdefghij"},  # fewer colours than lines
  ],
)
def test_methods_that_features_leave_alike_have_styles_of_their_own(features):
  styles = style.line_styles(features)
  assert len({tuple(one.values()) for one in styles.values()}) == 10
  colours = [one["color"] for one in styles.values()]
  assert colours[:8] == list(style.COLOURS)
  assert colours[8] == colours[0]


def test_no_methods_have_no_styles():
  assert style.line_styles({}) == {}


def test_the_first_and_the_last_are_among_the_spaced():
  assert style.evenly_spaced(range(11), 3) == [0, 5, 10]
  assert style.evenly_spaced("ab", 3) == ["a", "b"]


@pytest.mark.parametrize("log", [False, True])
def test_a_picture_of_sparsities_shows_points_with_and_without_an_interval(
  log, tmp_path
):
  line = Series(
    *("a", [0.5, 0.9], ["a, 50 %", "a, 90 %"], np.array([80.0, 70.0])),
    *(np.array([79.0, -np.inf]), np.array([81.0, np.inf]), {"color": "red"}),
  )
  file = tmp_path / "a.png"
  sparsities.against_settings(
    [line], [0.5, 0.9], file, levels={"b": 75}, log=log
  )
  found = image.imread(file)[..., :3]
  assert np.any(np.all(found == [1, 0, 0], axis=-1))
