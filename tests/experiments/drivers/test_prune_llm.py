"""Tables of one-shot pruning: cells, and what is made of them."""

import json
import signal

import pytest

from experiments.drivers import prune_llm
from experiments.errors import UserError
from experiments.llm.evaluate import tasks
from experiments.llm.io import huggingface
from experiments.llm.prune import kernels
from experiments.llm.prune import methods as methods_lib
from experiments.runs import prune_llm as prune_runs
from experiments.runs import signals
from tests.experiments.small_finetune import SIZES, TEXT
from tests.marks import slow

METHODS = {
  "magnitude": {"name": "magnitude"},
  "owl": {"name": "wanda", "owl": True},
}


def make(**changes):
  config = prune_llm.defaults()
  config.seeds = (0, 1)
  config.model = {"name": "random", "seed": 0, **SIZES}
  config.task = TEXT
  config.calibration = {"sequences": 2, "length": 16}
  config.pruners = METHODS
  config.methods = ("owl", "magnitude")
  config.sparsities = (0.5,)
  config.n_of_m = ((2, 4),)
  config.save = True
  config.published = (("50 %", "magnitude", "another: 5 -> 6"),)
  config.expected = (("magnitude", "owl"),)
  for key, value in changes.items():
    config[key] = value
  return config


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  path = tmp_path_factory.mktemp("table")
  prune_llm.run(make(), path)
  return path


def cell(path, name):
  return json.loads((path / "cells" / f"{name}.json").read_text())


@pytest.mark.slow
def test_a_cell_is_what_was_saved(table):
  names = {file.stem for file in (table / "cells").iterdir()}
  kinds = ("50-owl", "50-magnitude", "2of4-magnitude")  # No OWL with N:M.
  assert names == {"dense"} | {f"{k}-{s}" for k in kinds for s in (0, 1)}
  for name in names - {"dense"}:
    saved = huggingface.read_model(table / "models" / name)
    got = cell(table, name)
    assert kernels.count(saved.params) == (got["nnz"], got["size"])
    assert got["nnz"] / got["size"] == pytest.approx(0.5, abs=0.01)
  # Windows are drawn anew for each seed, which magnitudes do not look at.
  assert cell(table, "50-owl-0") != cell(table, "50-owl-1")
  assert cell(table, "50-magnitude-0") == cell(table, "50-magnitude-1")


def test_groups_of_n_of_m_leave_nothing_else_to_choose():
  methods = {**METHODS, "even": {"name": "ria", "per_output": True}}
  config = make(pruners=methods, methods=tuple(sorted(methods)))
  cells = [str(cell) for cell, _ in prune_runs.plan(config)]
  assert cells == [
    *("even, 50 %", "magnitude, 50 %", "owl, 50 %"),
    "magnitude, 2:4",
  ]


@pytest.mark.slow
def test_the_report_holds_the_cells(table):
  lines = (table / "table.csv").read_text().splitlines()[1:]
  assert lines[0].startswith("zeros,method,perplexity,against dense,")
  assert [line.split(",")[:2] for line in lines[1:]] == [
    ["50 %", "owl"],
    ["50 %", "magnitude"],
    ["2:4", "magnitude"],
  ]
  one = cell(table, "50-magnitude-0")["perplexity"]
  assert f"{one:.2f}" in lines[2]
  assert lines[2].endswith("another: 5 -> 6")
  text = (table / "report.md").read_text()
  assert f"perplexity is {cell(table, 'dense')['perplexity']:.2f}" in text
  assert "- magnitude, 50 %" in text
  assert (table / "models.png").stat().st_size > 1000


@pytest.mark.slow
def test_only_what_is_missing_is_made_again(table):
  gone = table / "cells" / "50-owl-1.json"
  kept = table / "cells" / "50-owl-0.json"
  before, text = gone.read_text(), (table / "report.md").read_text()
  stamp = kept.stat().st_mtime_ns
  gone.unlink()
  prune_llm.run(make(), table)
  assert gone.read_text() == before
  assert kept.stat().st_mtime_ns == stamp
  assert (table / "report.md").read_text() == text


@pytest.mark.slow
def test_a_signal_stops_at_once_and_keeps_what_is_finished(
  tmp_path, monkeypatch
):
  evaluate, tested = tasks.evaluate, []

  def signalled(*arguments):
    tested.append(arguments)
    if len(tested) == 3:
      signal.raise_signal(signal.SIGTERM)
    return evaluate(*arguments)

  monkeypatch.setattr(tasks, "evaluate", signalled)
  config = make(methods=("magnitude",), n_of_m=(), save=False, expected=())
  with pytest.raises(signals.Stopped, match="SIGTERM; what was finished"):
    prune_llm.run(config, tmp_path)
  files = {file.stem for file in (tmp_path / "cells").iterdir()}
  assert files == {"dense", "50-magnitude-0"}
  prune_llm.run(config, tmp_path)
  assert len(tested) == 4  # the one that was stopped, once more


@pytest.mark.slow
def test_a_kernel_that_cannot_be_pruned_costs_its_cell_only(
  tmp_path, monkeypatch
):
  def refuse(w, statistics):
    raise ValueError("no such luck")

  pruners = {name: {"name": name} for name in ("wanda", "magnitude", "ria")}
  config = make(
    seeds=(0,),
    pruners=pruners,
    methods=("wanda", "magnitude", "ria"),
    n_of_m=(),
    save=False,
    expected=(("magnitude", "wanda"), ("magnitude", "ria")),
  )
  monkeypatch.setitem(methods_lib.SCORES, "wanda", refuse)
  with pytest.raises(UserError) as error:
    prune_llm.run(config, tmp_path)
  assert "1 of 3 cells could not be made" in str(error.value)
  assert "  wanda, 50 %: layer 0: attention/" in str(error.value)
  assert "no such luck" in str(error.value)
  files = {file.stem for file in (tmp_path / "cells").iterdir()}
  assert files == {"dense", "50-magnitude-0", "50-ria-0"}
  text = (tmp_path / "report.md").read_text()
  assert "- magnitude, 50 %" in text
  assert "Wanda" not in text
  monkeypatch.undo()
  prune_llm.run(config, tmp_path)
  assert "- magnitude, 50 %" in (tmp_path / "report.md").read_text()
  assert "Wanda" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"methods": ()}, "nothing to prune"),
    ({"methods": ("wanda",)}, "no pruner of the config is called 'wanda'"),
    ({"calibration": {"sequences": 2, "length": 65}}, "at most 64"),
    ({"sparsities": (1.0,), "n_of_m": ()}, r"1.0, wanted a share in \(0, 1\)"),
    slow({"expected": (("owl", "wanda"),)}, "no row of the table .* 'wanda'"),
    ({"model": {"name": "llama"}}, "no model is called 'llama'"),
  ],
)
def test_what_is_wrong_is_told(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    prune_llm.run(make(seeds=(0,), **changes), tmp_path)
