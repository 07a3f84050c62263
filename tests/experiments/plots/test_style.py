"""Panels, colours, line styles and what fits in a picture."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import figure, image
from PIL import Image

from experiments.plots import looks, lottery, runs, sparsities, style, titles
from experiments.plots.sparsities import Series


def test_a_few_lines_share_a_panel_each_with_its_methods_look():
  features = {name: (name, "") for name in ("rigl", "set", "mine")}
  places = style.places(features)
  assert {place.panel for place in places.values()} == {""}
  assert places["rigl"] == ("", looks.of("rigl"), "RigL")
  assert len({place.look for place in places.values()}) == 3
  # Four bands in one panel cannot be read.
  features["gmp"] = ("gmp", "")
  assert [place.panel for place in style.places(features).values()] == [
    *features
  ]


def test_lines_are_split_by_the_feature_that_leaves_fewer_panels():
  features = {f"{a} {b}": (a, b) for a in "uvwx" for b in "rgs"}
  places = style.places(features)
  assert {place.panel for place in places.values()} == set("rgs")
  # A look is the same thing in all panels.
  assert len({places[f"u {b}"].look for b in "rgs"}) == 1
  # Seven begins of two algorithms: a panel of seven cannot be read.
  features = {f"{a} {b}": (a, b) for a in "abcdefg" for b in ("rigl", "static")}
  places = style.places(features)
  assert len({place.panel for place in places.values()}) == 7
  assert places["a rigl"] == ("a", looks.of("rigl"), "RigL")


def test_in_the_panel_of_a_method_its_variants_are_shades_of_its_colour():
  both = [(a, b) for a in ("RigL", "SET") for b in ("uniform", "ERK")]
  features = style.name_parts([f"{a} ({b})" for a, b in both] + ["SNIP"])
  places = style.places(features)
  first, second = (places[f"RigL ({b})"] for b in ("uniform", "ERK"))
  assert first == ("RigL", looks.of("rigl"), "uniform")
  assert second == ("RigL", looks.of("rigl").variant(2), "ERK")
  assert all(a != b for a, b in zip(first.look, second.look, strict=True))
  assert places["SNIP"] == ("SNIP", looks.of("snip"), "")


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
  places = style.places(features).values()
  groups = [(place.panel, place.look) for place in places]
  assert len(set(groups)) == len(features)
  panels = [panel for panel, _ in groups]
  assert max(map(panels.count, panels)) <= 4


@pytest.mark.parametrize(
  "drawn",
  [
    ("static", "SET", "RigL", "gmp"),
    ("rigl", "gmp", "sr_ste"),
    ("magnitude", "wanda", "sparsegpt", "ria", "owl-wanda"),
    ("none", "lora*", "spp", "fixed mask", "spiel", "seft"),
    ("none", "ce", "ce + kl", "ce + squarehead"),
    ("ticket", "rewound", "reinit", "random"),
    ("snip", "grasp", "synflow", "force", "magnitude"),
  ],
)
def test_methods_that_are_drawn_together_have_colours_of_their_own(drawn):
  assert len({looks.of(name).color for name in drawn}) == len(drawn)


def test_a_method_looks_alike_under_all_its_names():
  names = ("rigl", "RigL (ERK)", "rigl from snip", "rigl, 90 %")
  assert {looks.of(name) for name in names} == {looks.of("rigl")}
  assert looks.of("pruning (uniform)") == looks.of("gmp")
  assert looks.of("RigL 5x (ERK)") != looks.of("rigl")
  training = (
    *("static", "set", "snfs", "rigl", "rigl_5x", "rigl_itop", "srigl", "mest"),
    *("mest_s", "granet", "dst_ee", "small-dense", "gmp", "ac_dc", "ste"),
    *("sr_ste", "top_kast", "movement", "soft_movement", "str"),
  )
  assert len({looks.of(name) for name in training}) == len(training)


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
  look = looks.of("a b")
  assert style.places({"a b": ("a b", "")}) == {"a b": ("a b", look, "")}


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
def draw(axes, name, *, look, label):
  how = style.drawn(look) if look else {}
  axes.plot([0, 1], [ord(name), ord(name) % 7], label=label, **how)
style.multiples({n: (n, "") for n in "abcdefgh"}, draw, sys.argv[1], title="")
"""


