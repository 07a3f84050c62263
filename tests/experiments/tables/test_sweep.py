"""Tables of sweeps: their numbers by hand, by scipy, and from real runs."""

import html.parser
import pathlib
import shutil
import types

import pytest

from experiments.config import grid
from experiments.config.entry import Entry
from experiments.errors import UserError
from experiments.runs import metrics
from experiments.sweep import __main__ as sweep
from experiments.tables import __main__ as tables
from experiments.tables import costs
from experiments.tables import sweep as sweep_tables

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = '''"""Two rows <of> digits.

    python -m experiments.sweep --config=configs/digits.py --root=DIR
"""

from experiments.config.entry import Entry
from tests.experiments import small


def get_config(arg=""):
  return small.get_config("dense")


def sweep(arg):
  for seed in range(2):
    yield Entry("dense"), {"seed": seed}
    rigl = {"name": "rigl", "delta_t": 4, "t_end": 18, "sparsity": 0.8}
    yield Entry("RigL", 0.8), {"seed": seed, "algorithm": rigl}
    static = {"name": "static", "sparsity": 0.8}
    change = {"seed": seed, "algorithm": static, "steps": 48}
    yield Entry("static 2x", 0.8), change


EXPECTED = [("RigL", "dense"), ("static 2x", "RigL")]
PUBLISHED = {Entry("dense"): (0.5, "nobody")}
'''


def record(method, seed, accuracy, **changes):
  values = {
    **{"sparsity": 0.9, "loss": 0.1, "nnz": 10, "size": 100, "bytes": 40.0},
    **{"steps": 5, "training": 600.0, "inference": 2.0, "run": "abc"},
    **{"dense_training": 1000.0, "dense_inference": 8.0, "estimated": False},
    **{"barred": "", "state": "finished"},
  }
  return sweep_tables.Record(
    method=method, seed=seed, accuracy=accuracy, **{**values, **changes}
  )


def config(**attributes):
  return types.SimpleNamespace(**attributes)


def test_a_row_is_mean_and_spread_of_its_seeds():
  records = [record("rigl", s, a) for s, a in enumerate((1.0, 2.0, 6.0))]
  (row,) = sweep_tables.summarize(records, config())
  assert row.mean == 3.0
  assert row.spread == "3.00 ± 2.65"
  # t(0.975, 2) = 4.303: what a paper prints is inside if t says so.
  half = 4.30265 * (7 / 3) ** 0.5
  assert row.interval == pytest.approx((3 - half, 3 + half), abs=1e-4)
  assert row.values == {0: 1.0, 1: 2.0, 2: 6.0}


@pytest.mark.parametrize("others", [[], [("dense", 400.0)], [("a", 9.0)]])
def test_flops_are_relative_to_arithmetic_whatever_other_rows_there_are(others):
  records = [record(name, 0, 1.0, training=cost) for name, cost in others]
  *_, row = sweep_tables.summarize([*records, record("rigl", 0, 1.0)], config())
  assert (row.training, row.inference) == (0.6, 0.25)
  header, *_, cells = sweep_tables.table([row])
  assert cells[header.index("training FLOPs (1x: dense, computed)")] == "0.600x"


def test_missing_runs_are_counted_and_named():
  gone = {"accuracy": None, "nnz": None, "training": None}
  records = [
    record("a", 0, 1.0),
    record("a", 1, 3.0),
    record("a", 2, **gone, state="failed: no room"),
    record("b", 0, **gone, state="not begun"),
  ]
  a, b = sweep_tables.summarize(records, config(PUBLISHED=_SOME))
  header, *lines = sweep_tables.table([a, b])
  assert [line[header.index("runs")] for line in lines] == ["2 of 3", "0 of 1"]
  assert a.spread == "2.00 ± 1.41"
  assert a.within == "two seeds: no verdict"
  assert set(lines[1]) == {"b", "90 %", "-", "0 of 1"}
  (part,) = sweep_tables.parts([a, b], config())
  assert part.note.endswith(
    "2 of 4 runs have no number, and means are of the others: a, 90 %, seed 2 "
    "(failed: no room); b, 90 %, seed 0 (not begun)."
  )


_SOME = {Entry("a", 0.9): (2.0, "somebody")}


