"""Tables of language models, from rows made by hand."""

import ml_collections
import pytest

from experiments.config.entry import Cell
from experiments.errors import UserError
from experiments.tables import llm
from experiments.tables.llm import Measure
from experiments.tables.rows import Row, notes

PERPLEXITY = Measure("perplexity", lower_is_better=True)
ACCURACY = Measure("accuracy", lower_is_better=False)


def row(base, method, *values, trained=None):
  """A row with seeds 0, 1, ...; a single value is that of all seeds."""
  seeds = range(len(values)) if len(values) > 1 else (None,)
  return Row(
    method,
    base or None,
    dict(zip(seeds, values, strict=True)),
    nnz=41,
    size=100,
    trained=trained,
  )


def test_a_row_is_what_the_results_of_its_seeds_say():
  results = {
    0: {"perplexity": 2.0, "nnz": 40, "size": 100, "trained": 7},
    1: {"perplexity": 3.0, "nnz": 41, "size": 100, "trained": 7},
  }
  found = llm.row(Cell("2:4", "seft"), results, PERPLEXITY)
  assert (found.label, found.values) == ("seft, 2:4", {0: 2.0, 1: 3.0})
  assert (found.nnz, found.size, found.trained) == (41, 100, 7)
  results = {None: {"perplexity": 2.0, "nnz": 40, "size": 100}}
  found = llm.row(Cell("", "none"), results, PERPLEXITY)
  assert (found.label, found.values) == ("none", {None: 2.0})
  assert found.trained is None


def test_a_narrower_model_has_fewer_of_the_dense_ones_weights():
  results = {0: {"perplexity": 2.0, "nnz": 30, "size": 30}}
  cell = Cell("wanda", "none")
  found = llm.row(cell, results, PERPLEXITY, size=40, speed=(12.34, 1.255))
  header, line = llm.table([found], PERPLEXITY, 1.0, {})
  shown = dict(zip(header, line, strict=True))
  assert (shown["non-zeros"], shown["tokens/s"]) == ("75.00 %", "12.3 (1.25x)")


def test_lines_of_perplexities():
  rows = [
    row("60 %", "none", 30.0),
    row("60 %", "seft", 20.0, 22.0, 24.0, trained=1234),
    row("60 %", "lora", 2000.0),
  ]
  published = {Cell("60 %", "lora"): "LLaMA-7B: 5 -> 6"}
  header, *lines = llm.table(rows, PERPLEXITY, 10.0, published)
  assert header == (
    *("zeros", "method", "perplexity", "against dense", "95 % interval"),
    *("runs", "non-zeros", "trained weights", "published, of another model"),
  )
  # t of 2 degrees of freedom is 4.303; 22 -+ 4.303 * 2 / sqrt(3).
  assert lines == [
    ("60 %", "none", "30.00", "3x", "-", "1", "41.00 %", "-", "-"),
    ("60 %", "seft", "22.00", "2.2x", "17.03 to 26.97", "3", "41.00 %",
     "1,234", "-"),
    ("60 %", "lora", "2e+03", "200x", "-", "1", "41.00 %", "-",
     "LLaMA-7B: 5 -> 6"),
  ]  # fmt: skip


def test_the_dense_model_and_the_test_stand_beside_every_value():
  rows = [row("60 %", "none", 30.0), row("60 %", "ce", 20.0)]
  tested = "1,024 tokens, context 256"
  header, *lines = llm.table(rows, PERPLEXITY, 10.0, {}, tested)
  at = header.index("dense")
  assert header[at + 1] == "tested on"
  assert [line[at : at + 2] for line in lines] == [("10.00", tested)] * 2


@pytest.mark.parametrize(
  ("model", "dense", "verdict"),
  [
    ("random", {}, False),
    ("random", {"steps": 8}, False),
    ("random", {"steps": 600}, True),
    ("random", {"save": True}, False),  # as many steps as the others
    ("huggingface", {}, True),
  ],
)
def test_a_random_model_allows_a_verdict_once_it_is_trained(
  model, dense, verdict
):
  base = {"model": {"name": model}, "steps": 40}
  config = ml_collections.ConfigDict({"base": base, "dense": dense})
  assert (llm._barred(config) == "") == verdict


