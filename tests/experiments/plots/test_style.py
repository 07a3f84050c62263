"""Panels, colours, line styles and what fits in a picture."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from experiments.plots import lottery, runs, sparsities, style, titles
from experiments.plots.sparsities import Series


def test_a_few_lines_share_a_panel():
  places = style.panels({name: (name, "") for name in "abcd"})
  assert {panel for panel, _ in places.values()} == {""}
  assert len({colour for _, colour in places.values()}) == 4


def test_lines_are_split_by_the_feature_that_leaves_fewer_panels():
  features = {f"{a} {b}": (a, b) for a in "uvwx" for b in "rgs"}
  places = style.panels(features)
  assert {panel for panel, _ in places.values()} == set("rgs")
  # A colour is the same thing in all panels.
  assert len({places[f"u {b}"][1] for b in "rgs"}) == 1
  # Seven begins of two algorithms: a panel of seven cannot be read.
  features = {f"{a} {b}": (a, b) for a in "abcdefg" for b in "rs"}
  assert len({panel for panel, _ in style.panels(features).values()}) == 7


@pytest.mark.parametrize(
  "features",
  [
    {name: (name, "") for name in "abcdefgh"},
    dict.fromkeys("abcdefgh", ("x", "y")),  # all alike
    # Some alike: two lines of a panel must not have one colour.
    {**{n: (n, "y") for n in "abcdef"}, "g": ("a", "y"), "h": ("b", "y")},
  ],
)
def test_many_lines_can_be_told_apart(features):
  places = style.panels(features)
  assert len(set(places.values())) == len(features)
  groups = [panel for panel, _ in places.values()]
  assert max(map(groups.count, groups)) <= 4


def test_the_first_and_the_last_are_among_the_spaced():
  assert style.evenly_spaced(range(11), 3) == [0, 5, 10]
  assert style.evenly_spaced("ab", 3) == ["a", "b"]


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("rigl_itop", "RigL-ITOP"),
    ("sr_ste fan-in", "SR-STE fan-in"),
    ("owl-wanda", "OWL-Wanda"),
    ("seft, zeros stay", "SEFT, zeros stay"),
    ("lora*", "LoRA*"),
    ("RigL 5x (first dense)", "RigL 5x (first dense)"),
    ("none", "no tuning"),
    ("mine", "mine"),
  ],
)
def test_legends_have_published_names(name, wanted):
  assert titles.published(name) == wanted


def _lines(count):
  mean, low = np.array([80.0, 70.0]), np.array([79.0, -np.inf])
  return {
    f"m{i}": Series(
      (f"m{i}", ""), [0, 1], ["a", "b"], mean - i, low - i, 160 - low - i
    )
    for i in range(count)
  }


def test_a_single_line_has_its_name_above():
  assert style.panels({"a b": ("a b", "")}) == {"a b": ("a b", 0)}


@pytest.mark.parametrize("draw", ["lines", "dots", "churn", "layers"])
def test_where_there_is_nothing_to_draw_there_is_an_empty_picture(
  draw, tmp_path
):
  file = tmp_path / "a.png"
  if draw in ("lines", "dots"):
    getattr(sparsities, draw)({}, file, title="a", xlabel="b")
  else:
    record = {"split": "test", "step": 0, "layers": {}}
    getattr(runs, draw)({"dense": [[record]]}, file, title="a")
  assert file.exists()


def test_equal_pictures_have_equal_bytes(tmp_path):
  drawn = []
  for seed in ("1", "2"):
    file = tmp_path / f"{seed}.png"
    subprocess.run(
      [sys.executable, "-c", _DRAW, str(file)],
      env={**os.environ, "PYTHONHASHSEED": seed},
      check=True,
      timeout=120,
    )
    drawn.append(file.read_bytes())
  assert drawn[0] == drawn[1]


_DRAW = """
import sys
from experiments.plots import style
def draw(axes, name, offset, *, color, label):
  axes.plot([0, 1], [ord(name), ord(name) % 7], color=color, label=label)