@pytest.mark.parametrize(
  "changes",
  [
    {"accuracy": float("nan"), "loss": None},
    {"accuracy": None, "state": "failed: the loss is not finite at step 7"},
  ],
)
def test_a_seed_that_diverged_is_not_averaged_and_not_hidden(changes):
  records = [record("a", s, 50.0 + s) for s in range(3)]
  records.append(record("a", 3, **changes))
  (row,) = sweep_tables.summarize(records, config(PUBLISHED=_SOME))
  assert row.spread == "51.00 ± 1.00 (1 of 4 diverged)"
  assert (row.runs, row.interval[1]) == ("4", float("inf"))
  assert row.within == "1 of 4 seeds diverged: no verdict"


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_no_verdict(seeds):
  records = [record(name, s, s) for name in "ab" for s in range(seeds)]
  rows = sweep_tables.summarize(records, config(PUBLISHED=_SOME))
  wanted = f"{ {1: 'one seed', 2: 'two seeds'}[seeds] }: no verdict"
  assert rows[0].within == wanted
  table, order = sweep_tables.parts(rows, config(EXPECTED=[("a", "b")]))
  assert wanted in table.lines[1]
  assert order.lines[1][-1] == wanted
  assert f"1 {wanted}" in order.note


def test_random_data_has_no_verdict_however_many_seeds():
  records = [
    record(name, s, s * 1.0, barred="random data: no verdict")
    for name in "ab"
    for s in range(9)
  ]
  rows = sweep_tables.summarize(records, config(PUBLISHED=_SOME))
  assert rows[0].within == "random data: no verdict"
  _, order = sweep_tables.parts(rows, config(EXPECTED=[("a", "b")]))
  assert order.lines[1][-1] == "random data: no verdict"


def test_a_published_number_is_inside_or_not():
  records = [record("a", s, 50.0 + s) for s in range(5)]
  published = {Entry("a", 0.9): (51.5, "somebody")}
  (row,) = sweep_tables.summarize(records, config(PUBLISHED=published))
  assert row.within == "yes"
  # Five seeds, t(0.975, 4) = 2.776: 50.04 to 53.96. A bootstrap, which is
  # short for few seeds, has 53.4 at most, and said no to 53.8.
  published = {Entry("a", 0.9): (53.8, "somebody")}
  (row,) = sweep_tables.summarize(records, config(PUBLISHED=published))
  assert row.within == "yes"
  published = {Entry("a", 0.9): (60.0, "somebody")}
  (row,) = sweep_tables.summarize(records, config(PUBLISHED=published))
  assert row.within == "no"
  header, cells = sweep_tables.table([row])
  assert cells[-3:] == ("60", "no", "somebody")
  assert header[-3:] == ("published", "within", "source")
  (row,) = sweep_tables.summarize(
    records, config(PUBLISHED=published, SAME=False)
  )
  assert row.within == "-"
  assert "within" not in sweep_tables.table([row])[0]


def test_runs_are_read_as_they_were_written(tmp_path):
  records = [record("a, (b)", 0, 1.5), record("dense", 1, 2.0, sparsity=None)]
  records.append(record("mine", 0, 3.0, estimated=True))
  records.append(record("mine", 1, None, loss=None, nnz=None, state="no, x"))
  file = tmp_path / "x_runs.csv"
  sweep_tables.save_records(file, records, command="a command")
  assert sweep_tables.load_records(file) == records
  assert file.read_text().startswith("# a command\n")
  file.write_text("# a command\nmethod\na\n")
  with pytest.raises(UserError, match="cannot be read"):
    sweep_tables.load_records(file)