def test_titles_say_what_data_are_drawn_at_random():
  config = {"model": {"name": "wrn"}, "data": {"name": "cifar10"}}
  assert titles.of(config) == "Wide ResNet on CIFAR-10"
  config["data"]["random"] = 64
  assert titles.of(config) == "Wide ResNet on random arrays like CIFAR-10"
  assert titles.chance({"base": config}) == 10


@pytest.mark.parametrize(
  ("model", "wanted"),
  [
    ({"name": "smollm2"}, "SmolLM2-135M-Instruct"),
    (
      {"name": "huggingface", "path": "runs/byte_llama/model"},
      "Byte-level LLaMA",
    ),
    ({"name": "huggingface", "path": "/a/Llama-2-7b"}, "Llama-2-7b"),
    (
      {"name": "random", "family": "t5", "layers": 2, "dim": 64},
      "Small T5 (2 layers, 64 features)",
    ),
  ],
)
def test_titles_say_which_language_model_and_text(model, wanted):
  task = {"name": "text", "test": {"name": "state_of_the_union"}}
  found = titles.of({"base": {"model": model, "task": task}})
  assert found == f"{wanted} on the State of the Union addresses"


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_picture_has_as_many_panels_as_its_lines_need(
  count, tmp_path, monkeypatch
):
  kept = []
  monkeypatch.setattr(style, "save", lambda figure, file: kept.append(figure))
  sparsities.lines(
    _lines(count), tmp_path / "a.png", levels={"b": 75}, chance=10,
    ticks=["50", "90"], title="what\none seed", xlabel="zeros [%]",
  )  # fmt: skip
  (figure,) = kept
  panels = figure.axes
  assert len(panels) == (1 if count <= 3 else count)
  assert figure.get_suptitle() == "what\none seed"
  assert len(figure.legends) == (1 < count <= 3)
  if count > 3:
    assert [axes.get_title() for axes in panels] == [*_lines(count)]
  for axes in panels:
    marked = [line for line in axes.lines if line.get_marker() != "None"]
    assert len(marked) == (count if count <= 3 else 1)
    # A band for the only point with an interval, in each line's colour.
    assert len(axes.collections) == len(marked)
    # Every other line is there, faint, and the level; nothing is near chance.
    faint = [line for line in axes.lines if line.get_color() == looks.FAINT]
    assert len(faint) == (0 if count <= 3 else count - 1)
    assert [line.get_ydata()[0] for line in axes.lines if _flat(line)] == [75]


def _flat(line):
  return line.get_ls() == ":" and line.get_ydata()[0] == line.get_ydata()[1]


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
    ["\N{DOWNWARDS ARROW} b: 1.5"] if i == 3 else [] for i in range(6)
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
  wanted = looks.of("seft").color
  colour = np.array([int(wanted[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  assert np.any(np.all(np.abs(found - colour) < 0.01, axis=-1))


@pytest.mark.parametrize(
  ("low", "high", "most"), [(20, 200, 4), (0.02, 1.1, 4), (25, 60_000, 3)]
)
def test_numbers_of_a_logarithmic_axis_are_few_and_plain(low, high, most):
  axes = figure.Figure().subplots()
  axes.set(xscale="log", xlim=(low, high))
  style.plain_numbers(axes.xaxis, most)
  shown = [x for x in axes.get_xticks() if low <= x <= high]
  words = axes.xaxis.get_major_formatter().format_ticks(shown)
  assert 2 <= len(words) <= most
  assert not any("e" in word for word in words)


def test_a_picture_says_in_its_file_what_it_names(tmp_path):
  panels = {"wanda 60 %": {"seft": (5.0, 4.0, 6.0)}}
  file = tmp_path / "a.png"
  sparsities.dots(panels, file, title="a net\none seed", xlabel="perplexity")
  said = Image.open(file).text
  assert said["Title"] == "a net\none seed"
  assert said["Description"].split("\n") == ["Wanda 60 %", "SEFT", "perplexity"]