style.multiples({n: (n, "") for n in "abcdefgh"}, draw, sys.argv[1], title="")
"""


def test_titles_say_what_data_are_drawn_at_random():
  config = {"model": {"name": "wrn"}, "data": {"name": "cifar10"}}
  assert titles.of(config) == "Wide ResNet on CIFAR-10"
  config["data"]["random"] = 64
  assert titles.of(config) == "Wide ResNet on random arrays like CIFAR-10"


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_a_picture_has_as_many_panels_as_its_lines_need(
  count, tmp_path, monkeypatch
):
  kept = []
  monkeypatch.setattr(style, "save", lambda figure, file: kept.append(figure))
  sparsities.lines(
    _lines(count), tmp_path / "a.png", levels={"b": 75}, ticks=["50", "90"],
    title="what\none seed", xlabel="zeros [%]",
  )  # fmt: skip
  (figure,) = kept
  panels = figure.axes
  assert len(panels) == (1 if count <= 4 else count)
  assert figure.get_suptitle() == "what\none seed"
  if count > 4:
    assert [axes.get_title() for axes in panels] == [*_lines(count)]
  coloured = [
    [line for line in axes.lines if line.get_label()[0] != "_"]
    for axes in panels
  ]
  assert [len(own) for own in coloured] == [min(count, 4) if count < 5 else 1
                                            for _ in panels]  # fmt: skip
  # Every other line is there, faint, and the level.
  for axes in panels:
    faint = [line for line in axes.lines if line.get_color() == "#dddddd"]
    assert len(faint) == (0 if count <= 4 else count - 1)


def test_no_panel_cuts_off_what_another_draws(tmp_path, monkeypatch):
  kept = []
  monkeypatch.setattr(style, "save", lambda figure, file: kept.append(figure))
  lines = _lines(6)
  last = lines["m5"]
  lines["m5"] = last._replace(low=last.mean - 30, high=last.mean + 15)
  sparsities.lines(lines, tmp_path / "a.png", title="", xlabel="")
  bottom, top = kept[0].axes[0].get_ylim()
  assert bottom < min(last.mean) - 30
  assert top > max(last.mean) + 15
  curve = lottery.Curve(0, 100.0, np.arange(2), np.array([1.0, 2.0]))
  curves = {"a": [curve], "b": [curve._replace(y=np.array([0.0, 9.0]))]}
  lottery.panels(curves, tmp_path / "a.png", title="")
  bottom, top = kept[1].axes[0].get_ylim()
  assert bottom < 0 < 9 < top


def test_far_outliers_are_named_in_their_own_panel(tmp_path, monkeypatch):
  kept = []
  monkeypatch.setattr(style, "save", lambda figure, file: kept.append(figure))
  mean = np.array([80.0, 79.0])
  lines = {
    name: one._replace(mean=mean, low=mean, high=mean)
    for name, one in _lines(6).items()
  }
  none = np.array([-np.inf, -np.inf])
  lines["m3"] = lines["m3"]._replace(mean=np.array([80.0, 1.5]), low=none)
  sparsities.lines(lines, tmp_path / "a.png", title="", xlabel="")
  texts = [[text.get_text() for text in axes.texts] for axes in kept[0].axes]
  assert [[*filter(None, one)] for one in texts] == [
    ["below: b, 1.5"] if i == 3 else [] for i in range(6)
  ]


@pytest.mark.parametrize("log", [False, True])
def test_dots_show_means_with_and_without_an_interval(log, tmp_path):
  panels = {
    "wanda 60 %": {"seft": (5.0, 4.0, 6.0), "none": (9.0, -np.inf, np.inf)},
    "2:4": {"seft": (5.0, 4.0, 6.0)},
  }
  file = tmp_path / "a.png"
  sparsities.dots(
    panels, file, title="a", xlabel="b", levels={"dense": 3.0}, log=log
  )
  found = image.imread(file)[..., :3]
  colour = np.array([0x00, 0x72, 0xB2]) / 255
  assert np.any(np.all(np.abs(found - colour) < 0.01, axis=-1))