class _Page(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.open, self.images, self.rows = [], [], 0

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    self.rows += tag == "tr"
    if tag == "img":
      self.images.append(given["src"])
    elif tag not in ("meta", "html"):
      self.open.append(tag)
    assert not any(v.startswith("http") for v in given.values())

  def handle_endtag(self, tag):
    if tag != "html":
      assert self.open.pop() == tag


@pytest.mark.slow
def test_a_sweep_becomes_a_table_and_a_report(tmp_path, monkeypatch):
  (tmp_path / "configs").mkdir()
  file = tmp_path / "configs" / "digits.py"
  file.write_text(CONFIG)
  monkeypatch.setattr(tables, "ROOT", tmp_path)
  root = tmp_path / "runs"
  with pytest.raises(UserError, match="holds no finished run"):
    tables.make_table("digits", root)
  sweep.run(str(file), str(root), jobs=2)
  dense, rigl, static = tables.make_table("digits", root, out=tmp_path / "out")
  assert {len(row.values) for row in (dense, rigl, static)} == {2}
  assert (dense.training, dense.inference) == (1.0, 1.0)
  assert dense.published == 0.5
  assert dense.within == "two seeds: no verdict"
  for row, times in ((rigl, 1), (static, 2)):
    one = grid.rows(str(file))[Entry(row.method, row.setting)][0]
    history = metrics.read(root / grid.name_of(one))
    assert history[-1]["nnz"] == row.nnz
    training, inference = costs.of(one, history).relative
    assert row.training == pytest.approx(times * training, rel=1e-4)
    assert row.inference == pytest.approx(inference, rel=1e-4)
    # ERK of 64 x 8 and 8 x 10 weights: a fifth of them, and 18 biases.
    assert row.nnz == pytest.approx(0.2 * (64 * 8 + 8 * 10) + 18, abs=1)
  page = _Page()
  text = (root / "report.html").read_text()
  page.feed(text)
  assert page.open == []
  assert len(page.images) == 7
  assert all(x.startswith("data:image/png;base64,") for x in page.images)
  assert page.rows == 1 + 3 + 1 + 2  # the orders of RigL, dense and static
  assert "Two rows &lt;of&gt; digits" in text
  assert "6 of 6 runs are finished" in text
  names = ("digits.csv", "digits.md", "digits.tex")
  first = [(tmp_path / "out" / name).read_bytes() for name in names]
  again = tmp_path / "again"
  again.mkdir()
  shutil.copy(tmp_path / "out" / "digits_runs.csv", again)
  tables.rebuild(again / "digits_runs.csv")
  assert [(again / name).read_bytes() for name in names] == first
  for name in ("digits.png", "digits_flops.png"):
    assert (again / name).stat().st_size > 5000
  # Without a dense row, and with a run that failed, the numbers stay.
  text = file.read_text().replace('yield Entry("dense")', 'Entry("dense")')
  file.write_text(text)
  grid.rows.cache_clear()
  gone = root / grid.name_of(grid.rows(str(file))[Entry("RigL", 0.8)][1])
  (gone / "finished.json").unlink()
  (root / "logs" / f"{gone.name}.txt").write_text("x\nError: no: room\ny\n")
  less, other = tables.make_table("digits", root, out=tmp_path / "less")
  assert (less.training, other.training) == (rigl.training, static.training)
  assert (less.runs, less.lost) == ("1 of 2", {1: "failed: no: room"})


@pytest.mark.parametrize(
  "file", sorted((ROOT / "results").glob("*_runs.csv")), ids=lambda f: f.stem
)
def test_committed_tables_are_those_of_their_runs(file, tmp_path):
  shutil.copy(file, tmp_path)
  tables.rebuild(tmp_path / file.name)
  for ending in ("csv", "md", "tex"):
    name = file.name.replace("_runs.csv", f".{ending}")
    assert (tmp_path / name).read_text() == (
      ROOT / "results" / name
    ).read_text()


@pytest.mark.parametrize(
  ("file", "message"),
  [
    ("config.json", "it is the workdir of a command of experiments.main"),
    ("abc/finished.json", "its 1 finished runs are of another config or arg"),
    ("abc/config.json", "none has come to its end"),
  ],
)
def test_a_directory_without_the_sweeps_runs_is_told_from_others(
  file, message, tmp_path
):
  (tmp_path / file).parent.mkdir(exist_ok=True)
  (tmp_path / file).write_text("{}")
  with pytest.raises(UserError, match=message):
    tables.make_table("rigl_mnist1d", tmp_path)
  with pytest.raises(UserError, match="there is no such directory"):
    tables.make_table("rigl_mnist1d", tmp_path / "x")


def test_an_unknown_table_names_the_known_ones(tmp_path):
  with pytest.raises(UserError, match="dst_mnist1d"):
    tables.make_table("dst_mnist", tmp_path)