def test_lines_of_accuracies_leave_out_what_is_empty():
  header, line = llm.table([row("", "x", 0.25)], ACCURACY, 0.5, {})
  assert header == (
    *("zeros", "method", "accuracy [%]", "against dense", "runs"),
    "non-zeros",
  )
  assert line == ("dense", "x", "25.0", "-25.0", "1", "41.00 %")


@pytest.mark.parametrize("measure", [PERPLEXITY, ACCURACY])
def test_the_order_of_papers(measure):
  rows = [
    row("50 %", "a", 3.0, 3.1, 3.2),
    row("50 %", "b", 2.0, 2.1, 2.5),
    row("70 %", "a", 3.0, 4.0, 5.0),
    row("70 %", "b", 4.0, 3.0, 5.1),
    row("70 %", "c", 5.0),
    row("70 %", "d", 6.0),
  ]
  low = measure.lower_is_better
  first, second = llm.order_sentences(rows, measure, [("a", "b")])
  shown = measure.shown
  assert first == (
    f"a, 50 %: {shown(3.1)} and b, 50 %: {shown(2.2)}: "
    + ("as papers report." if low else "NOT what papers report.")
  )
  assert second.endswith(
    ("NOT what papers report" if low else "as papers report")
    + ", but 3 seeds cannot tell."
  )
  (many,) = llm.order_sentences(rows, measure, [("c, 70 %", "a, 50 %")])
  assert ("as papers report" in many) == low
  (single,) = llm.order_sentences(rows, measure, [("c, 70 %", "d, 70 %")])
  assert single.endswith(": one seed: no verdict.")
  with pytest.raises(UserError, match="did you mean 'a, 50 %'"):
    llm.order_sentences(rows, measure, [("a, 55 %", "b")])


@pytest.mark.parametrize("swapped", [False, True])
def test_a_single_value_is_compared_with_every_seed(swapped):
  rows = [row("", "none", 3.0), row("", "seft", 2.9, 3.1, 3.2)]
  pair = ("seft", "none") if swapped else ("none", "seft")
  (said,) = llm.order_sentences(rows, PERPLEXITY, [pair])
  verdict = "as papers report" if swapped else "NOT what papers report"
  assert said.endswith(f": {verdict}, but 3 seeds cannot tell.")


def test_only_seeds_that_both_have_are_compared():
  rows = [row("", "a", 3.0, 4.0, 0.0), row("", "b", 2.0, 2.5)]
  (said,) = llm.order_sentences(rows, PERPLEXITY, [("a", "b")])
  assert said.endswith(": two seeds: no verdict.")


def test_models_whose_measure_is_not_finite_are_not_averaged():
  numbers = [2.0, None, 3.0]
  results = {
    seed: {"perplexity": value, "nnz": 40, "size": 100}
    for seed, value in enumerate(numbers)
  }
  found = llm.row(Cell("2:4", "seft"), results, PERPLEXITY)
  _, line = llm.table([found], PERPLEXITY, 1.0, {})
  assert line[2:5] == ("2.50 (1 of 3 diverged)", "2.5x", "3")


def test_a_cell_whose_runs_all_diverged_is_a_row_all_the_same():
  why = {0: "the loss is not finite at step 3; more", 1: "so is this"}
  found = llm.row(Cell("2:4", "seft"), {}, PERPLEXITY, why)
  header, line = llm.table([found], PERPLEXITY, 1.0, {})
  assert dict(zip(header, line, strict=True)) == {
    "zeros": "2:4",
    "method": "seft",
    "perplexity": "- (2 of 2 diverged)",
    "runs": "2",
  }
  assert "seed 0 (the loss is not finite at step 3); " in notes([found])


def test_folders_are_names_that_any_disk_takes():
  assert Cell("wanda 60 %", "lora*").folder == "wanda_60-lora_"
  assert Cell("2:4", "seft, |w|").folder == "2of4-seft_w_"
  assert Cell("", "dense").folder == "dense"
